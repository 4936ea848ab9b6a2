"""A file that is fetched in parts: its bytes where they belong, and beside it a journal of what has come.

The journal (`NAME.parts`) is a line of JSON that says of which file the parts are, and behind it eight bytes for each
part: how many bytes of it are there, from its beginning. Bytes are written before they are counted, so the journal
never promises what is not there:

- A killed process leaves what it wrote to the kernel, and the next one goes on inside each part.
- A machine that went down may have kept the count and lost the bytes. So a part that is complete is synced before it is
  counted as complete, and one that is not complete counts only as long as the machine has not been started anew.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from pressroom.kernel import StoreError
from pressroom.registry.sources._space import full, room_for

_COUNT = struct.Struct("<Q")
_MOST_PARTS = 1 << 16
_MEGABYTE = 1 << 20
_LARGEST_PART = 64 * _MEGABYTE
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Plan:
    """Of which file the parts are: its `size`, the `mark` by which its server promises that it is still the same, and
    the length of each `part` but the last; in bytes."""

    size: int
    mark: str
    part: int

    @classmethod
    def of(cls, size: int, mark: str, *, connections: int) -> Plan:
        """Parts small enough that every connection gets several, so that all end at about the same time."""
        part = min(_LARGEST_PART, max(_MEGABYTE, -(-size // (4 * connections))))
        part = max(part, -(-size // _MOST_PARTS))
        return cls(size, mark, -(-part // _MEGABYTE) * _MEGABYTE)

    @property
    def parts(self) -> int:
        return -(-self.size // self.part)

    def begin(self, number: int) -> int:
        return number * self.part

    def length(self, number: int) -> int:
        return min(self.part, self.size - self.begin(number))


class Partial:
    """The file under way. Thread-safe; after `close` nothing is written any more.

    Raises StoreFullError and StoreError from whatever writes.
    """

    def __init__(self, local: Path, plan: Plan, counts: list[int], *, offset: int) -> None:
        self.plan = plan
        self._local = local
        self._counts = counts
        self._offset = offset
        self._lock = threading.Lock()
        self._data = os.open(local, os.O_RDWR)
        try:
            self._journal = os.open(journal_of(local), os.O_RDWR)
        except OSError:
            os.close(self._data)
            raise
        self._closed = threading.Event()

    @classmethod
    def create(cls, local: Path, plan: Plan, *, what: str) -> Partial:
        """Begin anew; what was there goes first, so that a cut between the two mixes nothing."""
        forget(local)
        room_for(local.parent, plan.size, what=what)
        counts = [0] * plan.parts
        try:
            with local.open("xb") as data:
                data.truncate(plan.size)
            return cls(local, plan, counts, offset=_write_journal(local, plan, counts))
        except OSError as error:
            raise failed(local, error, plan.size) from error

    @classmethod
    def resume(cls, local: Path) -> Partial | None:
        """What an earlier run left; None where that is nothing to go on with."""
        try:
            head, newline, table = journal_of(local).read_bytes().partition(b"\n")
            said = json.loads(head)
            plan = Plan(_number(said["size"]), said["mark"], _number(said["part"]))
            counts = [count for (count,) in _COUNT.iter_unpack(table)]
            if (
                not newline
                or not isinstance(plan.mark, str)
                or not plan.mark
                or len(counts) != plan.parts
                or local.stat().st_size != plan.size
                or any(count > plan.length(number) for number, count in enumerate(counts))
            ):
                return None
            if said["boot"] and said["boot"] == _boot():
                return cls(local, plan, counts, offset=len(head) + 1)
            counts = [count if count == plan.length(number) else 0 for number, count in enumerate(counts)]
            return cls(local, plan, counts, offset=_write_journal(local, plan, counts))
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None

    @property
    def done(self) -> int:
        """Bytes that are here."""
        return sum(self._counts)

    def count(self, number: int) -> int:
        """Bytes of a part that are here, from its beginning."""
        return self._counts[number]

    def missing(self) -> list[int]:
        """The parts that are not complete."""
        return [number for number, count in enumerate(self._counts) if count < self.plan.length(number)]

    def add(self, number: int, chunk: bytes) -> int:
        """Put the next bytes of a part in their place; returns how many, which are fewer than given where the part ends
        before, and 0 after `close`. One thread at a time may add to a part."""
        have = self._counts[number]
        view = memoryview(chunk)[: self.plan.length(number) - have]
        begin, complete = self.plan.begin(number) + have, have + len(view) == self.plan.length(number)
        try:
            with self._lock:
                if self._closed.is_set():
                    return 0
                _write(self._data, view, begin)
                # A descriptor of its own: others write on while this part is synced, and `close` does not wait for it.
                own = os.dup(self._data) if complete else None
            if own is not None:
                try:
                    _sync(own)
                finally:
                    os.close(own)
            with self._lock:
                if self._closed.is_set():
                    return 0
                _write(self._journal, memoryview(_COUNT.pack(have + len(view))), self._offset + _COUNT.size * number)
                self._counts[number] = have + len(view)
        except OSError as error:
            raise failed(self._local, error, self.plan.size - self.done) from error
        return len(view)

    def close(self) -> None:
        with self._lock:
            if not self._closed.is_set():
                self._closed.set()
                os.close(self._data)
                os.close(self._journal)


def journal_of(local: Path) -> Path:
    return local.with_name(local.name + ".parts")


def forget(local: Path) -> None:
    """Remove a file and its journal; the journal goes first, for without it the file is nothing."""
    journal_of(local).unlink(missing_ok=True)
    local.unlink(missing_ok=True)


def failed(local: Path, error: OSError, needed: int) -> StoreError:
    """What to raise where a file cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full(local.name, local.parent, needed=needed)
    return StoreError(f"{local} cannot be written: {error.strerror}", hint="Check its permissions and the disk.")


def _write_journal(local: Path, plan: Plan, counts: list[int]) -> int:
    """Returns where the counts begin."""
    said = {"size": plan.size, "mark": plan.mark, "part": plan.part, "boot": _boot()}
    head = json.dumps(said).encode() + b"\n"
    fresh = local.with_name(local.name + ".new")
    with fresh.open("wb") as journal:
        journal.write(head + b"".join(map(_COUNT.pack, counts)))
        journal.flush()
        os.fsync(journal.fileno())
    fresh.rename(journal_of(local))
    return len(head)


def _write(fd: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _sync(fd: int) -> None:
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)


def _number(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(value)
    return value


def _boot() -> str:
    """What tells one start of this machine from the next; "" where the system does not say."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
