"""What a cut run leaves: counted only where it is certainly there, and of the file that is meant."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest

from pressroom.kernel import SourceError
from pressroom.registry.sources import _partial
from pressroom.registry.sources._address import Address, same_origin
from pressroom.registry.sources._partial import Partial, Plan, journal_of
from pressroom.registry.sources._patience import Patience

MB = 1 << 20


def begun(local: Path, *, size: int = 5 * MB + 7) -> Partial:
    partial = Partial.create(local, Plan.of(size, '"1"', connections=4), what="a file")
    assert partial.plan.parts == 6
    assert partial.add(0, b"a" * MB) == MB
    assert partial.add(1, b"b" * 1000) == 1000
    assert partial.add(5, b"c" * 100) == 7  # no more than fits
    return partial


def resumed(local: Path) -> list[int] | None:
    found = Partial.resume(local)
    if found is None:
        return None
    found.close()
    return [found.count(number) for number in range(found.plan.parts)]


def test_what_is_counted_is_there(tmp_path: Path) -> None:
    local = tmp_path / "body"
    partial = begun(local)
    partial.close()
    assert partial.add(2, b"d") == 0
    assert resumed(local) == [MB, 1000, 0, 0, 0, 7]
    content = local.read_bytes()
    assert content[:MB] == b"a" * MB and content[MB : MB + 1000] == b"b" * 1000 and content[-7:] == b"c" * 7
    assert len(content) == 5 * MB + 7


def test_after_a_power_cut_only_what_was_synced_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = tmp_path / "body"
    begun(local).close()
    another = tmp_path / "boot_id"
    another.write_text("another start of this machine", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(_partial, "_BOOT", another)
        assert resumed(local) == [MB, 0, 0, 0, 0, 7]
        found = Partial.resume(local)
        assert found is not None
        found.add(1, b"e" * 10)
        found.close()
        assert resumed(local) == [MB, 10, 0, 0, 0, 7]
    # And once more.
    assert resumed(local) == [MB, 0, 0, 0, 0, 7]
    with monkeypatch.context() as patch:
        patch.setattr(_partial, "_BOOT", tmp_path / "nothing")  # a system that does not say
        assert resumed(local) == [MB, 0, 0, 0, 0, 7]


def test_a_file_that_became_another_length_is_nothing(tmp_path: Path) -> None:
    local = tmp_path / "body"
    begun(local).close()
    with local.open("ab") as file:
        file.write(b"x")
    assert resumed(local) is None
    local.unlink()
    assert resumed(local) is None


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": -1},
        {"size": 1 << 70},
        {"size": "5"},
        {"size": True},
        {"mark": ""},
        {"mark": None},
        {"part": 0},
        {"part": 1},
        {"part": 1.5},
    ],
)
def test_a_journal_that_is_none(tmp_path: Path, change: dict[str, object]) -> None:
    local = tmp_path / "body"
    begun(local).close()
    head, _, table = journal_of(local).read_bytes().partition(b"\n")
    journal_of(local).write_bytes(json.dumps(json.loads(head) | change).encode() + b"\n" + table)
    assert resumed(local) is None


def test_counts_that_cannot_be(tmp_path: Path) -> None:
    local = tmp_path / "body"
    begun(local).close()
    raw = journal_of(local).read_bytes()
    journal_of(local).write_bytes(raw[:-8] + struct.pack("<Q", 8))
    assert resumed(local) is None
    for cut in (0, 10, len(raw) - 1, len(raw) - 8):
        journal_of(local).write_bytes(raw[:cut])
        assert resumed(local) is None


def test_a_journal_of_chance(tmp_path: Path) -> None:
    """Whatever stands in it: a file to go on with, or None."""
    local = tmp_path / "body"
    begun(local).close()
    raw = journal_of(local).read_bytes()
    chance = random.Random(7)
    for _ in range(300):
        altered = bytearray(raw)
        for _ in range(chance.randrange(1, 4)):
            altered[chance.randrange(len(altered))] = chance.randrange(256)
        journal_of(local).write_bytes(bytes(altered))
        counts = resumed(local)
        assert counts is None or sum(counts) <= 5 * MB + 7


@pytest.mark.parametrize("size", [1, MB, MB + 1, 10 * MB, 5_000_000_000, 1 << 43])
@pytest.mark.parametrize("connections", [1, 8, 64])
def test_plans_cover_the_file(size: int, connections: int) -> None:
    plan = Plan.of(size, "x", connections=connections)
    assert sum(plan.length(number) for number in range(plan.parts)) == size
    assert all(plan.begin(n) + plan.length(n) == plan.begin(n + 1) for n in range(plan.parts - 1))
    assert plan.parts <= 1 << 16 and plan.part >= MB


def test_patience_grows_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pressroom.registry.sources._patience.time.monotonic", lambda: now[0])
    patience = Patience()
    assert patience.failed("a")
    assert not patience.failed("a", alone=False)
    now[0] = 50.0
    patience.news("a")
    tries = 0
    while not patience.failed("a"):
        tries += 1
        now[0] += max(0.0, patience.wait("a"))
    # Fifty seconds of work are worth fifty of waiting, with ever longer pauses.
    assert 100 <= now[0] <= 116 and 5 <= tries <= 10
    patience.news("a")
    assert patience.wait("a") == 0
    assert not patience.failed("a", wait_s=30) and patience.wait("a") == 30


def test_where_http_may_be_used() -> None:
    """Over an open line only to this machine, and to the hub that somebody chose."""
    hub = "http://hub.internal:8080"
    assert Address.parse(f"{hub}/org/m/resolve/main/a", plain=hub).url == f"{hub}/org/m/resolve/main/a"
    assert Address.parse("http://127.0.0.1/a").url == "http://127.0.0.1/a"
    for text in ("http://hub.internal/a", "http://hub.internal:8081/a", "http://other.internal:8080/a"):
        with pytest.raises(SourceError):
            Address.parse(text, plain=hub)
    assert not same_origin("", "") and not same_origin("https://a:x/", "https://a:x/")


def test_what_lies_beside_an_address() -> None:
    address = Address.parse("https://me:secret@example.org/a%20b/model.index.json?signature=1")
    beside = address.beside("model 1?.safetensors")
    assert beside.url == "https://example.org/a%20b/model%201%3F.safetensors?signature=1"
    assert beside.authorization == address.authorization and "signature" not in beside.shown
