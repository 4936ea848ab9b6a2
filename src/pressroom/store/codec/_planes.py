"""Blocks of everything but 16-bit floats: the bytes that mean the same are put together and coded as one plane.

    after the head, for each plane: 4 its length, and that many bytes, of which the first says how it is stored:
    0 as it is, 1 a section of symbols without contexts, 2 one with the contexts of its place

Planes go from the highest byte to the lowest, so that a lower one can be told by the size of what is above it.
"""

from __future__ import annotations

import struct
from typing import Any, Protocol

import numpy as np

from pressroom.store.codec._layouts import Layout
from pressroom.store.codec.base import Array, DamagedError

_AS_IS, _PLAIN, _UNDER = 0, 1, 2
_LENGTH = struct.Struct("<I")
# Of a plane's bytes, how many are looked at before it is coded: what does not shrink there does not shrink.
_LOOK = 1 << 15


class Symbols(Protocol):
    """What codes bytes under contexts: the kernel, or NumPy."""

    def bytes_encode(self, symbol: Array, context: Array | None) -> bytes | None: ...

    def bytes_decode(self, data: memoryview, context: Array | None, out: Array) -> int: ...


def encode(symbols: Symbols, x: Array, p: Array | None, layout: Layout, row: int) -> bytes:
    """The planes of `x` (bytes, whole elements), told from `p` where it is given. Never much longer than `x`.

    `row`: bytes of a row, 0 where rows are not known.
    """
    parts: list[bytes] = []

    def keep(plane: Array, context: Array | None = None) -> None:
        best = b"\0" + plane.tobytes()
        if _may_shrink(plane, context):
            made = symbols.bytes_encode(plane, context)
            if made is not None and len(made) + 1 < len(best):
                best = bytes([_PLAIN if context is None else _UNDER]) + made
        parts.append(_LENGTH.pack(len(best)) + best)

    if layout.kind in _WORDS:
        unsigned, _ = _WORDS[layout.kind]
        told = _told(x.view(unsigned), p, layout)
        for place in range(layout.size - 1, -1, -1):
            plane = (told >> unsigned(8 * place)).astype(np.uint8)
            keep(plane, _above(told, place, p, layout))
    elif layout.kind == "signed" and p is None:
        classes = _row_classes(x, row)
        keep(classes)
        keep(x, np.repeat(classes, row) if len(classes) else None)
    elif p is not None and layout.kind in ("signed", "float8"):
        keep(_zigzag(x - p) if layout.kind == "signed" else _zigzag(_ordered(x) - _ordered(p)), _size_class(p, layout))
    else:
        told = x if p is None else x ^ p
        for start, end in layout.ranges:
            keep(np.ascontiguousarray(told.reshape(-1, layout.size)[:, start:end]).ravel())
    return b"".join(parts)


def decode(symbols: Symbols, data: memoryview, out: Array, p: Array | None, layout: Layout, row: int) -> None:
    """Fill `out` (bytes) from the planes.

    Raises:
        DamagedError: they are not the planes of that many bytes, or were altered.
    """
    at = 0

    def plane(count: int, context: Array | None = None) -> Array:
        nonlocal at
        if at + 5 > len(data):
            raise DamagedError("a block ends before its last plane")
        (length,) = _LENGTH.unpack_from(data, at)
        part = data[at + 4 : at + 4 + length]
        if len(part) != length or not length:
            raise DamagedError("a block ends inside a plane")
        at += 4 + length
        how, body = part[0], part[1:]
        if how == _AS_IS:
            if len(body) != count:
                raise DamagedError("a plane of a block has another length than its place")
            return np.frombuffer(body, np.uint8)
        if how not in (_PLAIN, _UNDER) or (how == _UNDER and context is None):
            raise DamagedError("a plane of a block is coded in no known way")
        made = np.empty(count, np.uint8)
        if symbols.bytes_decode(body, context if how == _UNDER else None, made) != len(body):
            raise DamagedError("a plane of a block has something behind it")
        return made

    if layout.kind in _WORDS:
        unsigned, _ = _WORDS[layout.kind]
        told = np.zeros(len(out) // layout.size, unsigned)
        for place in range(layout.size - 1, -1, -1):
            told |= plane(len(told), _above(told, place, p, layout)).astype(unsigned) << unsigned(8 * place)
        out.view(unsigned)[:] = _untold(told, p, layout)
    elif layout.kind == "signed" and p is None:
        classes = plane(_rows(len(out), row))
        if len(classes) and int(classes.max()) > 31:
            raise DamagedError("a row of a block has a class that does not exist")
        out[:] = plane(len(out), np.repeat(classes, row) if len(classes) else None)
    elif p is not None and layout.kind in ("signed", "float8"):
        difference = _unzigzag(plane(len(out), _size_class(p, layout)))
        out[:] = p + difference if layout.kind == "signed" else _ordered(_ordered(p) + difference)
    else:
        rows = out.reshape(-1, layout.size)
        for start, end in layout.ranges:
            rows[:, start:end] = plane(len(rows) * (end - start)).reshape(-1, end - start)
        if p is not None:
            out ^= p
    if at != len(data):
        raise DamagedError("a block has something behind its last plane")


_WORDS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {"float32": (np.uint32, 32), "float64": (np.uint64, 64)}
# Four classes an octave of the mean magnitude in sixteenths, from 2 to 128.
_CLASSES = np.array([round(16 * 2 ** (k / 4)) for k in range(31)])


def _may_shrink(plane: Array, context: Array | None) -> bool:
    """Whether a look at some of it says so; with contexts the look would have to be longer than it is worth."""
    if context is not None or len(plane) < 4 * _LOOK:
        return True
    counted = np.bincount(plane[:: len(plane) // _LOOK], minlength=256)
    share = counted[counted > 0] / counted.sum()
    return bool(-(share * np.log2(share)).sum() < 7.95)


def _told(x: Array, p: Array | None, layout: Layout) -> Array:
    """Alone: the sign moved behind the mantissa, so that the exponent is one byte. Near: the zig-zag of the ordered
    difference."""
    kind, bits = _WORDS[layout.kind]
    if p is None:
        made: Array = x << kind(1) | x >> kind(bits - 1)
        return made
    d = _ordered_words(x, bits) - _ordered_words(p.view(kind), bits)
    made = d << kind(1) ^ (kind(0) - (d >> kind(bits - 1)))
    return made


def _untold(told: Array, p: Array | None, layout: Layout) -> Array:
    kind, bits = _WORDS[layout.kind]
    if p is None:
        made: Array = told >> kind(1) | told << kind(bits - 1)
        return made
    d = told >> kind(1) ^ (kind(0) - (told & kind(1)))
    return _ordered_words(_ordered_words(p.view(kind), bits) + d, bits)


def _ordered_words(x: Array, bits: int) -> Array:
    kind = x.dtype.type
    negative: Array = (kind(0) - (x >> kind(bits - 1))) >> kind(1)
    return x ^ negative


def _above(told: Array, place: int, p: Array | None, layout: Layout) -> Array | None:
    """The contexts of a plane: how many bits the planes above it have; of the highest, the parent's exponent."""
    kind, bits = _WORDS[layout.kind]
    if place < layout.size - 1:
        made: Array = np.minimum(np.frexp((told >> kind(8 * (place + 1))).astype(np.float64))[1], 31).astype(np.uint8)
        return made
    if p is None:
        return None
    exponent = p.view(kind) >> kind(23 if bits == 32 else 52)
    made = (exponent & kind(31)).astype(np.uint8)
    return made


def _rows(count: int, row: int) -> int:
    return count // row if row and count % row == 0 else 0


def _row_classes(x: Array, row: int) -> Array:
    """The class of each row by how large its values are on average, 0 to 31; none where rows are not known."""
    rows = _rows(len(x), row)
    if not rows:
        return np.empty(0, np.uint8)
    total = np.abs(x.view(np.int8).reshape(rows, row).astype(np.int16)).sum(axis=1, dtype=np.int64)
    made: Array = np.searchsorted(_CLASSES, total * 16 // row, side="right").astype(np.uint8)
    return made


def _size_class(p: Array, layout: Layout) -> Array:
    """The contexts of differences: the parent's magnitude, of an 8-bit float its exponent and what is next to it."""
    if layout.kind == "float8":
        return p >> 2 & 31
    made: Array = np.minimum(np.abs(p.view(np.int8).astype(np.int16)) >> 2, 31).astype(np.uint8)
    return made


def _ordered(x: Array) -> Array:
    return x ^ np.where(x >> 7, 0x7F, 0).astype(np.uint8)


def _zigzag(d: Array) -> Array:
    return d << 1 ^ np.where(d >> 7, 0xFF, 0).astype(np.uint8)


def _unzigzag(z: Array) -> Array:
    return z >> 1 ^ np.where(z & 1, 0xFF, 0).astype(np.uint8)
