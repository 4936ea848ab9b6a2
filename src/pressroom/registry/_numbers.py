"""How far two tensors of one shape are apart, read side by side in pieces of a few MiB."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

import numpy as np

from pressroom.kernel import StoreError
from pressroom.store import TensorInfo

Floats = np.ndarray[Any, np.dtype[np.float64]]
Raw = np.ndarray[Any, np.dtype[np.uint8]]

# Elements at a time: 8 MiB of float64 a side.
_PIECE = 1 << 20
_PLAIN = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "<u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "<u1",
}
_WIDTHS = {**{name: np.dtype(kind).itemsize for name, kind in _PLAIN.items()}, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """`changed` of `of` elements (bytes, with `by_bytes`) differ in their bits, or, of two types, in their values.

    `relative_l2` is the norm of the difference over the norm of the first tensor (None where that is 0), `max_abs` the
    largest difference; both are None with `by_bytes`, and leave out the `not_finite` elements (NaN, infinity).
    """

    changed: int
    of: int
    by_bytes: bool = False
    relative_l2: float | None = None
    max_abs: float | None = None
    not_finite: int = 0

    @property
    def share(self) -> float:
        return self.changed / self.of if self.of else 0.0


def has_values(dtype: str) -> bool:
    """Whether elements of this type are numbers here; blocks of quantised types are compared by their bytes."""
    return dtype in _WIDTHS


def distance(one: BinaryIO, first: TensorInfo, other: BinaryIO, second: TensorInfo) -> Distance:
    """Compare two tensors of one shape; of types without values they must be as long. Reads each byte once."""
    if not (has_values(first.dtype) and has_values(second.dtype)):
        assert first.nbytes == second.nbytes
        changed = sum(
            int(np.count_nonzero(a != b))
            for a, b in zip(_pieces(one, first, 1), _pieces(other, second, 1), strict=True)
        )
        return Distance(changed=changed, of=first.nbytes, by_bytes=True)
    changed = not_finite = 0
    apart = length = most = 0.0
    widths = _WIDTHS[first.dtype], _WIDTHS[second.dtype]
    for a, b in zip(_pieces(one, first, widths[0]), _pieces(other, second, widths[1]), strict=True):
        same_type = first.dtype == second.dtype
        if same_type and np.array_equal(a, b):
            values = _values(a, first.dtype)
            length += _squares(values[np.isfinite(values)])
            continue
        old, new = _values(a, first.dtype), _values(b, second.dtype)
        if same_type:
            differs = (a != b).reshape(-1, widths[0]).any(axis=1)
        else:
            differs = (old != new) & ~(np.isnan(old) & np.isnan(new))
        changed += int(np.count_nonzero(differs))
        finite = np.isfinite(old) & np.isfinite(new)
        not_finite += int(finite.size - np.count_nonzero(finite))
        difference = np.abs(new[finite] - old[finite])
        apart += _squares(difference)
        length += _squares(old[finite])
        most = max(most, float(difference.max(initial=0.0)))
    return Distance(
        changed=changed,
        of=first.elements,
        relative_l2=math.sqrt(apart / length) if length else None if apart else 0.0,
        max_abs=most,
        not_finite=not_finite,
    )


def _pieces(file: BinaryIO, tensor: TensorInfo, width: int) -> Iterator[Raw]:
    file.seek(tensor.offset)
    left = tensor.nbytes
    while left:
        wanted = min(left, _PIECE * width)
        # A stream may give less than it was asked for.
        piece = file.read(wanted)
        while len(piece) < wanted and (more := file.read(wanted - len(piece))):
            piece += more
        if len(piece) < wanted:
            raise StoreError(
                f"the bytes of the tensor {tensor.name!r} end before it does",
                hint="`press verify` says what is damaged.",
            )
        left -= wanted
        yield np.frombuffer(piece, np.uint8)


def _values(raw: Raw, dtype: str) -> Floats:
    if dtype == "BF16":
        wide = raw.view("<u2").astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64)
    if dtype == "F8_E5M2":  # the upper half of a float16
        return (raw.astype(np.uint16) << 8).view(np.float16).astype(np.float64)
    if dtype == "F8_E4M3":
        return _e4m3()[raw]
    return raw.view(_PLAIN[dtype]).astype(np.float64)


def _squares(values: Floats) -> float:
    return float(np.dot(values, values))


@cache
def _e4m3() -> Floats:
    """The 256 values of float8 E4M3FN: no infinity, and NaN only where all bits but the sign are set."""
    table = np.empty(256)
    for bits in range(256):
        exponent, fraction = (bits >> 3) & 15, bits & 7
        size = fraction / 8 * 2**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
        table[bits] = math.nan if bits & 127 == 127 else -size if bits & 128 else size
    return table
