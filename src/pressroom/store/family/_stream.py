"""Files as streams: nothing is read before it is asked for, and never more than a few blocks are in memory.

Who asks for much at once gets it decoded on several threads, straight into the memory it is asked into.
"""

from __future__ import annotations

import bisect
import io
from collections import OrderedDict
from typing import Any, Protocol

from pressroom.store.family._restoring import Piece, Reader, run
from pressroom.store.places.base import Place

_HELD = 4
_STEP = 1 << 20
_FETCHES = 8


class _Parts(Protocol):
    """A file as parts that come one by one; `starts` is where each begins."""

    starts: list[int]
    size: int

    def fill(self, first: int, last: int, out: memoryview) -> None:
        """Parts `first` to `last` (not with it), one behind the other, on several threads."""


class PartsStream(io.RawIOBase):
    """A seekable stream over parts of a file. As any file, not for several threads at once."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self._position = 0
        self._held: OrderedDict[int, bytearray] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._parts.size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        out = memoryview(buffer).cast("B")
        starts, done = self._parts.starts, 0
        while done < len(out) and self._position < self._parts.size:
            number = bisect.bisect_right(starts, self._position) - 1
            after = bisect.bisect_right(starts, self._position + len(out) - done) - 1
            if self._position + len(out) - done >= self._parts.size:
                after = len(starts)
            if starts[number] == self._position and after > number:
                end = starts[after] if after < len(starts) else self._parts.size
                count = end - self._position
                self._parts.fill(number, after, out[done : done + count])
            else:
                part = self._part(number)
                at = self._position - starts[number]
                count = min(len(out) - done, len(part) - at)
                out[done : done + count] = memoryview(part)[at : at + count]
            assert count > 0
            done += count
            self._position += count
        return done

    def readall(self) -> bytes:
        out = bytearray(max(0, self._parts.size - self._position))
        self.readinto(out)
        return bytes(out)

    def close(self) -> None:
        self._held.clear()
        super().close()

    def _part(self, number: int) -> bytearray:
        found = self._held.get(number)
        if found is None:
            starts = self._parts.starts
            end = starts[number + 1] if number + 1 < len(starts) else self._parts.size
            found = self._held[number] = bytearray(end - starts[number])
            self._parts.fill(number, number + 1, memoryview(found))
            if len(self._held) > _HELD:
                self._held.popitem(last=False)
        else:
            self._held.move_to_end(number)
        return found


class FileParts:
    """A file that is stored in parts: its gaps and the blocks of its tensors."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.size = reader.manifest.size
        both: list[tuple[int, bytes | Piece]] = [*reader.gaps(), *((job.offset, job) for job in reader.jobs())]
        both.sort(key=lambda part: part[0])
        self.starts = [offset for offset, _ in both]
        self._what = [what for _, what in both]

    def fill(self, first: int, last: int, out: memoryview) -> None:
        base = self.starts[first]
        jobs: list[Piece] = []
        for at, what in zip(self.starts[first:last], self._what[first:last], strict=True):
            if isinstance(what, Piece):
                jobs.append(what)
            else:
                out[at - base : at - base + len(what)] = what

        def work(job: Piece) -> None:
            start = job.offset - base
            self._reader.decoder.block(job.id, job.number, out[start : start + job.length])

        run(self._reader.together(jobs), work, min(self._reader.threads, len(jobs)))


class PieceParts:
    """A piece of a place without files, in ranges."""

    def __init__(self, place: Place, name: str, size: int) -> None:
        self._place = place
        self._name = name
        self.size = size
        self.starts = list(range(0, size, _STEP))

    def fill(self, first: int, last: int, out: memoryview) -> None:
        base = self.starts[first]

        def work(number: int) -> None:
            start = self.starts[number]
            view = out[start - base : start - base + min(_STEP, self.size - start)]
            self._place.read_into(self._name, start, view)

        run(iter(range(first, last)), work, min(_FETCHES, last - first))
