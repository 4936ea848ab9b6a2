"""The journal's writer: records go into a mapped file, where they stay when the process is killed.

All of it runs on the event loop, but for one thread that makes the next segment before it is needed and hands what was
written to the disk about once a second. `opened` promises room for the row that will end the request: such a row always
fits, also on a full disk.

That thread also looks whether the files are still there. Where somebody removed them, what is written goes to files
that nobody finds: they are put back from memory, and the writer goes on in a new one. The fold waits for that; where it
cannot be done, all is as on a full disk.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pressroom.gateway.ledger._frames import HEADER, HEADER_BYTES, KIND_SHIFT, MARK, MOST, OPENED, ROW, frame
from pressroom.gateway.ledger._segments import Allocate, Segment, allocate, numbers
from pressroom.kernel.disk import sync_directory

_log = logging.getLogger(__name__)

_OPENED_MARK = MARK + bytes((OPENED,))
_ROW_MARK = MARK + bytes((ROW,))
_OPENED_SEED, _ROW_SEED = OPENED << KIND_SHIFT, ROW << KIND_SHIFT
# Rows that wait in memory while there is no room: 8 MB at most.
_WAITING = 4_096
_SYNC_S = 1.0
# Seconds between two tries to make room on a full disk.
_AGAIN_S = 0.25
_SAID_S = 60.0


class Journal:
    """One writer's segments. `put_opened` and `put_row` are called by one thread; the rest by any."""

    def __init__(
        self,
        folder: Path,
        size: int,
        columns: bytes,
        *,
        first: int = 1,
        allocate: Allocate = allocate,
        restore: Callable[[], None] = lambda: None,
    ) -> None:
        """`size` is that of a segment, `columns` what each begins with, `first` the number of the first one. `restore`
        makes the folder again where that was removed, or raises OSError."""
        assert size >= 4 * MOST
        self._folder = folder
        self._size = size
        self._columns = columns
        self._allocate = allocate
        self._restore = restore
        self._next = max([first, *(number + 1 for number in numbers(folder))])
        self._first = self._next
        # What the thread made and the writer has not seen yet, what the writer counts on, what is full.
        self._made: deque[Segment] = deque()
        self._spare: deque[Segment] = deque()
        self._full_segments: deque[Segment] = deque()
        self._current: Segment | None = None
        self._map: mmap.mmap | None = None
        self._at = 0
        self._end = 0
        # What may still be promised: the room of all segments, less one largest record in each, because the end of a
        # segment is left empty where a record does not fit, and less one for each request that is open.
        self._room = 0
        self._open: dict[str, None] = {}
        self._waiting: deque[bytes] = deque()
        # While set, nothing is written but by whoever has the lock; only the writer sets it.
        self._blocked = True
        # The first segment that has no name, and how much of it was put back: what is behind cannot be read.
        self._astray: tuple[int, int] | None = None
        # Whether the writer is to leave its segment for another, and whether there can be no other now.
        self._leaving = False
        self._stuck = False
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._not_before = 0.0
        self._said = ("", 0.0)
        self._synced = (0, 0)
        self._keeper = threading.Thread(target=self._keep, name="ledger-journal", daemon=True)
        #: Rows written down, and rows lost because the memory for those that wait was full, too.
        self.rows = 0
        self.lost = 0

    def start(self) -> None:
        """Take the first room. On a full disk nothing can be opened until there is some."""
        with self._lock:
            if self._make():
                self._unblock()
        self._keeper.start()

    @property
    def full(self) -> bool:
        """Whether there is no room for a request with a hold now."""
        return self._blocked or (self._room < 2 * MOST and not self._made)

    @property
    def open_requests(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Rows in memory that no disk has yet."""
        return len(self._waiting)

    def position(self) -> tuple[int, int]:
        """The segment that is written now, and up to where: all before is whole, and can be read."""
        with self._lock:
            if self._astray is not None:
                return self._astray
            current = self._current
            return (current.number, self._at) if current is not None else (self._first, 0)

    def put_opened(self, id: str, payload: bytes) -> bool:
        """Write an `opened` record, and promise room for the row of the same id."""
        length = len(payload)
        needed = HEADER_BYTES + length
        if self._blocked or self._room < needed + MOST or self._end - self._at < needed or id in self._open:
            return self._put_opened_slowly(id, payload)
        at = self._at
        end = at + needed
        self._map[at:end] = HEADER.pack(_OPENED_MARK, length, zlib.crc32(payload, length | _OPENED_SEED)) + payload  # type: ignore[index]
        self._at = end
        self._room -= needed + MOST
        self._open[id] = None
        return True

    def put_row(self, id: str, payload: bytes) -> bool:
        """Write a row; True when it is where `kill -9` leaves it."""
        length = len(payload)
        needed = HEADER_BYTES + length
        promised = id in self._open
        if self._blocked or self._end - self._at < needed or not (promised or self._room >= needed):
            return self._put_row_slowly(id, payload)
        at = self._at
        end = at + needed
        self._map[at:end] = HEADER.pack(_ROW_MARK, length, zlib.crc32(payload, length | _ROW_SEED)) + payload  # type: ignore[index]
        self._at = end
        self._room -= needed
        if promised:
            del self._open[id]
            self._room += MOST
        self.rows += 1
        return True

    def close(self) -> None:
        """Write what waits where there is room, hand all to the disk, and unmap. Nothing is put after that."""
        self._closing = True
        self._wake.set()
        if self._keeper.is_alive():
            self._keeper.join()
        self._look()
        with self._lock:
            self._blocked = True
            self._drain()
        self._look()
        if self._stuck:
            _log.error("rows that were in files of the ledger in %s which were removed are lost", self._folder)
        self._sync()
        with self._lock:
            self._take_made()
            while self._spare:
                segment = self._spare.pop()
                segment.close()
                segment.path.unlink(missing_ok=True)
            if self._current is not None:
                self._map = None
                self._current.close()

    def _put_opened_slowly(self, id: str, payload: bytes) -> bool:
        needed = HEADER_BYTES + len(payload)
        with self._lock:
            self._leave()
            if self._blocked or not self._has_room(needed + MOST):
                return False
            if self._end - self._at < needed:
                self._switch()
            self._write(OPENED, payload)
            if id not in self._open:
                self._room -= MOST
                self._open[id] = None
            return True

    def _put_row_slowly(self, id: str, payload: bytes) -> bool:
        needed = HEADER_BYTES + len(payload)
        with self._lock:
            self._leave()
            promised = id in self._open
            if promised and self._map is not None:
                # Its room is there, also while others wait.
                if self._end - self._at < needed:
                    self._switch()
                self._write(ROW, payload)
                del self._open[id]
                self._room += MOST
                self.rows += 1
                return True
            if not self._blocked and self._has_room(needed):
                if self._end - self._at < needed:
                    self._switch()
                self._write(ROW, payload)
                self.rows += 1
                return True
            self._blocked = True
            if len(self._waiting) >= _WAITING:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append(payload)
            return False

    def _write(self, kind: int, payload: bytes) -> None:
        end = self._at + HEADER_BYTES + len(payload)
        assert self._map is not None
        self._map[self._at : end] = frame(kind, payload)
        self._room -= end - self._at
        self._at = end

    def _switch(self) -> None:
        """Go on in the next segment. There is one: a promise is kept in room that whole records fit in."""
        before = self._current
        if before is not None:
            # The end that stays empty was less than the largest record, which was not counted as room to begin with.
            self._room -= before.size - self._at - MOST
            self._full_segments.append(before)
            if self._astray is None and not before.is_in_place():
                self._astray = (before.number, 0)
        segment = self._spare.popleft()
        self._current = segment
        self._map = segment.map
        self._at = len(self._columns)
        self._end = segment.size
        self._wake.set()

    def _has_room(self, needed: int) -> bool:
        """Whether so much may be promised, perhaps after another segment was made. With the lock held."""
        self._take_made()
        while self._room < needed:
            if not self._make():
                return False
            self._take_made()
        return True

    def _take_made(self) -> None:
        # Only the writer, or whoever has the lock while nothing else is written, counts room: the sums on the quick way
        # are made without a lock.
        while self._made:
            segment = self._made.popleft()
            self._spare.append(segment)
            self._room += segment.size - len(self._columns) - MOST
            if self._current is None:
                self._switch()

    def _make(self) -> bool:
        """Make a segment. False where there is no room for one. With the lock held."""
        now = time.monotonic()
        if now < self._not_before:
            return False
        try:
            segment = Segment(self._folder, self._next, self._size, self._columns, self._allocate)
        except OSError as error:
            self._not_before = now + _AGAIN_S
            self._say(f"rows cannot be written down: {error.strerror or error}")
            return False
        self._next += 1
        self._made.append(segment)
        return True

    def _drain(self) -> None:
        """Write the rows that waited, as far as there is room. With the lock held."""
        self._leave()
        while self._waiting and not self._leaving:
            needed = HEADER_BYTES + len(self._waiting[0])
            if not self._has_room(needed):
                return
            if self._end - self._at < needed:
                self._switch()
            self._write(ROW, self._waiting.popleft())
            self.rows += 1

    def _unblock(self) -> None:
        """Write what waited, and let the quick way be used again. With the lock held, and nothing else written."""
        self._take_made()
        self._drain()
        if not self._waiting and self._current is not None and not self._leaving:
            self._blocked = False

    def _leave(self) -> None:
        """If the segment that is written has no name any more, go on in the next one, where that has room for all that
        was promised; else it is as on a full disk. By the writer, or where nothing else is written; with the lock
        held."""
        current = self._current
        if not self._leaving or current is None:
            return
        self._end = current.size
        self._take_made()
        while self._stuck or not self._spare or self._room < current.size - self._at - MOST:
            if self._stuck or not self._make():
                self._blocked = True
                return
            self._take_made()
        self._leaving = False
        self._switch()

    def _look(self) -> None:
        """Put back the segments that somebody removed or moved."""
        with self._lock:
            current = self._current
            written = [*self._full_segments, *((current,) if current is not None else ())]
            removed = [each for each in written if not each.is_in_place()]
            ahead = [
                (queue, index)
                for queue in (self._spare, self._made)
                for index, each in enumerate(queue)
                if not each.is_in_place()
            ]
            if not removed and not ahead:
                self._astray = None
                return
            if removed == [current] and not ahead and self._astray == (removed[0].number, self._at):
                return  # its writer has written nothing since, and has not left it yet
            if self._astray is None and removed:
                self._astray = (removed[0].number, 0)
            try:
                self._restore()
                for queue, index in ahead:
                    before = queue[index]
                    before.path.unlink(missing_ok=True)
                    queue[index] = Segment(self._folder, before.number, self._size, self._columns, self._allocate)
                    before.close()
                for each in removed:
                    each.put_back(self._at if each is current else each.size)
                    if each is not current:
                        self._full_segments.remove(each)
                        each.close()
            except OSError as error:
                self._stuck = True
                self._say(f"its files were removed while they were in use, and cannot be put back: {error.strerror}")
            else:
                self._stuck = False
                self._say("its files were removed while they were in use; they are put back")
                self._astray = (current.number, self._at) if current is not None and current in removed else None
            if current is not None and current in removed:
                self._leaving = True
                self._end = 0  # the next record does not fit, and its writer leaves

    def _keep(self) -> None:
        synced = 0.0
        while not self._closing:
            self._wake.wait(_AGAIN_S if self._blocked else _SYNC_S)
            self._wake.clear()
            try:
                self._look()
                with self._lock:
                    if not (self._spare or self._made):
                        self._make()
                    if self._blocked:
                        self._unblock()
                now = time.monotonic()
                if now >= synced + _SYNC_S:
                    synced = now
                    self._sync()
            except Exception:  # the edge of a thread: the next turn may succeed  # noqa: BLE001
                _log.exception("the ledger's journal cannot be looked after")
                time.sleep(_SYNC_S)

    def _sync(self) -> None:
        """Hand to the disk what was written since the last time, and let go of segments that are full."""
        position = self.position()
        while self._full_segments:
            segment = self._full_segments[0]
            if not segment.is_in_place():
                return  # it is put back first
            self._flush(segment)
            self._full_segments.popleft()
            segment.close()
        current = self._current
        if current is not None and position != self._synced:
            self._flush(current)
            if position[0] != self._synced[0]:
                self._flush_names()
            self._synced = position

    def _flush(self, segment: Segment) -> None:
        try:
            # Where there is no fdatasync, fsync does the same and more.
            getattr(os, "fdatasync", os.fsync)(segment.fd)
        except OSError as error:
            self._say(f"what was written may not outlast a power cut: {error.strerror}")

    def _flush_names(self) -> None:
        try:
            sync_directory(self._folder)
        except OSError as error:
            self._say(f"the name of a segment may not outlast a power cut: {error.strerror}")

    def _say(self, trouble: str) -> None:
        """Log what is wrong: the same once a minute."""
        now = time.monotonic()
        if trouble != self._said[0] or now > self._said[1] + _SAID_S:
            _log.error("the ledger in %s: %s", self._folder, trouble)
            self._said = (trouble, now)
