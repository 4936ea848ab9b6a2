"""Who asks: found by the hash of a secret, renewed while it runs, refused where it must be."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pressroom.gateway.access import Access
from pressroom.gateway.admission import Caller
from pressroom.gateway.problems import Problem
from pressroom.kernel import Key, Keys, Workspace

UNKNOWN = b"pr-" + b"a" * 43


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path, environ={}) as opened:
        yield opened


@pytest.fixture
def keys(workspace: Workspace) -> Keys:
    return Keys(workspace)


def bearer(secret: str | bytes) -> bytes:
    return b"Bearer " + (secret.encode() if isinstance(secret, str) else secret)


def found(access: Access, *shown: bytes | None) -> Caller:
    caller = access.caller(*shown)
    assert isinstance(caller, Caller), caller
    return caller


def refused(access: Access, *shown: bytes | None) -> Problem:
    problem = access.caller(*shown)
    assert isinstance(problem, Problem), problem
    return problem


def renewed(keys: Keys | None, **options: bool) -> Access:
    access = Access(keys, **options)
    assert access.renew()
    return access


def test_open_loopback_asks_for_no_key(keys: Keys) -> None:
    access = renewed(keys)
    nobody = access.anonymous
    assert not access.needs_key and (nobody.key, nobody.team) == ("", "") and nobody.may_ask("anything")
    for shown in (None, b"", b"Bearer", b"Bearer ", b"Bearer none", b"Bearer sk-123", b"none", b"Basic bm9uZTpub25l"):
        assert access.caller(shown) is nobody
    assert access.caller(None, b"dummy") is nobody
    for shown in (bearer(UNKNOWN), b"Bearer pr-cut", UNKNOWN, b"bearer  " + UNKNOWN):
        assert refused(access, shown).code == "invalid_api_key"
    assert refused(access, None, UNKNOWN).status == 401


def test_a_key_is_found_however_it_is_sent(keys: Keys) -> None:
    _, secret = keys.create("app", ["ask"], team="red", requests_per_minute=60, tokens_per_minute=9, parallel=3)
    for access in (renewed(keys), renewed(keys, require_key=True)):
        caller = found(access, bearer(secret))
        assert (caller.key, caller.team, caller.patterns) == ("app", "red", ("*",))
        limits = caller.limits
        assert (limits.requests_per_minute, limits.tokens_per_minute, limits.parallel) == (60, 9, 3)
        basic = base64.b64encode(b"anybody:" + secret.encode())
        raw = secret.encode()
        for shown in (b"bearer " + raw, b"Bearer  " + raw + b" ", b"Basic " + basic, b"basic " + basic, raw):
            assert access.caller(shown) is caller
        assert access.caller(None, raw) is caller is access.caller(b"Bearer none", raw)
        # The first that has the form of a key counts.
        assert refused(access, bearer(UNKNOWN), raw).status == 401


@pytest.mark.parametrize("options", [{"require_key": True}, {"loopback": False}])
def test_where_keys_are_needed_nobody_gets_in_without(keys: Keys, options: dict[str, bool]) -> None:
    access = renewed(keys, **options)
    assert access.needs_key
    missing = refused(access, None)
    assert (missing.status, missing.code) == (401, "invalid_api_key") and "press keys create" in missing.message
    for shown in (b"", b"Bearer ", b"Bearer none", b"Basic bm9uZTpub25l", b"Basic !", bearer(UNKNOWN)):
        assert refused(access, shown).code == "invalid_api_key"
    assert "not known" in refused(access, b"Bearer sk-123").message


def test_the_address_decides_too(keys: Keys) -> None:
    access = renewed(keys)
    before = access.generation
    access.bound_to("0.0.0.0")
    assert access.generation > before and refused(access, None).status == 401
    access.bound_to("127.0.0.1")
    assert access.caller(None) is access.anonymous
    required = renewed(keys, require_key=True)
    required.bound_to("localhost")
    assert refused(required, None).status == 401


@pytest.mark.parametrize(
    ("rights", "may", "not_"),
    [
        (["ask"], ["chat", "a/b"], []),
        (["ask:chat*"], ["chat", "chat-2"], ["other"]),
        (["ask:a", "ask:b?"], ["a", "b1"], ["b", "c"]),
        (["admin"], ["chat"], []),
        (["admin:org/*", "read"], ["org/m"], ["m"]),
    ],
)
def test_what_a_key_may_ask(keys: Keys, rights: list[str], may: list[str], not_: list[str]) -> None:
    _, secret = keys.create("k", rights)
    caller = found(renewed(keys), bearer(secret))
    assert all(caller.may_ask(name) for name in may) and not any(caller.may_ask(name) for name in not_)
    assert caller.admin is ("admin" in rights)


def test_a_key_of_the_hub_may_not_ask(keys: Keys) -> None:
    _, secret = keys.create("ci", ["write:m*", "read"])
    access = renewed(keys)
    problem = refused(access, bearer(secret))
    assert (problem.status, problem.code) == (403, "insufficient_permissions")
    assert "'ci'" in problem.message and "write:m*" in problem.message
    assert refused(access, bearer(access.internal()), None, b"ci") == problem


def test_what_changed_is_in_force_and_the_rest_is_the_same_object(keys: Keys) -> None:
    secrets = {name: bearer(keys.create(name, ["ask"], team="red")[1]) for name in ("a", "b", "c")}
    access = renewed(keys, require_key=True)
    before = {name: found(access, secret) for name, secret in secrets.items()}
    for caller in before.values():
        caller.purse = object()
    generation = access.generation
    assert access.renew() and access.generation == generation
    keys.change("a", requests_per_minute=5)
    keys.revoke("b")
    _, new = keys.create("d", ["ask"])
    assert found(access, secrets["b"]) is before["b"]  # not yet looked
    assert access.renew() and access.generation > generation
    changed = found(access, secrets["a"])
    assert changed is not before["a"] and changed.purse is before["a"].purse
    assert changed.limits.requests_per_minute == 5
    assert refused(access, secrets["b"]).status == 401
    assert found(access, secrets["c"]) is before["c"]
    assert found(access, bearer(new)).key == "d"
    keys.change("a", team="blue")
    access.renew()
    moved = found(access, secrets["a"])
    assert moved.team == "blue" and moved.purse is None and moved.limits.requests_per_minute == 5


def test_a_name_that_was_used_before_is_another_key(keys: Keys) -> None:
    _, first = keys.create("app", ["ask:a"])
    access = renewed(keys)
    found(access, bearer(first)).purse = object()
    keys.revoke("app")
    _, second = keys.create("app", ["ask:b"])
    access.renew()
    assert refused(access, bearer(first)).status == 401
    caller = found(access, bearer(second))
    assert caller.patterns == ("b",) and caller.purse is None
    assert access.caller(bearer(access.internal()), None, b"app") is caller


def test_a_key_expires_by_the_clock(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    _, secret = keys.create("app", ["ask"], expires=now + 100)
    _, other = keys.create("other", ["ask"])
    access = renewed(keys, require_key=True)
    assert found(access, bearer(secret)).key == "app"
    generation = access.generation
    for at, lets_in in ((99, True), (100, False), (101, False), (50, True), (200, False)):  # the clock is set back, too
        monkeypatch.setattr(time, "time", lambda at=at: now + at)
        access.renew()
        assert isinstance(access.caller(bearer(secret)), Caller) is lets_in
        assert found(access, bearer(other))
    assert access.generation == generation + 3
    keys.change("app", expires=None)
    access.renew()
    assert found(access, bearer(secret)).key == "app"


def test_the_server_asks_for_a_key(keys: Keys) -> None:
    _, secret = keys.create("app", ["ask"])
    for access in (renewed(keys), renewed(keys, require_key=True)):
        internal = bearer(access.internal())
        assert access.caller(internal, None, b"app") is found(access, bearer(secret))
        assert access.caller(internal, None, b" app ") is found(access, bearer(secret))
        assert access.caller(internal, None, b"") is access.anonymous is access.caller(internal)
        assert refused(access, internal, None, b"nobody").code == "invalid_api_key"
        # The header alone says nothing, whoever sends it.
        assert access.caller(bearer(secret), None, b"other") is found(access, bearer(secret))
        assert access.caller(bearer(access.internal()[:-1]), None, b"app") is not found(access, bearer(secret))
    assert access.internal() != Access(keys).internal()
    keys.revoke("app")
    access.renew()
    assert refused(access, internal, None, b"app").status == 401


def test_without_keys_only_the_open_gateway_answers() -> None:
    access = renewed(None)
    assert access.caller(None) is access.anonymous and refused(access, bearer(UNKNOWN)).status == 401
    assert refused(renewed(None, require_key=True), None).status == 401


def test_no_secret_is_kept(keys: Keys) -> None:
    _, secret = keys.create("app", ["ask"])
    access = renewed(keys)
    found(access, bearer(secret))
    refused(access, bearer(UNKNOWN))
    kept = repr({name: value for name, value in vars(access).items() if name != "_internal_secret"})
    assert secret not in kept and UNKNOWN.decode() not in kept


class Unreadable(Exception):
    pass


class Failing:
    """Keys whose database goes away."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.fails = True

    def changes(self) -> int:
        if self.fails:
            raise Unreadable
        return self._keys.changes()

    def by_digest(self) -> tuple[int, dict[bytes, Key]]:
        if self.fails:
            raise Unreadable
        return self._keys.by_digest()


def test_an_unreadable_database_lets_in_nobody_new_and_nobody_out(
    keys: Keys, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    _, secret = keys.create("app", ["ask"])
    _, mortal = keys.create("mortal", ["ask"], expires=now + 100)
    failing = Failing(keys)
    access = Access(failing, require_key=True)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        assert not access.renew() and not access.renew()
    assert len(caplog.records) == 1 and secret not in caplog.text
    assert refused(access, None).status == 401
    problem = refused(access, bearer(secret))
    assert problem.status == 503 and problem.retry_after_s
    failing.fails = False
    assert access.renew() and found(access, bearer(secret)) and found(access, bearer(mortal))
    failing.fails = True
    keys.revoke("app")
    monkeypatch.setattr(time, "time", lambda: now + 200)
    assert not access.renew() and len(caplog.records) == 2
    assert found(access, bearer(secret)).key == "app"
    assert refused(access, bearer(mortal)).status == 401  # that much is known without the database
    failing.fails = False
    assert access.renew() and refused(access, bearer(secret)).status == 401


def test_a_database_that_is_damaged_while_it_runs(
    keys: Keys, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    _, secret = keys.create("app", ["ask"])
    access = renewed(keys, require_key=True)
    workspace.database.close()
    for path in workspace.dir.glob("pressroom.db*"):
        path.write_bytes(b"not a database" * 1_000)
    with caplog.at_level(logging.WARNING):
        assert not access.renew()
    assert found(access, bearer(secret)).key == "app" and len(caplog.records) == 1


def test_the_thread_brings_changes_to_the_loop(keys: Keys) -> None:
    _, secret = keys.create("app", ["ask"])

    async def scenario() -> None:
        access = renewed(keys, require_key=True)
        access.start(asyncio.get_running_loop())
        try:
            keys.change("app", parallel=2)
            await until(lambda: found(access, bearer(secret)).limits.parallel == 2)
            keys.revoke("app")
            await until(lambda: isinstance(access.caller(bearer(secret)), Problem))
            _, other = keys.create("other", ["ask"])
            # From another thread: in force when it returns.
            assert await asyncio.to_thread(access.renew)
            assert found(access, bearer(other)).key == "other"
        finally:
            access.close()
            access.close()

    asyncio.run(scenario())


async def until(what: Callable[[], bool]) -> None:
    while not what():
        await asyncio.sleep(0.01)


def test_keys_made_and_revoked_from_many_threads_end_as_the_database_says(keys: Keys) -> None:
    """However looks and changes meet, the last look is what holds."""

    async def scenario() -> None:
        access = renewed(keys)
        access.start(asyncio.get_running_loop())
        secrets: dict[str, str] = {}

        def work(n: int) -> None:
            chance = random.Random(n)
            for step in range(6):
                name = f"k{n}-{step}"
                secrets[name] = keys.create(name, ["ask"])[1]
                if chance.random() < 0.5:
                    keys.revoke(name)
                access.renew()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)
        access.renew()
        live = {key.name for key in keys.list()}
        assert {name for name, secret in secrets.items() if isinstance(access.caller(bearer(secret)), Caller)} == live
        access.close()

    asyncio.run(scenario())


def test_no_header_is_too_odd() -> None:
    access = renewed(None)
    chance = random.Random(1)
    for _ in range(2_000):
        shown = chance.randbytes(chance.randrange(60))
        for header in (shown, b"Bearer " + shown, b"Basic " + shown, b"Basic " + base64.b64encode(shown)):
            assert isinstance(access.caller(header, shown, shown), Caller | Problem)
    assert access.caller(b"Bearer " + b"x" * 60_000) is access.anonymous
    assert refused(access, b"Bearer pr-" + b"x" * 60_000).status == 401
