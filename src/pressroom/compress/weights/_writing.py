"""Writing a file of weights: whole under its name, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.numbers import NumberFormat
from pressroom.compress.weights._layout import Layout, Scalar, lay_out
from pressroom.compress.weights._planning import differing, refuse
from pressroom.compress.weights._reading import Weights
from pressroom.compress.weights._roles import Tensor
from pressroom.kernel import RecipeError, StoreError, StoreFullError
from pressroom.kernel.disk import sync, sync_directory

Piece = bytes | bytearray | memoryview | NDArray[np.uint8]

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Written at once, and told as progress: large enough that the calls cost nothing beside the copying.
_STEP = 4 << 20
_PREFIX, _SUFFIX = ".weights-", ".part"


@dataclass(frozen=True, slots=True)
class Changed:
    """A tensor's new format and data: its bytes, or a function that gives them in pieces, row after row.

    The function is called once, when all tensors before it in the file have been written, so that what it makes need
    not all be in memory at once.
    """

    format: NumberFormat
    data: Piece | Callable[[], Iterable[Piece]]

    def pieces(self) -> Iterator[memoryview]:
        """The data as bytes."""
        return in_pieces(self.data)


def in_pieces(data: Piece | Callable[[], Iterable[Piece]]) -> Iterator[memoryview]:
    """Data, or what a function gives of them, as bytes."""
    given: Any = data
    for piece in given() if callable(given) else (given,):
        plain: Any = np.ascontiguousarray(piece) if isinstance(piece, np.ndarray) else piece
        if len(plain):
            yield memoryview(plain).cast("B")


def write(
    path: Path,
    source: Weights,
    changed: Mapping[str, Changed],
    *,
    metadata: Mapping[str, Scalar] | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the source's file again with the `changed` tensors as given; returns its size in bytes.

    All else stays as it is, in its order: the metadata byte for byte, but for `metadata`'s keys (text, numbers, truth
    values) and, where a tensor changes, general.file_type and general.quantization_version, which follow from the
    tensors unless `metadata` says otherwise. A file under that name is replaced when the new one is complete and on the
    disk, and not touched before; a process that is killed leaves a hidden file beside it, which the next writer into
    that directory removes. `progress` is told how many more bytes are done.

    Raises:
        RecipeError: a tensor is not there, must stay as it is, does not fit its format, or its data are not as many
            bytes as they must be; a key cannot be set; the target is the source.
        StoreFullError: there is no room, which is said before the first byte is written where it is known by then.
        StoreError: the place cannot be written.
        Exception: what a function of `changed` raises. Nothing is left under the name in any of these cases.
    """
    formats = {name: one.format for name, one in changed.items()}
    refuse(source, formats)
    layout = lay_out(source, differing(source, formats), metadata or {})
    make_ready(path, source, layout.size)
    with HiddenFile(path, layout.size, progress) as file:
        _fill(file, source, changed, layout)
        file.finish()
    return layout.size


def make_ready(path: Path, source: Weights, size: int) -> None:
    """Say before the first byte what would stop a file of that size. Raises RecipeError, StoreError, StoreFullError."""
    with _failures(path, size):
        _check_place(path, source)
        _sweep(path.parent)
        _room_for(path, size)


class HiddenFile:
    """A hidden file beside the target, removed at the end unless `finish` gave it the target's name."""

    def __init__(self, path: Path, size: int, progress: Callable[[int], None] | None) -> None:
        self._path = path
        self._size = size
        self._progress = progress

    def __enter__(self) -> HiddenFile:
        with _failures(self._path, self._size):
            self._fd, self._made = _temporary(self._path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._made.unlink(missing_ok=True)
        os.close(self._fd)

    def write(self, view: memoryview) -> None:
        for start in range(0, len(view), _STEP):
            rest = view[start : start + _STEP]
            while rest:
                with _failures(self._path, self._size):
                    done = os.write(self._fd, rest)  # less than asked for where the disk is about to be full
                if self._progress is not None:
                    self._progress(done)
                rest = rest[done:]

    def finish(self, check: Callable[[Path], None] | None = None) -> None:
        """Give it the target's name, if `check`, which may read it, raises nothing."""
        with _failures(self._path, self._size):
            assert os.fstat(self._fd).st_size == self._size
            sync(self._fd)
        if check is not None:
            check(self._made)
        with _failures(self._path, self._size):
            self._made.replace(self._path)
            sync_directory(self._path.parent)


def _fill(file: HiddenFile, source: Weights, changed: Mapping[str, Changed], layout: Layout) -> None:
    file.write(memoryview(layout.header))
    for place in layout.places:
        new = changed.get(place.tensor.name)
        if new is None:
            file.write(source.raw(place.tensor.name))
        else:
            write_pieces(file, place.tensor, new.format, place.nbytes, new.pieces())
        file.write(memoryview(bytes(place.padding)))


def write_pieces(
    file: HiddenFile, tensor: Tensor, format: NumberFormat, nbytes: int, pieces: Iterable[memoryview]
) -> None:
    """Write the data of one tensor. Raises RecipeError where they are not as many bytes as they must be."""
    done = 0
    for piece in pieces:
        done += len(piece)
        if done > nbytes:
            break
        file.write(piece)
    if done != nbytes:
        raise RecipeError(
            f"the data of {tensor.name} are {done} bytes{' or more' if done > nbytes else ''}, and "
            f"{list(tensor.shape)} as {format.name} is {nbytes}",
            hint="Whatever made them did not keep to the tensor's shape.",
            tensor=tensor.name,
            needed=nbytes,
        )


def _check_place(path: Path, source: Weights) -> None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    if (found.st_dev, found.st_ino) == source.identity:
        raise RecipeError(
            f"{path} is the file that is read", hint="Write to another one: a source stays as it is.", path=str(path)
        )
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path} is not a file", hint="Name a new file, or one to replace.", path=str(path))


def _room_for(path: Path, size: int) -> None:
    free = _free(path.parent)
    if free < size:
        raise StoreFullError(
            f"{path.parent} has {free / 1e6:,.1f} MB free, and {size / 1e6:,.1f} MB are needed for {path.name}",
            hint="Make room there, or write to another disk.",
            needed=size,
            free=free,
            path=str(path),
        )


def _free(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


@contextmanager
def _failures(path: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFullError(
                f"{path.parent} became full while {path.name} was written ({size / 1e6:,.1f} MB): {error.strerror}",
                hint="Make room there, or write to another disk. Nothing was left behind.",
                needed=size,
                path=str(path),
            ) from error
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="Check that its directory is there and may be written by this user.",
            path=str(path),
        ) from error


def _temporary(directory: Path) -> tuple[int, Path]:
    """A new hidden file that is locked until its descriptor is closed. Raises OSError."""
    while True:
        path = directory / f"{_PREFIX}{uuid.uuid4().hex}{_SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # A sweep may have come between the two lines above and taken the file for a dead writer's.
            if os.fstat(fd).st_nlink:
                return fd, path
        except BaseException:
            with suppress(OSError):
                path.unlink()
            os.close(fd)
            raise
        os.close(fd)


def _sweep(directory: Path) -> None:
    """Remove what killed writers left in there."""
    for path in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # it is another user's, or gone
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            finally:
                os.close(fd)
