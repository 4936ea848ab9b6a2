"""A GGUF file of one's own: keys and tensors, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.numbers import NumberFormat
from pressroom.kernel import StoreError, StoreFullError
from pressroom.kernel.disk import sync, sync_directory

Key = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float]

_ALIGNMENT = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_STEP = 4 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to be written: `shape` outermost first, `data` gives its bytes when its turn comes."""

    name: str
    shape: tuple[int, ...]
    format: NumberFormat
    data: Callable[[], NDArray[np.uint8]]

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) // self.format.block * self.format.nbytes


def write_gguf(
    path: Path, keys: Mapping[str, Key], tensors: Sequence[Tensor], *, progress: Callable[[int], None] | None = None
) -> int:
    """Write a GGUF file; returns its bytes. One tensor is in memory at a time.

    Raises:
        StoreFullError: there is no room. StoreError: it cannot be written. Nothing is left in either case.
    """
    header = _header(keys, tensors)
    size = len(header) + sum(_padded(one.nbytes) for one in tensors)
    free = os.statvfs(path.parent)
    if free.f_bavail * free.f_frsize < size:
        raise _full(path, size)
    part = path.with_name(f".{path.name}.part")
    try:
        hashed = hashlib.blake2b(header)
        with part.open("wb") as file:
            file.write(header)
            for one in tensors:
                data = _bytes(one.data())
                assert len(data) == one.nbytes, f"{one.name}: {len(data)} bytes, and {one.nbytes} were said"
                hashed.update(data)
                for start in range(0, len(data), _STEP):
                    file.write(data[start : start + _STEP])
                end = bytes(_padded(one.nbytes) - one.nbytes)
                hashed.update(end)
                file.write(end)
                if progress is not None:
                    progress(one.nbytes)
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


def _header(keys: Mapping[str, Key], tensors: Sequence[Tensor]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    parts += [_text(key) + _value(value) for key, value in keys.items()]
    offset = 0
    for one in tensors:
        assert one.format.ggml is not None
        shape = struct.pack(f"<I{len(one.shape)}Q", len(one.shape), *reversed(one.shape))
        parts.append(_text(one.name) + shape + struct.pack("<IQ", one.format.ggml, offset))
        offset += _padded(one.nbytes)
    length = sum(map(len, parts))
    return b"".join([*parts, bytes(-length % _ALIGNMENT)])


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", errors="surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Key) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    first: Any = value[0] if value else 0
    kind = _STRING if isinstance(first, str) else _F32 if isinstance(first, float) else _I32
    head = struct.pack("<IIQ", _ARRAY, kind, len(value))
    if kind == _STRING:
        return head + b"".join(_text(str(one)) for one in value)
    return head + np.asarray(value, dtype="<f4" if kind == _F32 else "<i4").tobytes()


def _full(path: Path, size: int) -> StoreFullError:
    return StoreFullError(
        f"{path.parent} has no room for {path.name} ({size / 1e6:,.1f} MB)",
        hint="Make room there. Nothing was left behind.",
        needed=size,
        path=str(path),
    )


def _bytes(data: NDArray[np.uint8]) -> memoryview:
    plain: Any = np.ascontiguousarray(data)
    return memoryview(plain).cast("B")


def _read_again(path: Path, digest: bytes) -> None:
    """Raises StoreError where a file does not hold what was written."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "blake2b").digest() != digest:
            raise StoreError(
                f"{path.name} does not hold what was written", hint="Check the disk and the memory, then try again."
            )
