"""Keys: shown once, kept as a hash, limited by right and name, and ended for good."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pressroom.kernel import AccessError, Key, Keys, NotFoundError, Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path, environ={}) as opened:
        yield opened


@pytest.fixture
def keys(workspace: Workspace) -> Keys:
    return Keys(workspace)


def test_a_secret_is_shown_once_and_found_again(keys: Keys, workspace: Workspace) -> None:
    key, secret = keys.create("ci", ["write:smollm2*", "read"])
    assert secret.startswith("pr-") and len(secret) == 46
    assert keys.find(secret) == key == Keys(workspace).find(secret)
    assert keys.list() == [key]
    assert secret not in repr(keys.list())
    with sqlite3.connect(workspace.dir / "pressroom.db") as database:
        kept = "\n".join(database.iterdump())
    assert "ci" in kept and secret not in kept and secret[3:] not in kept


def test_what_is_no_secret_finds_nothing(keys: Keys) -> None:
    keys.create("ci", ["read"])
    for secret in ("", "pr-", "x" * 46, "pr-" + "a" * 43, "pr-" + "ü" * 43, "a" * 1_000_000, "pr-\0"):
        assert keys.find(secret) is None


def test_a_secret_with_one_letter_changed_finds_nothing(keys: Keys) -> None:
    _, secret = keys.create("ci", ["admin"])
    other = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    assert keys.find(other) is None
    assert keys.find(secret) is not None


@pytest.mark.parametrize(
    ("rights", "right", "model", "may"),
    [
        (["read"], "read", "smollm2", True),
        (["read"], "write", "smollm2", False),
        (["write"], "write", "org/anything", True),
        (["write:smollm2*"], "write", "smollm2-instruct", True),
        (["write:smollm2*"], "write", "other", False),
        (["write:smollm2*"], "read", "smollm2", True),
        (["write:smollm2*"], "read", "other", False),
        (["write:smollm2"], "promote", "smollm2", False),
        (["promote:org/*"], "promote", "org/m", True),
        (["promote:m?"], "promote", "m1", True),
        (["promote:m?"], "promote", "m12", False),
        (["promote:M"], "promote", "m", False),
        (["admin"], "promote", "m", True),
        (["admin"], "admin", "m", True),
        (["admin:org/*"], "write", "m", False),
        (["write"], "admin", "m", False),
        (["read:a", "write:b"], "write", "b", True),
        (["read:a", "write:b"], "write", "a", False),
    ],
)
def test_what_a_right_covers(keys: Keys, rights: list[str], right: str, model: str, may: bool) -> None:
    key, secret = keys.create("k", rights)
    assert key.may(right, model) is may
    if may:
        assert keys.require(secret, right, model) == key
    else:
        with pytest.raises(AccessError) as caught:
            keys.require(secret, right, model)
        assert rights[0] in caught.value.message and right in caught.value.hint
        assert secret not in str(caught.value.as_dict())


def test_a_right_that_does_not_exist_is_refused_with_those_that_do(keys: Keys) -> None:
    for right in ("", "own", "Write", "write:", "write:a b", "write:[a]", "write:a;drop", "read:ü"):
        with pytest.raises(AccessError) as caught:
            keys.create("k", [right])
        assert "write" in caught.value.hint
    assert keys.list() == []


def test_an_unknown_right_is_refused_when_asked_for() -> None:
    with pytest.raises(AccessError, match="own"):
        Key(name="k", rights=("admin",), created=0.0).may("own", "m")


def test_a_name_that_cannot_be_one(keys: Keys) -> None:
    for name in ("", "-x", "a b", "a/b", "x" * 65, "ü"):
        with pytest.raises(AccessError, match="name"):
            keys.create(name, ["read"])


def test_a_key_has_a_right(keys: Keys) -> None:
    with pytest.raises(AccessError, match="no right"):
        keys.create("k", [])


def test_a_revoked_key_opens_nothing_and_its_name_is_free(keys: Keys) -> None:
    first, secret = keys.create("ci", ["promote"])
    with pytest.raises(AccessError, match="already"):
        keys.create("ci", ["read"])
    revoked = keys.revoke("ci")
    assert revoked.revoked is not None and not revoked.may("promote", "m")
    assert keys.find(secret) is None
    with pytest.raises(AccessError, match="revoked"):
        keys.require(secret, "read", "m")
    with pytest.raises(NotFoundError):
        keys.revoke("ci")
    again, other = keys.create("ci", ["read"])
    assert keys.find(other) == again and keys.find(secret) is None
    assert [key.name for key in keys.list()] == ["ci"]
    assert [key.rights for key in keys.list(revoked=True)] == [first.rights, again.rights]


def test_revoking_what_is_not_there_names_the_nearest(keys: Keys) -> None:
    keys.create("nightly", ["read"])
    with pytest.raises(NotFoundError) as caught:
        keys.revoke("nightli")
    assert "nightly" in caught.value.hint


def test_whether_anybody_has_a_right(keys: Keys) -> None:
    assert not keys.any("promote")
    keys.create("w", ["write:m"])
    assert keys.any("write") and keys.any("read") and not keys.any("promote")
    keys.create("a", ["admin"])
    assert keys.any("promote")
    keys.revoke("a")
    assert not keys.any("promote")
    with pytest.raises(AccessError):
        keys.any("own")


def test_one_name_is_taken_once_at_the_same_moment(keys: Keys) -> None:
    made: list[str] = []
    refused: list[AccessError] = []

    def create() -> None:
        try:
            made.append(keys.create("ci", ["read"])[1])
        except AccessError as error:
            refused.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 7)


@pytest.mark.parametrize(
    ("rights", "right", "name", "may"),
    [
        (["ask"], "ask", "chat", True),
        (["ask:chat*"], "ask", "chat-2", True),
        (["ask:chat*"], "ask", "other", False),
        (["ask"], "read", "chat", False),
        (["ask", "read:chat"], "read", "chat", True),
        (["admin"], "ask", "chat", True),
        (["admin:org/*"], "ask", "chat", False),
        (["write"], "ask", "chat", False),
        (["read"], "ask", "chat", False),
    ],
)
def test_asking_is_a_right_of_its_own(keys: Keys, rights: list[str], right: str, name: str, may: bool) -> None:
    assert keys.create("k", rights)[0].may(right, name) is may
    assert keys.any("ask") is any(grant.partition(":")[0] in ("ask", "admin") for grant in rights)


def test_who_may_only_ask_is_no_reader_of_the_hub(keys: Keys) -> None:
    _, secret = keys.create("app", ["ask"])
    assert not keys.any("read") and not keys.any("write")
    with pytest.raises(AccessError, match="may not read"):
        keys.require(secret, "read", "m")


def test_limits_team_and_end_are_kept_and_changed(keys: Keys, workspace: Workspace) -> None:
    end = time.time() + 100.5
    made, secret = keys.create(
        "app", ["ask"], team="web", requests_per_minute=60, tokens_per_minute=10**14, parallel=4, expires=end
    )
    assert (made.team, made.requests_per_minute, made.tokens_per_minute, made.parallel) == ("web", 60, 10**14, 4)
    assert made.expires == end and keys.find(secret) == made == Keys(workspace).list()[0]
    changed = keys.change("app", requests_per_minute=None, parallel=9)
    assert changed == replace(made, requests_per_minute=None, parallel=9) == keys.find(secret)
    assert keys.change("app", team="", expires=None).team == ""
    assert keys.change("app") == keys.find(secret)
    with pytest.raises(NotFoundError) as caught:
        keys.change("ap", parallel=1)
    assert "app" in caught.value.hint
    keys.revoke("app")
    with pytest.raises(NotFoundError):
        keys.change("app", parallel=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"parallel": 2**63},
        {"parallel": 1.5},
        {"parallel": True},
        {"team": "a b"},
        {"team": "x" * 65},
        {"expires": 1.0},
        {"expires": float("nan")},
        {"expires": float("inf")},
    ],
)
def test_what_no_limit_can_be(keys: Keys, wrong: dict[str, Any]) -> None:
    with pytest.raises(AccessError) as caught:
        keys.create("app", ["ask"], **wrong)
    assert caught.value.hint
    keys.create("app", ["ask"])
    before = keys.changes()
    with pytest.raises(AccessError):
        keys.change("app", **wrong)
    assert keys.changes() == before


def test_a_key_that_has_expired_opens_nothing_until_it_is_given_time(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    key, secret = keys.create("app", ["promote"], expires=now + 10)
    assert key.may("promote", "m") and keys.find(secret) == key
    monkeypatch.setattr(time, "time", lambda: now + 10)
    assert not key.may("promote", "m") and keys.find(secret) is None
    with pytest.raises(AccessError, match="expired"):
        keys.require(secret, "promote", "m")
    assert keys.list() == [key]  # there, so that it can be given more time
    assert keys.any("promote")  # what it kept closed stays closed
    with pytest.raises(AccessError, match="already"):
        keys.create("app", ["read"])
    keys.change("app", expires=now + 20)
    assert keys.require(secret, "promote", "m").name == "app"


def test_the_counter_rises_with_every_change_and_only_then(keys: Keys, workspace: Workspace) -> None:
    seen = [keys.changes()]

    def changed() -> bool:
        seen.append(Keys(workspace).changes())
        return seen[-1] > seen[-2]

    assert not changed()
    keys.create("app", ["ask"])
    assert changed()
    keys.change("app", parallel=1)
    assert changed()
    with pytest.raises(AccessError):
        keys.create("app", ["ask"])
    keys.list()
    keys.change("app")
    assert not changed()
    keys.revoke("app")
    assert changed()
    with pytest.raises(NotFoundError):
        keys.revoke("app")
    assert not changed()


def test_keys_by_the_digest_of_their_secrets(keys: Keys) -> None:
    first, secret = keys.create("a", ["ask"])
    keys.create("b", ["ask"])
    keys.revoke("b")
    number, found = keys.by_digest()
    assert number == keys.changes()
    assert found == {hashlib.sha256(secret.encode()).digest(): first}


def test_a_database_of_before_limits_keeps_its_keys(tmp_path: Path) -> None:
    """Tables as the first step made them, with a key in them that is used on."""
    with Workspace.open(tmp_path, environ={}) as workspace:
        _, secret = Keys(workspace).create("ci", ["write:m*"])
        Keys(workspace).create("old", ["read"])
        Keys(workspace).revoke("old")
    with sqlite3.connect(workspace.dir / "pressroom.db") as database:
        for column in ("team", "requests_per_minute", "tokens_per_minute", "parallel", "expires"):
            database.execute(f"ALTER TABLE access_keys DROP COLUMN {column}")
        database.execute("DROP TABLE access_changes")
        database.execute("DELETE FROM pressroom_migrations WHERE part = 'keys' AND number > 1")
    database.close()
    with Workspace.open(tmp_path, environ={}) as workspace:
        keys = Keys(workspace)
        found = keys.require(secret, "write", "m1")
        assert (found.team, found.parallel, found.expires) == ("", None, None)
        assert [key.name for key in keys.list(revoked=True)] == ["ci", "old"]
        before = keys.changes()
        assert keys.change("ci", parallel=3).parallel == 3 and keys.changes() > before


@pytest.mark.slow
def test_keys_on_postgres(tmp_path: Path, postgres_url: str) -> None:
    with Workspace.open(tmp_path, environ={"PRESSROOM_DATABASE": postgres_url}) as workspace:
        keys = Keys(workspace)
        _, secret = keys.create("app", ["ask"], team="web", tokens_per_minute=10**14, expires=time.time() + 100)
        before = keys.changes()
        assert keys.change("app", parallel=2).tokens_per_minute == 10**14
        number, found = keys.by_digest()
        assert number == keys.changes() == before + 1 and list(found.values()) == [keys.find(secret)]
        keys.revoke("app")
        assert keys.by_digest() == (number + 1, {})
