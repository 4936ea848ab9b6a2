"""A file read front to back through a small window, so that no claim in a header can make the memory grow.

Not a memory map: a file that is cut short while it is mapped ends the process with SIGBUS.
"""

from __future__ import annotations

import os
import struct
from types import TracebackType
from typing import Any

from pressroom.kernel.errors import MalformedWeightsError
from pressroom.store._opening import open_regular, unreadable
from pressroom.store.formats._naming import Named

_WINDOW = 1 << 20
_U64 = struct.Struct("<Q")


class Window:
    """Reads little-endian values; every read is checked against the end of the file, every end of file is an error.

    Use it with `with`. Raises NotFoundError, StoreError (the file cannot be read) and MalformedWeightsError.
    """

    def __init__(self, named: Named) -> None:
        self.named = named
        self._file = open_regular(named.path)
        self.size = os.fstat(self._file.fileno()).st_size
        self._buffer = b""
        self._start = 0
        self._position = 0

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def position(self) -> int:
        """Bytes from the start of the file."""
        return self._start + self._position

    @property
    def left(self) -> int:
        """Bytes to the end of the file."""
        return self.size - self.position

    def unpack(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        self._need(layout.size, what)
        values = layout.unpack_from(self._buffer, self._position)
        self._position += layout.size
        return values

    def u64(self, what: str) -> int:
        value: int = self.unpack(_U64, what)[0]
        return value

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes; the caller has bounded `count`."""
        self._need(count, what)
        taken = self._buffer[self._position : self._position + count]
        self._position += count
        return taken

    def skip(self, count: int, what: str) -> None:
        if count > self.left:
            raise self._short(count, what)
        self._position += count  # may lie beyond the buffer; the next read fills it again

    def skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings, each a 64-bit length and as many bytes. This is where real headers are long."""
        done = 0
        unpack, width = _U64.unpack_from, _U64.size
        while done < count:
            self._need(width, what)
            buffer, position, last = self._buffer, self._position, len(self._buffer) - width
            while done < count and position <= last:
                position += width + unpack(buffer, position)[0]
                done += 1
            if self._start + position > self.size:
                raise self._short(self._start + position - self.position, what)
            self._position = position

    def _need(self, count: int, what: str) -> None:
        if self._position + count <= len(self._buffer):
            return
        if count > self.left:
            raise self._short(count, what)
        self._start += self._position
        self._position = 0
        try:
            self._buffer = os.pread(self._file.fileno(), max(count, _WINDOW), self._start)
        except OSError as error:
            raise unreadable(self.named.path, error) from error
        if len(self._buffer) < count:  # it became shorter since it was opened
            raise self._short(count, what)

    def _short(self, count: int, what: str) -> MalformedWeightsError:
        return self.named.malformed(
            f"{what} at byte {self.position} takes {count} bytes, and the file ends at byte {self.size}",
            hint="The file was cut short or altered: fetch it again and compare its digest with the publisher's.",
        )
