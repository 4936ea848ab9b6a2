"""A GGUF file of one's own: keys and tensors, written whole or not at all."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.export._whole import write_whole
from pressroom.compress.numbers import NumberFormat

Key = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float]

_ALIGNMENT = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


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
    path: Path,
    keys: Mapping[str, Key],
    tensors: Sequence[Tensor],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a GGUF file; returns its bytes. One tensor is in memory at a time.

    Raises:
        StoreFullError: there is no room. StoreError: it cannot be written. Nothing is left in either case.
    """
    header = _header(keys, tensors)
    return write_whole(path, header, tensors, alignment=_ALIGNMENT, progress=progress)


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
