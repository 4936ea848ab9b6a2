"""Keys: shown once, kept as a hash, limited by right and name, and ended for good."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

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
