"""The journal's writer: segments, room that was promised, a disk that is full and has room again."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pressroom.gateway.ledger._frames import MOST
from pressroom.gateway.ledger._journal import _WAITING, Journal
from pressroom.gateway.ledger._reading import read_batch
from pressroom.gateway.ledger._segments import allocate, columns_record, numbers
from pressroom.gateway.ledger._tables import COLUMNS

SIZE = 65_536


class Disk:
    """Gives room for so many segments."""

    def __init__(self, segments: int) -> None:
        self.left = segments

    def __call__(self, fd: int, size: int) -> None:
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(fd, size)
        self.left -= 1


def journal(folder: Path, disk: Callable[[int, int], None] = allocate, size: int = SIZE) -> Journal:
    made = Journal(folder, size, columns_record(COLUMNS), allocate=disk)
    made.start()
    return made


def payload(text: str, length: int = 300) -> bytes:
    return b'["' + text.encode().ljust(length - 4, b".") + b'"]'


def rows_in(folder: Path) -> list[str]:
    found: list[str] = []
    at = (0, 0)
    while (batch := read_batch(folder, at, None)).end != at:
        found += [row[0].rstrip(".") for row in batch.rows]
        at = batch.end
    return found


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _rows_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pressroom.gateway.ledger._reading.Opened", lambda id: id)


def test_rows_go_over_many_segments_in_order(tmp_path: Path) -> None:
    written = journal(tmp_path)
    names = [f"r{number}" for number in range(2_000)]
    for name in names:
        assert written.put_row(name, payload(name))
    assert rows_in(tmp_path) == names
    assert len(numbers(tmp_path)) > 9
    written.close()
    assert rows_in(tmp_path) == names
    assert written.rows == 2_000


def test_a_new_writer_takes_new_numbers(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.put_row("a", payload("a"))
    first.close()
    second = journal(tmp_path)
    second.put_row("b", payload("b"))
    second.close()
    assert rows_in(tmp_path) == ["a", "b"]
    assert numbers(tmp_path)[-1] > 1


def test_what_was_opened_has_room_for_its_row_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = journal(tmp_path, Disk(2))
    until(lambda: len(numbers(tmp_path)) == 2)
    opened = 0
    while written.put_opened(f"o{opened}", payload("o", 100)):
        opened += 1
    assert 40 < opened < 2 * SIZE // MOST
    assert written.full
    assert not written.put_opened("another", payload("another", 100))
    assert "No space left" in caplog.text
    for number in reversed(range(opened)):
        assert written.put_row(f"o{number}", payload(f"o{number}", MOST - 12))
    assert rows_in(tmp_path) == [f"o{number}" for number in reversed(range(opened))]
    assert written.open_requests == 0
    written.close()


def test_rows_nobody_opened_do_not_take_what_was_promised(tmp_path: Path) -> None:
    disk = Disk(1)
    written = journal(tmp_path, disk)
    assert all(written.put_opened(f"o{number}", payload("o", 100)) for number in range(10))
    free = 0
    while written.put_row(f"f{free}", payload(f"f{free}", MOST - 12)):
        free += 1
    assert free > 5
    assert written.waiting == 1
    assert not written.put_opened("another", payload("another", 100))  # nothing new while rows wait
    for number in range(10):
        assert written.put_row(f"o{number}", payload(f"o{number}", MOST - 12))
    assert not written.put_row("late", payload("late"))
    disk.left = 5
    until(lambda: not written.full)
    assert written.put_opened("another", payload("another", 100))
    assert written.put_row("after", payload("after"))
    assert rows_in(tmp_path) == [
        *(f"f{number}" for number in range(free)),
        *(f"o{number}" for number in range(10)),
        f"f{free}",
        "late",
        "after",
    ]
    written.close()


def test_rows_that_wait_are_bounded(tmp_path: Path) -> None:
    disk = Disk(0)
    written = journal(tmp_path, disk)
    for number in range(_WAITING + 10):
        assert not written.put_row(f"r{number}", payload(f"r{number}", 50))
    assert (written.waiting, written.lost) == (_WAITING, 10)
    assert written.position() == (1, 0)
    disk.left = 100
    until(lambda: not written.full)
    assert rows_in(tmp_path)[0] == "r10"  # the oldest were given up
    assert len(rows_in(tmp_path)) == _WAITING
    written.close()


def test_rows_that_wait_are_written_at_the_end_if_there_is_room(tmp_path: Path) -> None:
    disk = Disk(0)
    written = journal(tmp_path, disk)
    assert not written.put_row("r", payload("r"))
    disk.left = 1
    time.sleep(0.3)
    written.close()
    assert rows_in(tmp_path) == ["r"]


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    """posix_fallocate itself says no, and no half-made segment stays."""
    import subprocess
    import sys

    program = f"""
import resource
from pathlib import Path
from tests.gateway.ledger.test_journal import journal, payload
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
written = journal(Path({str(tmp_path)!r}))
assert written.full and not written.put_opened("o", payload("o")) and not written.put_row("r", payload("r"))
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
written.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
    assert list(tmp_path.iterdir()) == []


def test_more_requests_at_once_than_a_segment_has_room_for(tmp_path: Path) -> None:
    written = journal(tmp_path)
    for number in range(500):
        assert written.put_opened(f"o{number}", payload("o", 100))
    assert written.put_opened("o0", payload("o", 100))  # more is held for it: its row needs no more room
    for number in range(500):
        assert written.put_row(f"o{number}", payload(f"o{number}"))
    assert written.open_requests == 0
    assert written.put_opened("once more", payload("o", 100))
    assert len(rows_in(tmp_path)) == 500
    written.close()
