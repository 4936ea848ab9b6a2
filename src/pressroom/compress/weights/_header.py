"""The header of a GGUF file as bytes, so that what is not changed can be written again as it was.

`pressroom.store.inspect` checks files and says what they hold; it is asked first. Here the same header is walked once
more for what it leaves out: where each key lies, and the numbers of the tensors' types.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Any

STRING, ARRAY, BOOL, FLOAT_32 = 8, 9, 7, 6
SIGNED_32 = 5
UNSIGNED_32, UNSIGNED_64, SIGNED_64 = 4, 10, 11

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
WHOLE = (0, 1, 2, 3, 4, 5, 10, 11)
BROKEN = (6, 12)

_COUNTS = struct.Struct("<4sIQQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")
_PLACE = struct.Struct("<IQ")


@dataclass(frozen=True, slots=True)
class Entry:
    """A key and its value: `kind` is GGUF's number of the value's type; it lies in the file from `start` to `end`, its
    value from `value` on."""

    key: str
    kind: int
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of tensors: `shape` outermost first, `offset` from the start of the data."""

    name: str
    shape: tuple[int, ...]
    number: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """`end` is where the table of tensors ends; the data begin at the next multiple of the alignment."""

    version: int
    entries: dict[str, Entry]
    rows: tuple[Row, ...]
    end: int


def read_header(data: mmap) -> Header:
    """Walk a header that was checked before. Raises struct.error and UnicodeDecodeError where it changed since."""
    _, version, tensors, keys = _COUNTS.unpack_from(data)
    position = _COUNTS.size
    entries: dict[str, Entry] = {}
    for _ in range(keys):
        start = position
        key, position = _text(data, position)
        (kind,) = _U32.unpack_from(data, position)
        value = position + _U32.size
        position = _after(data, kind, value)
        entries[key] = Entry(key, kind, start, value, position)
    rows = []
    for _ in range(tensors):
        name, position = _text(data, position)
        (dimensions,) = _U32.unpack_from(data, position)
        inner_first = struct.unpack_from(f"<{dimensions}Q", data, position + 4)
        position += 4 + 8 * dimensions
        number, offset = _PLACE.unpack_from(data, position)
        position += _PLACE.size
        rows.append(Row(name, tuple(reversed(inner_first)), number, offset))
    return Header(version, entries, tuple(rows), position)


def decoded(data: mmap, entry: Entry) -> Any:
    """The value of a key: a number, a truth value, text, or a list of one of these."""
    if entry.kind == STRING:
        return _string(data, entry.value)[0]
    if entry.kind != ARRAY:
        return struct.unpack_from(f"<{_SCALARS[entry.kind]}", data, entry.value)[0]
    kind, count = _ARRAY_HEAD.unpack_from(data, entry.value)
    position = entry.value + _ARRAY_HEAD.size
    if kind != STRING:
        return list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", data, position))
    found = []
    for _ in range(count):
        text, position = _string(data, position)
        found.append(text)
    return found


def encoded_key(key: str, kind: int, value: str | float) -> bytes:
    """A key and its value as they stand in a header. Raises struct.error where the kind has no room for the value."""
    packed = _packed(value) if isinstance(value, str) else struct.pack(f"<{_SCALARS[kind]}", value)
    return _packed(key) + _U32.pack(kind) + packed


def encoded_list(key: str, kind: int, values: Sequence[str | float]) -> bytes:
    """A key and its list of values of one kind. Raises struct.error where the kind has no room for one."""
    if kind == STRING:
        packed = b"".join(_packed(str(value)) for value in values)
    else:
        packed = struct.pack(f"<{len(values)}{_SCALARS[kind]}", *values)
    return _packed(key) + _U32.pack(ARRAY) + _ARRAY_HEAD.pack(kind, len(values)) + packed


def inner_kind(data: mmap, entry: Entry) -> int:
    """GGUF's number of the type that the values of a list have."""
    return int(_U32.unpack_from(data, entry.value)[0])


def encoded_counts(version: int, *, tensors: int, keys: int) -> bytes:
    """The first bytes of a file."""
    return _COUNTS.pack(b"GGUF", version, tensors, keys)


def encoded_row(row: Row) -> bytes:
    """A line of the table of tensors."""
    shape = struct.pack(f"<I{len(row.shape)}Q", len(row.shape), *reversed(row.shape))
    return _packed(row.name) + shape + _PLACE.pack(row.number, row.offset)


def _packed(text: str) -> bytes:
    raw = text.encode("utf-8", errors="surrogateescape")  # as `_string` reads what is no text
    return _U64.pack(len(raw)) + raw


def _text(data: mmap, position: int) -> tuple[str, int]:
    (length,) = _U64.unpack_from(data, position)
    end = position + 8 + length
    return data[position + 8 : end].decode("utf-8"), end


def _string(data: mmap, position: int) -> tuple[str, int]:
    """A value, which unlike a name may hold bytes that are no text (tokens of some vocabularies do)."""
    (length,) = _U64.unpack_from(data, position)
    end = position + 8 + length
    return data[position + 8 : end].decode("utf-8", errors="surrogateescape"), end


def _after(data: mmap, kind: int, position: int) -> int:
    """Where a value ends."""
    if kind == STRING:
        return position + 8 + int(_U64.unpack_from(data, position)[0])
    if kind != ARRAY:
        return position + struct.calcsize(_scalar(kind))
    inner, count = _ARRAY_HEAD.unpack_from(data, position)
    position += _ARRAY_HEAD.size
    if inner != STRING:
        return position + int(count) * struct.calcsize(_scalar(inner))
    unpack = _U64.unpack_from
    for _ in range(count):  # half a million strings in a large vocabulary: a tenth of a second
        position += 8 + unpack(data, position)[0]
    return position


def _scalar(kind: int) -> str:
    layout = _SCALARS.get(kind)
    if layout is None:
        raise struct.error(f"values of type {kind} are not known")
    return f"<{layout}"
