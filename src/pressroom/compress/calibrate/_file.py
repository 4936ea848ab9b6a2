"""A calibration as a file: safetensors, whose arrays are made in place while it is written and mapped when read."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import mmap
import os
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.calibrate.base import Calibration
from pressroom.kernel import MalformedWeightsError, StoreError, StoreFullError
from pressroom.kernel.disk import sync, sync_directory
from pressroom.store import inspect

_log = logging.getLogger(__name__)

SCHEMA = 1
_KEY = "pressroom.calibration"
_LENGTH = struct.Struct("<Q")
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
_PAD = 8  # the header ends at a multiple of it, so that every float is aligned
_BLOCK = bytes(1 << 20)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PREFIX, _SUFFIX = ".calibration-", ".part"


class Writing:
    """Arrays that are added one by one, lie in the file's own pages, and are numbers to compute with at once.

    The header comes before them and is written last, into room that is kept for it: `names` are all that may be in it.
    """

    def __init__(self, fd: int, *, names: Iterable[str]) -> None:
        # Each may stand for an input of three arrays, of about 100 bytes in the header; as text in text it is longer.
        room = 4096 + sum(400 + len(json.dumps(json.dumps(name))) for name in names)
        self._fd, self._start = fd, -(-room // _PAD) * _PAD + _LENGTH.size
        self._end = self._start
        self._entries: dict[str, dict[str, Any]] = {}
        _grow(fd, 0, self._start)

    def add(self, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """An array of zeros. Raises OSError where the disk is full, and not later."""
        kind = _DTYPES[dtype]
        nbytes = kind.itemsize * int(np.prod(shape))
        _grow(self._fd, self._end, nbytes)
        offsets = [self._end - self._start, self._end - self._start + nbytes]
        self._entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        array = _mapped(self._fd, kind, shape, self._end, access=mmap.ACCESS_WRITE)
        self._end += nbytes
        return array

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the header. Raises OSError."""
        head = {"__metadata__": {_KEY: json.dumps({"schema": SCHEMA, **about})}, **self._entries}
        room = self._start - _LENGTH.size
        data = json.dumps(head, separators=(",", ":")).encode().ljust(room)
        assert len(data) == room, "the room for the header is bounded by its names"
        data = _LENGTH.pack(room) + data
        written = 0
        while written < len(data):
            written += os.pwrite(self._fd, data[written:], written)


def save(calibration: Calibration, path: Path) -> None:
    """Write it to a file, whole or not at all. Raises StoreError, and StoreFullError where there is no room."""
    with making(path) as fd:
        writing = Writing(fd, names=[*calibration.moments, *calibration.unseen])
        inputs: dict[str, int] = {}
        numbers: dict[int, int] = {}  # of an array that several tensors refer to
        for name, moments in calibration.moments.items():
            if id(moments) not in numbers:
                number = numbers[id(moments)] = len(numbers)
                if name in calibration.hessians:
                    hessian = calibration.hessians[name]
                    writing.add(f"hessian.{number}", "F32", hessian.shape)[...] = hessian
                writing.add(f"moments.{number}", "F32", moments.shape)[...] = moments
                positions = calibration.positions[name]
                writing.add(f"positions.{number}", "I64", positions.shape)[...] = positions
            inputs[name] = numbers[id(moments)]
        writing.finish({**about(calibration), "inputs": inputs})


def about(calibration: Calibration) -> dict[str, Any]:
    """What is said of it beside its arrays."""
    plain = (name for name in Calibration.__slots__ if name not in ("moments", "hessians", "positions"))
    return {name: getattr(calibration, name) for name in plain}


def load(path: Path) -> Calibration:
    """A file of `save`, its arrays mapped and read when used.

    Raises:
        MalformedWeightsError: it is cut short, altered, or something else.
        NotFoundError, StoreError: it is not there or cannot be read.
    """
    tensors = {tensor.name: tensor for tensor in inspect(path).tensors}
    try:
        with path.open("rb") as file:
            length = _LENGTH.unpack(file.read(_LENGTH.size))[0]
            said = json.loads(json.loads(file.read(length))["__metadata__"][_KEY])
            if said["schema"] != SCHEMA:
                raise ValueError(f"schema {said['schema']!r}")
            arrays: dict[str, NDArray[Any]] = {
                name: _mapped(file.fileno(), _DTYPES[one.dtype], one.shape, one.offset, access=mmap.ACCESS_READ)
                for name, one in tensors.items()
            }
        inputs = {str(name): int(number) for name, number in said.pop("inputs").items()}
        full = any(name.startswith("hessian.") for name in arrays)
        del said["schema"]
        said["unseen"] = tuple(said["unseen"])
        return Calibration(
            **said,
            moments={name: arrays[f"moments.{number}"] for name, number in inputs.items()},
            hessians={name: arrays[f"hessian.{number}"] for name, number in inputs.items()} if full else {},
            positions={name: arrays[f"positions.{number}"] for name, number in inputs.items()},
        )
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedWeightsError(
            f"{path} is not a calibration: {error!r}", hint="Delete it; it is made again."
        ) from error


@contextmanager
def making(path: Path) -> Iterator[int]:
    """The descriptor of a hidden file beside `path` that takes its name at the end, unless something was raised.

    Raises StoreError, and StoreFullError where there is no room.
    """
    part = path.parent / f"{_PREFIX}{uuid.uuid4().hex}{_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # a sweep leaves it alone for as long as it lives here or in a child
            yield fd
            sync(fd)
            part.replace(path)
            sync_directory(path.parent)
        finally:
            os.close(fd)
            with suppress(FileNotFoundError):
                part.unlink()
    except OSError as error:
        full = error.errno in _FULL
        raise (StoreFullError if full else StoreError)(
            f"the calibration cannot be written to {path}: {error.strerror or error}",
            hint="Make room, or ask for fewer figures (without Hessians)." if full else "",
        ) from error


def _sweep(folder: Path) -> None:
    """Remove what a killed process left."""
    for part in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        try:
            fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
        except OSError as error:
            _log.debug("%s stays: %s", part, error)
        finally:
            os.close(fd)


def _grow(fd: int, start: int, nbytes: int) -> None:
    """Zeros that have their room on the disk: a page that finds none when it is written would end the process."""
    if hasattr(os, "posix_fallocate"):
        if nbytes:
            os.posix_fallocate(fd, start, nbytes)
        return
    while nbytes > 0:
        count = os.pwrite(fd, _BLOCK[:nbytes], start)
        start, nbytes = start + count, nbytes - count


def _mapped(fd: int, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, *, access: int) -> NDArray[Any]:
    count = int(np.prod(shape))
    if not count:
        return np.zeros(shape, dtype)
    begin = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    pages = mmap.mmap(fd, offset - begin + count * dtype.itemsize, access=access, offset=begin)
    return np.frombuffer(pages, dtype, count, offset - begin).reshape(shape)
