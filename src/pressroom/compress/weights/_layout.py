"""Where everything will lie in a file that is to be written, and its header, before any data are there."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from pressroom.compress.numbers import NumberFormat
from pressroom.compress.weights._header import (
    ARRAY,
    BOOL,
    BROKEN,
    FLOAT_32,
    SIGNED_64,
    STRING,
    UNSIGNED_32,
    UNSIGNED_64,
    WHOLE,
    Row,
    encoded_counts,
    encoded_key,
    encoded_row,
)
from pressroom.compress.weights._reading import Weights
from pressroom.compress.weights._roles import Role, Tensor
from pressroom.kernel import RecipeError

#: What may stand under a key. GGUF's type of a key that is there already stays.
Scalar = str | int | float | bool

_FILE_TYPE = "general.file_type"
_VERSION = "general.quantization_version"
# GGML_QNT_VERSION: how ggml lays out its blocks, the same since 2023.
_QUANTIZATION_VERSION = 2
# llama.cpp's llama_ftype for a file that is mostly of one type of ggml. K-quants of one type throughout are called S.
_FILE_TYPES = {
    0: 0,  # F32
    1: 1,  # F16
    2: 2,  # Q4_0
    3: 3,  # Q4_1
    8: 7,  # Q8_0
    6: 8,  # Q5_0
    7: 9,  # Q5_1
    10: 10,  # Q2_K
    11: 11,  # Q3_K_S
    12: 14,  # Q4_K_S
    13: 16,  # Q5_K_S
    14: 18,  # Q6_K
    20: 25,  # IQ4_NL
    23: 30,  # IQ4_XS
    30: 32,  # BF16
    34: 36,  # TQ1_0
    35: 37,  # TQ2_0
}
# What the layout of the file hangs on, and what no change of number formats can make true.
_FIXED = ("general.alignment", "general.architecture")


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in the file to be: `nbytes` bytes from `offset` of the file on, then `padding` zeros."""

    tensor: Tensor
    number: int
    offset: int
    nbytes: int
    padding: int


@dataclass(frozen=True, slots=True)
class Layout:
    """`header` goes up to the first tensor's data; `size` is the whole file's."""

    header: bytes
    places: tuple[Place, ...]
    size: int


def lay_out(source: Weights, formats: Mapping[str, NumberFormat], metadata: Mapping[str, Scalar]) -> Layout:
    """The file with the tensors in `formats` in these and all others as they are.

    Raises:
        RecipeError: the metadata cannot be changed like that.
    """
    alignment = source.alignment
    numbers = {name: tensor.number for name, tensor in source.tensors.items()}
    sizes = {name: tensor.nbytes for name, tensor in source.tensors.items()}
    for name, format in formats.items():
        assert format.ggml is not None, "the plan looked at that"
        numbers[name] = format.ggml
        sizes[name] = source.tensors[name].elements // format.block * format.nbytes
    rows, relative, offset = [], [], 0
    for tensor in source.tensors.values():
        rows.append(Row(tensor.name, tensor.shape, numbers[tensor.name], offset))
        relative.append(offset)
        offset += sizes[tensor.name] + -sizes[tensor.name] % alignment
    header = _header(source, rows, _metadata(source, numbers, metadata, changes=bool(formats)))
    start = len(header)
    places = [
        Place(tensor, row.number, start + row.offset, sizes[tensor.name], -sizes[tensor.name] % alignment)
        for tensor, row in zip(source.tensors.values(), rows, strict=True)
    ]
    if not padded(source):
        last = places[-1]
        places[-1] = Place(last.tensor, last.number, last.offset, last.nbytes, 0)
    return Layout(header, tuple(places), places[-1].offset + places[-1].nbytes + places[-1].padding)


def padded(source: Weights) -> bool:
    """Whether the last tensor is padded like the others: llama.cpp's writers do that, and some others do not."""
    last = list(source.tensors.values())[-1]
    end = last.offset + last.nbytes
    return source.size > end or end % source.alignment == 0


def _header(source: Weights, rows: list[Row], metadata: Mapping[str, Scalar]) -> bytes:
    """The key-value part byte for byte, except for what changes; new keys come behind those that are there."""
    old = source.header
    keys = len(old.entries) + len(metadata.keys() - old.entries.keys())
    parts = [encoded_counts(old.version, tensors=len(rows), keys=keys)]
    for entry in old.entries.values():
        if entry.key in metadata:
            parts.append(_encoded(source, entry.key, metadata[entry.key]))
        else:
            parts.append(source.data[entry.start : entry.end])
    parts += [_encoded(source, key, value) for key, value in metadata.items() if key not in old.entries]
    parts += [encoded_row(row) for row in rows]
    length = sum(map(len, parts))
    return b"".join([*parts, bytes(-length % source.alignment)])


def _metadata(
    source: Weights, numbers: Mapping[str, int], given: Mapping[str, Scalar], *, changes: bool
) -> dict[str, Scalar]:
    """What is said anew: what is given, and what follows from the tensors' types where these change."""
    found = said_of(_counts(source, numbers)) if changes else {}
    return found | dict(given)


def said_of(counts: Mapping[int, int]) -> dict[str, Scalar]:
    """What metadata say of a file whose layers have so many weights of each of ggml's types."""
    most = min(counts, key=lambda number: (-counts[number], number))
    kind = _FILE_TYPES.get(most)
    found: dict[str, Scalar] = {} if kind is None else {_FILE_TYPE: kind}
    return found | {_VERSION: _QUANTIZATION_VERSION}


def _counts(source: Weights, numbers: Mapping[str, int]) -> dict[int, int]:
    """The weights of each type in the linear layers; in all tensors where there are none."""
    counts: dict[int, int] = {}
    for tensor in source.of_role(Role.LINEAR, Role.EXPERTS) or source.tensors.values():
        number = numbers[tensor.name]
        counts[number] = counts.get(number, 0) + tensor.elements
    return counts


def _encoded(source: Weights, key: str, value: Scalar) -> bytes:
    """A key with a new value, in the type that it has in the file, or else the usual one."""
    if key in _FIXED or key.startswith("split.") or not 0 < len(key.encode()) < 1 << 16:
        raise RecipeError(
            f"the key {key[:100]!r} of a GGUF file cannot be set",
            hint="Set keys like general.* and quantize.*; the alignment, the architecture and splits stay as they are.",
            key=key[:100],
        )
    entry = source.header.entries.get(key)
    kind = None if entry is None else entry.kind
    allowed, usual = kinds_of(value)
    if kind is not None and kind not in allowed:
        is_list = "a list" if kind == ARRAY else "of another type"
        raise RecipeError(
            f"the key {key!r} is {is_list} in {source.called}, and cannot become {value!r}",
            hint="Give a value of the type that the file has.",
            key=key,
        )
    try:
        return encoded_key(key, usual if kind is None else kind, value)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise RecipeError(
            f"the value {value!r} does not fit the key {key!r}: {error}", hint="Give another value.", key=key
        ) from error


def kinds_of(value: Scalar) -> tuple[tuple[int, ...], int]:
    """The types of GGUF that a value may have, and the usual one."""
    if isinstance(value, str):
        return (STRING,), STRING
    if isinstance(value, bool):
        return (BOOL,), BOOL
    if isinstance(value, float):
        return BROKEN, FLOAT_32
    return WHOLE, UNSIGNED_32 if 0 <= value < 1 << 32 else SIGNED_64 if value < 1 << 63 else UNSIGNED_64
