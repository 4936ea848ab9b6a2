"""Reading pieces again and again: local ones are kept open, so that a sweep does not take them from a reader."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable

from pressroom.kernel.errors import NotFoundError, StoreError
from pressroom.store.places.base import Place

# A model of 300 GB lies in more packs than a process may have files open.
_MOST_OPEN = 128


class Pieces:
    """Reads from a place. Safe to use from several threads; `close` it, or let it go."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._open: OrderedDict[str, _Local] = OrderedDict()
        self._lock = threading.Lock()

    def hold(self, names: Iterable[str]) -> None:
        """Open local pieces now. Missing ones are left for the reading to find."""
        for name in names:
            if len(self._open) >= _MOST_OPEN:
                return
            try:
                self._local(name)
            except NotFoundError:
                continue

    def read(self, name: str, offset: int, length: int) -> bytes | bytearray:
        """Exactly these bytes. Raises NotFoundError and StoreError."""
        local = self._local(name)
        if local is None:
            return self._place.read(name, offset, length)
        out = bytearray(length)
        local.read_into(offset, memoryview(out))
        return out

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """As `read`, into a buffer."""
        local = self._local(name)
        if local is None:
            self._place.read_into(name, offset, out)
        else:
            local.read_into(offset, out)

    def is_cut(self, name: str, end: int) -> bool:
        """Whether the piece ends before byte `end`: it failed for good, and not the way to it for now."""
        size = self._place.size(name)
        return size is not None and size < end

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def _local(self, name: str) -> _Local | None:
        with self._lock:
            found = self._open.get(name)
            if found is not None:
                self._open.move_to_end(name)
                return found
        path = self._place.local(name)
        if path is None:
            return None
        try:
            local = _Local(name, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError as error:
            raise NotFoundError(f"the piece {name} is gone", hint="Run `press verify`.", asked=name) from error
        except OSError as error:
            raise StoreError(
                f"the piece {path} cannot be read: {error.strerror}", hint="Check its permissions.", path=str(path)
            ) from error
        with self._lock:
            self._open[name] = local
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return local


class _Local:
    """An open file; it is closed when the last who reads from it lets it go."""

    def __init__(self, name: str, fd: int) -> None:
        self._name = name
        self._fd = fd

    def read_into(self, offset: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self._fd, [out[done:]], offset + done)
            except OSError as error:
                raise StoreError(
                    f"the piece {self._name} cannot be read: {error.strerror}",
                    hint="The disk is failing: run `press verify`.",
                    piece=self._name,
                ) from error
            if not count:
                raise StoreError(
                    f"the piece {self._name} ends at byte {offset + done}, and {len(out)} from {offset} are asked for",
                    hint="It was cut: run `press verify`, which names what is affected.",
                    piece=self._name,
                )
            done += count

    def __del__(self) -> None:
        os.close(self._fd)
