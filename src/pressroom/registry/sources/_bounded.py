"""A limit on what the table of contents of an archive may take.

`zipfile` and `tarfile` read a table, a long name or an extended header into memory in one piece, as long as the file
says it is. A small compressed archive could say 100 GB.
"""

from __future__ import annotations

from typing import IO


class Bounded:
    """An open file that gives out at most `left` bytes, at most `at_once` of them in one read, until `free()`.

    A read beyond that raises ValueError. Closing the file stays with whoever opened it.
    """

    def __init__(self, file: IO[bytes], left: int, *, at_once: int) -> None:
        self._file = file
        self._left: int | None = left
        self._at_once = at_once

    def free(self) -> None:
        """From here on as much as is asked for: the table has been read."""
        self._left = None

    def read(self, size: int = -1) -> bytes:
        if self._left is None:
            return self._file.read(size)
        most = min(self._left, self._at_once)
        found = self._file.read(size if 0 <= size <= most else most + 1)
        if max(size, len(found)) > most:
            raise ValueError("its table of contents is longer than that of any model")
        self._left -= len(found)
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return self._file.seekable()
