"""A file of tensors written whole under its name, or not at all: what is on the disk is read again before it counts."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pressroom.kernel import StoreError, StoreFullError
from pressroom.kernel.disk import sync, sync_directory

_STEP = 4 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Part(Protocol):
    """A tensor: its `data` are `nbytes` bytes, made when its turn comes."""

    @property
    def name(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def data(self) -> Callable[[], NDArray[Any]]: ...


def write_whole(
    path: Path,
    header: bytes,
    parts: Sequence[Part],
    *,
    alignment: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a header and the parts behind it, each filled up to a multiple of `alignment` bytes; returns the bytes of
    the file. One part is in memory at a time. `progress` gets the bytes that are written and those of the whole.

    Raises:
        StoreFullError: there is no room, said before the first byte where it is known. StoreError: it cannot be
            written, or is not on the disk as it was written. Nothing is left under the name in any case.
    """
    size = len(header) + sum(one.nbytes + -one.nbytes % alignment for one in parts)
    free = os.statvfs(path.parent)
    if free.f_bavail * free.f_frsize < size:
        raise _full(path, size)
    part = path.with_name(f".{path.name}.part")
    try:
        hashed = hashlib.blake2b(header)
        with part.open("wb") as file:
            file.write(header)
            for one in parts:
                plain: Any = np.ascontiguousarray(one.data())
                data = memoryview(plain).cast("B")
                assert len(data) == one.nbytes, f"{one.name}: {len(data)} bytes, and {one.nbytes} were said"
                hashed.update(data)
                for start in range(0, len(data), _STEP):
                    file.write(data[start : start + _STEP])
                end = bytes(-one.nbytes % alignment)
                hashed.update(end)
                file.write(end)
                if progress is not None:
                    progress(file.tell(), size)
            file.flush()
            sync(file.fileno())
        _read_again(part, hashed.digest())
        part.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise _full(path, size) from error
        raise StoreError(f"{path} cannot be written: {error}", hint="Check that its folder may be written.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return size


def _full(path: Path, size: int) -> StoreFullError:
    return StoreFullError(
        f"{path.parent} has no room for {path.name} ({size / 1e6:,.1f} MB)",
        hint="Make room there. Nothing was left behind.",
        needed=size,
        path=str(path),
    )


def _read_again(path: Path, digest: bytes) -> None:
    """Raises StoreError where a file does not hold what was written."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "blake2b").digest() != digest:
            raise StoreError(
                f"{path.name} does not hold what was written", hint="Check the disk and the memory, then try again."
            )
