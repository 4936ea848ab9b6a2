"""Bytes on their way to a bucket: the first part in memory, more than that in a file that is gone with the process."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeAlias

from pressroom.kernel.errors import StoreError, StoreFullError
from pressroom.store._room import free_bytes

_FULL = (errno.ENOSPC, errno.EDQUOT)

#: What was written: in memory, or in an open file.
Data: TypeAlias = bytearray | IO[bytes]


class Spool:
    """A writer; `send(name, data, size)` is what commits. Use it with `with`."""

    def __init__(self, directory: Path, send: Callable[[str, Data, int], None], *, in_memory: int) -> None:
        self._directory = directory
        self._send = send
        self._in_memory = in_memory
        self._start = bytearray()
        self._file: IO[bytes] | None = None
        self._size = 0

    def make_room(self, size: int) -> None:
        """Raises StoreFullError where so many bytes would not fit."""
        if size <= self._in_memory:
            return
        try:
            free = free_bytes(self._directory)
        except OSError as error:
            raise self._failed(error) from error
        if free < size:
            raise StoreFullError(
                f"{self._directory} has {free / 1e9:.3g} GB free, and {size / 1e9:.3g} GB are needed on the way to the "
                "bucket",
                hint="Make room where the workspace is.",
                needed=size,
                free=free,
                path=str(self._directory),
            )

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._size += len(view)
        if self._file is None and self._size <= self._in_memory:
            self._start += view
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115  closed in __exit__
                self._file.write(self._start)
                self._start = bytearray()
            self._file.write(view)
        except OSError as error:
            raise self._failed(error) from error

    def commit(self, name: str) -> None:
        if self._file is None:
            self._send(name, self._start, self._size)
            return
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        self._send(name, self._file, self._size)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            # Bytes that did not fit and are not wanted any more: what matters was said by `write`.
            with suppress(OSError):
                self._file.close()

    def _failed(self, error: OSError) -> StoreError:
        kind = StoreFullError if error.errno in _FULL else StoreError
        return kind(
            f"{self._directory} cannot take bytes on their way to the bucket: {error.strerror or error}",
            hint="Make room where the workspace is, or check its permissions.",
            path=str(self._directory),
        )
