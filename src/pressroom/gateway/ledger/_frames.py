"""How records lie in a segment of the journal: framed, so that what was cut or altered is seen and costs itself only.

    fe ff fd   kind   length (4 bytes)   CRC32 (4 bytes)   payload

The first three bytes are in no UTF-8 text, and payloads are JSON: behind a damaged record, the next is found by them.
The rest of a segment is zeros. Integers are little-endian; the CRC is of the payload, begun with length and kind.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

MARK = b"\xfe\xff\xfd"
HEADER = struct.Struct("<4sII")
HEADER_BYTES = HEADER.size
#: Where the kind is in what a CRC begins with; lengths are below.
KIND_SHIFT = 16
#: No record is larger, its header included. What a row has of names and tags is cut to fit.
MOST = 2_048

COLUMNS, OPENED, ROW = 0, 1, 2
#: What `records` says of a place where a record was altered, and of one that its writer was killed over.
DAMAGED, TORN = -1, -2

_CHUNK = 1 << 20
_unpack, _crc32 = HEADER.unpack_from, zlib.crc32


def frame(kind: int, payload: bytes) -> bytes:
    """A record as it is written."""
    length = len(payload)
    return HEADER.pack(MARK + bytes((kind,)), length, zlib.crc32(payload, length | kind << KIND_SHIFT)) + payload


def records(read: Callable[[int, int], bytes], start: int, end: int) -> Iterator[tuple[int, bytes, int]]:
    """(kind, payload, where the next one begins) of every record in [start, end), in order. `read(count, offset)` gives
    bytes of the segment. One entry of DAMAGED for each stretch that is none and has a record behind it, one of TORN
    where there is none behind it and it is not zeros."""
    gap = False  # in a stretch that is no record
    filled = False  # it has bytes other than zero
    base = start
    data = b""
    at = 0
    while True:
        if len(data) - at < MOST and base + len(data) < end:
            data, base, at = data[at:], base + at, 0
            got = read(min(_CHUNK, end - base - len(data)), base + len(data))
            if not got:  # shorter than it says: what is missing is no record
                end = base + len(data)
            data += got
        if at >= len(data):
            break
        while True:
            kind, payload, after = _record(data, at)
            if payload is None:
                break
            if gap:
                yield DAMAGED, b"", base + at
                gap = filled = False
            at = after
            yield kind, payload, base + at
        if len(data) - at < MOST and base + len(data) < end:
            continue  # it may only be cut here
        gap = True
        found = data.find(MARK, at + 1)
        # Without a mark in sight the last two bytes may be the beginning of one.
        last = base + len(data) >= end
        following = found if found >= 0 else len(data) if last else max(at + 1, len(data) - len(MARK) + 1)
        filled = filled or data.count(0, at, following) < following - at
        at = following
    if gap and filled:
        yield TORN, b"", end


def _record(data: bytes, at: int) -> tuple[int, bytes | None, int]:
    begin = at + HEADER_BYTES
    if not data.startswith(MARK, at) or len(data) < begin:
        return 0, None, at
    head, length, crc = _unpack(data, at)
    payload = data[begin : begin + length] if length <= MOST - HEADER_BYTES else b""
    kind = head[3]
    if not payload or len(payload) != length or _crc32(payload, length | kind << KIND_SHIFT) != crc:
        return 0, None, at
    return kind, payload, begin + length
