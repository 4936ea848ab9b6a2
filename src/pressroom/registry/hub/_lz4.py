"""LZ4 frames, read: by the system's liblz4 where it is there, else in Python.

Both bound what they write by the length that was declared, and read nothing outside of what they are given.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

_MAGIC = 0x184D2204
_LIBRARIES = ("liblz4.so.1", "liblz4.1.dylib", "liblz4.dylib")
_WINDOW = 65_536

Decode = Callable[[bytes, bytearray, int, int], int]


class Lz4Error(ValueError):
    """The bytes are not what LZ4 makes, or are more or fewer than declared."""


def decompress_frame(data: bytes, size: int, *, native: bool = True) -> bytes:
    """The content of a frame, which must be exactly `size` bytes.

    Raises:
        Lz4Error: it is not.
    """
    decode = (_native() if native else None) or _decode
    try:
        return _frame(data, size, decode)
    except (IndexError, struct.error) as error:
        raise Lz4Error("the frame is cut short") from error


def _frame(data: bytes, size: int, decode: Decode) -> bytes:
    magic, flags = struct.unpack_from("<IB", data)
    if magic != _MAGIC or flags >> 6 != 1 or flags & 0x02:
        raise Lz4Error("this is not an LZ4 frame")
    linked, block_sums, has_size, has_dictionary = not flags & 0x20, flags & 0x10, flags & 0x08, flags & 0x01
    if has_dictionary:
        raise Lz4Error("the frame wants a dictionary")
    place = 6 + (8 if has_size else 0) + 1
    out = bytearray(size)
    written = 0
    while True:
        (head,) = struct.unpack_from("<I", data, place)
        place += 4
        if head == 0:
            break
        length = head & 0x7FFFFFFF
        block = data[place : place + length]
        if len(block) != length:
            raise Lz4Error("the frame is cut short")
        place += length + (4 if block_sums else 0)
        if head >> 31:
            if written + length > size:
                raise Lz4Error(f"the frame is longer than {size} bytes")
            out[written : written + length] = block
            written += length
        else:
            written += decode(block, out, written, max(0, written - _WINDOW) if linked else written)
    if written != size:
        raise Lz4Error(f"the frame has {written} bytes, and {size} were declared")
    return bytes(out)


def _decode(block: bytes, out: bytearray, start: int, oldest: int) -> int:
    """Decode a block to `out` from `start` on; matches reach back to `oldest`. Returns how many bytes were written."""
    place, to, end, limit = 0, start, len(block), len(out)
    while True:
        token = block[place]
        place += 1
        length = token >> 4
        if length == 15:
            while (more := block[place]) == 255:
                length += 255
                place += 1
            length += more
            place += 1
        if place + length > end or to + length > limit:
            raise Lz4Error("literals leave the block")
        out[to : to + length] = block[place : place + length]
        place += length
        to += length
        if place == end:
            return to - start
        offset = block[place] | block[place + 1] << 8
        place += 2
        length = token & 15
        if length == 15:
            while (more := block[place]) == 255:
                length += 255
                place += 1
            length += more
            place += 1
        length += 4
        source = to - offset
        if offset == 0 or source < oldest or to + length > limit:
            raise Lz4Error("a match leaves the block")
        if offset >= length:
            out[to : to + length] = out[source : source + length]
        else:  # it overlaps with what it writes: the bytes before it, again and again
            pattern = bytes(out[source:to])
            out[to : to + length] = (pattern * (length // offset + 1))[:length]
        to += length


@cache
def _native() -> Decode | None:
    """The decoder of liblz4, or None where there is no such library."""
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
            plain, with_dictionary = library.LZ4_decompress_safe, library.LZ4_decompress_safe_usingDict
        except (OSError, AttributeError):
            continue
        plain.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        with_dictionary.argtypes = [*plain.argtypes, ctypes.c_void_p, ctypes.c_int]
        plain.restype = with_dictionary.restype = ctypes.c_int
        return _bound(plain, with_dictionary)
    return None


def _bound(plain: Any, with_dictionary: Any) -> Decode:
    def decode(block: bytes, out: bytearray, start: int, oldest: int) -> int:
        room = len(out) - start
        target = (ctypes.c_char * len(out)).from_buffer(out)
        try:
            address = ctypes.addressof(target)
            if oldest < start:
                found = with_dictionary(block, address + start, len(block), room, address + oldest, start - oldest)
            else:
                found = plain(block, address + start, len(block), room)
        finally:
            del target  # the buffer may be resized again
        if found < 0:
            raise Lz4Error("a block is damaged")
        return int(found)

    return decode
