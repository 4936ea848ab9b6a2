"""The ledger's folder is removed or moved under a gateway that writes: no row is lost, and none is counted twice."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pressroom.gateway.ledger import JournalLedger
from pressroom.kernel import Workspace

from .books import open_one, row, running, spending, summed, table, unfolded, workspace


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    with workspace(tmp_path, segment_bytes=65_536) as made:
        yield made


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


def in_place(ledger: JournalLedger) -> bool:
    current = ledger._journal._current
    return current is not None and current.is_in_place()


def remove(place: Workspace) -> None:
    shutil.rmtree(place.dir / "ledger")


def move(place: Workspace) -> None:
    (place.dir / "ledger").rename(place.dir / "elsewhere")


@pytest.mark.parametrize("how", [remove, move])
def test_rows_before_while_and_after_it_is_removed(
    place: Workspace, how: Callable[[Workspace], None], caplog: pytest.LogCaptureFixture
) -> None:
    ledger = running(place)
    root = place.dir / "ledger"
    salt, identity = (root / "salt").read_bytes(), (root / "worker-0" / "id").read_bytes()
    names: list[str] = []

    def ask(count: int) -> None:
        for _ in range(count):
            names.append(f"r{len(names)}")
            if len(names) % 3:
                assert open_one(ledger, names[-1])
            assert ledger.append(row(names[-1], user="alice"))

    ask(10)
    assert ledger.flush()
    ask(5)
    assert open_one(ledger, "long")
    how(place)
    ask(5)

    def asked_and_found() -> bool:
        ask(1)
        time.sleep(0.01)
        return in_place(ledger)

    until(asked_and_found)
    assert "removed while they were in use; they are put back" in caplog.text
    assert ledger.append(row("long"))
    ask(500)  # over several segments
    until(lambda: ledger._journal._astray is None)
    assert ledger.flush()
    assert ledger.stop()
    found = table(place)
    assert sorted(each["id"] for each in found) == sorted([*names, "long"])
    assert spending(place) == summed(found)
    assert (root / "salt").read_bytes() == salt
    assert (root / "worker-0" / "id").read_bytes() == identity
    running(place).stop()
    assert len(table(place)) == len(found)


def test_what_was_written_before_it_is_put_back_where_nothing_more_comes(place: Workspace) -> None:
    ledger = unfolded(place)
    for number in range(20):
        assert ledger.append(row(f"r{number}"))
    assert open_one(ledger, "open")
    remove(place)
    [current] = [ledger._journal._current]
    assert current is not None
    until(current.path.exists)
    # It is killed now.
    ledger._journal._closing = True
    ledger._journal._wake.set()
    ledger._journal._keeper.join()
    ledger._held.close()
    running(place).stop()
    assert [(each["id"], each["outcome"]) for each in table(place)] == [
        *((f"r{number}", "answered") for number in range(20)),
        ("open", "lost"),
    ]


def test_where_it_cannot_be_put_back_it_is_as_on_a_full_disk(
    place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = running(place)
    for number in range(3):
        assert open_one(ledger, f"o{number}")
    remove(place)
    (place.dir / "ledger").write_bytes(b"in the way")
    until(lambda: not open_one(ledger, "refused"))
    assert ledger.full
    assert "cannot be put back" in caplog.text
    # What was promised has room; the others wait in memory.
    refused = [name for name in ledger._journal._open if name not in ("o0", "o1", "o2")]
    for name in ("o0", "o1", "o2", *refused):
        assert ledger.append(row(name))
    assert not ledger.append(row("free"))
    (place.dir / "ledger").unlink()
    until(lambda: not ledger.full)
    assert open_one(ledger, "after") and ledger.append(row("after"))
    until(lambda: ledger._journal._astray is None)
    assert ledger.flush()
    assert ledger.stop()
    assert sorted(each["id"] for each in table(place)) == sorted(["o0", "o1", "o2", "free", "after", *refused])
    assert all(each["outcome"] == "answered" for each in table(place))
