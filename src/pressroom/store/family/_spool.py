"""Weights that come as a stream: written to a local file first, because their tensors are read more than once."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pressroom.kernel.errors import StoreError, StoreFullError
from pressroom.store import _temporary
from pressroom.store._receiving import Block, receive
from pressroom.store._room import FULL, free_bytes
from pressroom.store.base import Blob


@contextmanager
def spooled(
    chunks: Iterable[bytes], directory: Path, *, expected: str | None, size: int | None
) -> Iterator[tuple[int, Path, Blob]]:
    """The bytes in a file that is gone after the block: its descriptor, its path, and what the bytes are.

    Raises:
        DigestMismatchError: they are not what was declared.
        StoreFullError: no room; with `size` given this is said before the first byte is written.
        StoreError: the directory cannot be written.
    """
    _temporary.sweep(directory)
    with _failures(directory, size):
        directory.mkdir(parents=True, exist_ok=True)
        if size is not None and free_bytes(directory) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        making = _temporary.making(directory)
        fd, path = making.__enter__()
    try:

        def write(block: Block) -> None:
            view = memoryview(block)
            with _failures(directory, size):
                while view:
                    view = view[os.write(fd, view) :]

        yield fd, path, receive(chunks, expected=expected, size=size, write=write)
    finally:
        making.__exit__(None, None, None)


@contextmanager
def _failures(directory: Path, size: int | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise StoreError(
                f"{directory} cannot be written: {error.strerror or error}",
                hint="Check that it may be written by this user.",
                path=str(directory),
            ) from error
        free = free_bytes(directory)
        needed = f", and {size} are needed" if size is not None else ""
        raise StoreFullError(
            f"{directory} is full: {free} bytes are free{needed}",
            hint="Make room, remove a model with `press rm`, or point the setting `store` to a larger disk.",
            needed=size,
            free=free,
            path=str(directory),
        ) from error
