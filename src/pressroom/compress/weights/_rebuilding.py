"""Writing a file of weights that is another model: tensors of other shapes, fewer or more of them, other metadata."""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.numbers import NumberFormat, number_format
from pressroom.compress.weights._header import (
    ARRAY,
    BOOL,
    BROKEN,
    SIGNED_32,
    SIGNED_64,
    STRING,
    WHOLE,
    Row,
    encoded_counts,
    encoded_key,
    encoded_list,
    encoded_row,
    inner_kind,
)
from pressroom.compress.weights._layout import Scalar, kinds_of, padded, said_of
from pressroom.compress.weights._reading import Weights, format_of, made_tensor, open_weights
from pressroom.compress.weights._roles import Role, Tensor
from pressroom.compress.weights._writing import HiddenFile, Piece, in_pieces, make_ready, write_pieces
from pressroom.kernel import RecipeError, StoreError

Values = Scalar | Sequence[Scalar]

_FIXED = ("general.alignment",)
_MOST_F16 = 65504.0
# A changed tensor's largest weight may grow by as much, and still be a number of f16.
_MARGIN = 8.0
_ROWS = 4096
_STEP = 16 << 20


@dataclass(frozen=True, slots=True)
class New:
    """A tensor that the source does not have like this. `shape` has the outermost dimension first; the data are its
    bytes in `format`, or a function that gives them in pieces, row after row, when its turn in the file has come."""

    format: NumberFormat
    shape: tuple[int, ...]
    data: Piece | Callable[[], Iterable[Piece]]

    @classmethod
    def of(cls, values: NDArray[np.float32], like: Tensor | None = None) -> New:
        """Numbers as a tensor: as `like` where that is f32 or bf16, else f16, or f32 where f16 has no room for one. Of
        one dimension (norms, biases) they are f32, as llama.cpp wants them.

        Raises:
            RecipeError: one of them is infinite or not a number.
        """
        values = np.ascontiguousarray(values, np.float32)
        most = float(np.abs(values).max()) if values.size else 0.0
        name = like.type.lower() if like is not None and like.type in ("F32", "BF16") else "f16"
        if values.ndim < 2 or (name == "f16" and most > _MOST_F16):
            name = "f32"
        format = number_format(name)
        rows = values.reshape(1, -1) if values.ndim < 2 else values.reshape(-1, values.shape[-1])
        return cls(format, values.shape, format.encode(rows))


def float_format(source: Weights, name: str) -> NumberFormat:
    """The format that a tensor is written in once its weights have changed: its own where that is f32 or bf16, else
    f16, or f32 where a weight of the source comes near to what f16 has no room for. Raises RecipeError."""
    tensor = source.tensor(name)
    if tensor.type in ("F32", "BF16"):
        return format_of(tensor)
    for start in range(0, tensor.rows, _ROWS):
        if np.abs(source.rows(name, start, start + _ROWS)).max() > _MOST_F16 / _MARGIN:
            return number_format("f32")
    return number_format("f16")


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor of the file to be, where its data come from, and what comes behind them."""

    tensor: Tensor
    given: str | New
    padding: int


def rebuild(
    path: Path,
    source: Weights,
    tensors: Mapping[str, str | New],
    *,
    metadata: Mapping[str, Values | None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a file that has exactly these tensors, in their order; returns its size in bytes.

    A tensor is `New`, or the name of one of the source, whose bytes are taken as they are (under another name, too).
    The metadata are the source's byte for byte but for the keys in `metadata`: a value, a list of values, or None for a
    key that is to go. general.file_type and general.quantization_version follow from the tensors unless they are given.
    What must fit to the tensors, such as the number of layers, is the caller's to say. The file is read again, and has
    its name only when every tensor and every key that was set is in it as it should be; see `write` for the rest.

    Raises:
        RecipeError: a tensor is not in the source, has a shape that is none or does not fit its format, or data of
            another length; a key cannot be set; the target is the source.
        StoreFullError: there is no room, which is said before the first byte is written where it is known by then.
        StoreError: the place cannot be written.
        Exception: what a function of a tensor raises. Nothing is left under the name in any of these cases.
    """
    _refuse(source, tensors)
    keys = _keys(source, tensors, metadata or {})
    header, parts = _laid_out(source, tensors, keys, {key for key, value in (metadata or {}).items() if value is None})
    size = len(header) + sum(part.tensor.nbytes + part.padding for part in parts)
    make_ready(path, source, size)
    digests: dict[str, bytes] = {}
    with HiddenFile(path, size, progress) as file:
        file.write(memoryview(header))
        for part in parts:
            _write_part(file, source, part, digests)
            file.write(memoryview(bytes(part.padding)))
        file.finish(lambda made: _check(made, path.name, parts, digests, keys))
    return size


def sketch(
    path: Path,
    source: Weights,
    tensors: Mapping[str, str | tuple[str, tuple[int, ...]]],
    *,
    metadata: Mapping[str, Values | None] | None = None,
) -> int:
    """A file that `rebuild` would write but for its data, which are zeros that take no room; returns its size. A tensor
    is the name of one of the source that it will be like, or the name of a format and a shape.

    Raises:
        RecipeError: as `rebuild`. StoreError: the place cannot be written.
    """
    asked = {
        name: given if isinstance(given, str) else New(number_format(given[0]), given[1], b"")
        for name, given in tensors.items()
    }
    _refuse(source, asked)
    gone = {key for key, value in (metadata or {}).items() if value is None}
    header, parts = _laid_out(source, asked, _keys(source, asked, metadata or {}), gone)
    size = len(header) + sum(part.tensor.nbytes + part.padding for part in parts)
    try:
        path.write_bytes(header)
        os.truncate(path, size)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", path=str(path)) from error
    return size


def _refuse(source: Weights, tensors: Mapping[str, str | New]) -> None:
    if not tensors:
        raise RecipeError("a file of weights without tensors is none", hint="Keep some.")
    unknown = [given for given in tensors.values() if isinstance(given, str) and given not in source.tensors]
    if unknown:
        raise source.unknown(unknown)
    wrong = []
    for name, given in tensors.items():
        if isinstance(given, str):
            continue
        shape, format = given.shape, given.format
        if not 0 < len(name.encode()) < 64:  # ggml's names have 64 bytes with a zero at the end
            wrong.append(f"{name[:80]!r} is no name of a tensor, which has 1 to 63 bytes")
        elif not 1 <= len(shape) <= 4 or min(shape) < 1:
            wrong.append(f"{name} has the shape {list(shape)}, and tensors have 1 to 4 dimensions of 1 or more")
        elif format.ggml is None:
            wrong.append(f"{name}: GGUF has no type for {format.name}")
        elif not format.fits(shape[-1]):
            wrong.append(
                f"{name}: rows of {shape[-1]} are no whole blocks of {format.block}, as {format.name} has them"
            )
    if wrong:
        raise RecipeError(
            f"{len(wrong)} tensor{'s' if len(wrong) > 1 else ''} cannot be written: " + "; ".join(wrong[:20]),
            hint="Choose another shape or format for these.",
            problems=wrong,
        )


def _laid_out(
    source: Weights, tensors: Mapping[str, str | New], keys: Mapping[str, Values], gone: set[str]
) -> tuple[bytes, list[_Part]]:
    rows, parts, offset = [], [], 0
    for name, given in tensors.items():
        if isinstance(given, str):
            old = source.tensors[given]
            shape, type, number, nbytes = old.shape, old.type, old.number, old.nbytes
        else:
            assert given.format.ggml is not None, "it was refused"
            shape, type, number = given.shape, given.format.name.upper(), given.format.ggml
            nbytes = math.prod(shape) // given.format.block * given.format.nbytes
        tensor = made_tensor(name, shape, type, number, offset, nbytes)
        padding = -nbytes % source.alignment
        rows.append(Row(name, shape, number, offset))
        parts.append(_Part(tensor, given, padding))
        offset += nbytes + padding
    if not padded(source):
        parts[-1] = _Part(parts[-1].tensor, parts[-1].given, 0)
    old_keys = [entry for entry in source.header.entries.values() if entry.key not in gone]
    count = len(old_keys) + len(keys.keys() - source.header.entries.keys())
    pieces = [encoded_counts(source.header.version, tensors=len(rows), keys=count)]
    for entry in old_keys:
        if entry.key in keys:
            pieces.append(_encoded(source, entry.key, keys[entry.key]))
        else:
            pieces.append(source.data[entry.start : entry.end])
    pieces += [_encoded(source, key, value) for key, value in keys.items() if key not in source.header.entries]
    pieces += [encoded_row(row) for row in rows]
    length = sum(map(len, pieces))
    return b"".join([*pieces, bytes(-length % source.alignment)]), parts


def _keys(source: Weights, tensors: Mapping[str, str | New], given: Mapping[str, Values | None]) -> dict[str, Values]:
    counts: dict[int, int] = {}
    every: dict[int, int] = {}
    for name, one in tensors.items():
        old = source.tensors[one] if isinstance(one, str) else None
        number = old.number if old is not None else one.format.ggml  # type: ignore[union-attr]
        shape = old.shape if old is not None else one.shape  # type: ignore[union-attr]
        assert number is not None
        role = made_tensor(name, shape, "", number, 0, 0).role
        every[number] = every.get(number, 0) + math.prod(shape)
        if role in (Role.LINEAR, Role.EXPERTS):
            counts[number] = counts.get(number, 0) + math.prod(shape)
    found: dict[str, Values] = dict(said_of(counts or every))
    found |= {key: value for key, value in given.items() if value is not None}
    return {key: value for key, value in found.items() if key not in given or given[key] is not None}


def _encoded(source: Weights, key: str, value: Values) -> bytes:
    """A key with a new value: of the type that it has in the file where that can hold it, else of the usual one."""
    if key in _FIXED or key.startswith("split.") or not 0 < len(key.encode()) < 1 << 16:
        raise RecipeError(
            f"the key {key[:100]!r} of a GGUF file cannot be set",
            hint="The alignment and splits stay as they are.",
            key=key[:100],
        )
    entry = source.header.entries.get(key)
    try:
        if isinstance(value, str | int | float):
            allowed, usual = kinds_of(value)
            return encoded_key(key, entry.kind if entry is not None and entry.kind in allowed else usual, value)
        old = inner_kind(source.data, entry) if entry is not None and entry.kind == ARRAY else None
        return encoded_list(key, _inner(value, old), value)
    except (struct.error, OverflowError, UnicodeEncodeError, TypeError) as error:
        raise RecipeError(
            f"the value {str(value)[:200]} does not fit the key {key!r}: {error}", hint="Give another value.", key=key
        ) from error


def _inner(values: Sequence[Scalar], old: int | None) -> int:
    """The type that the values of a list are written in. Raises TypeError where they are not of one kind."""
    cases: tuple[tuple[Any, tuple[int, ...], int], ...] = (
        (bool, (BOOL,), BOOL),
        (str, (STRING,), STRING),
        (int, WHOLE, SIGNED_32),
        (float, BROKEN, BROKEN[0]),
    )
    for kind, allowed, usual in cases:
        if all(type(value) is kind for value in values):
            if old in allowed:
                return old
            large = kind is int and any(not -(1 << 31) <= value < 1 << 31 for value in values)  # type: ignore[operator]
            return SIGNED_64 if large else usual
    raise TypeError("a list holds texts, whole numbers, numbers or truth values, and only one of these")


def _write_part(file: HiddenFile, source: Weights, part: _Part, digests: dict[str, bytes]) -> None:
    hashed = hashlib.blake2b(digest_size=16)
    tensor, given = part.tensor, part.given

    def seen(pieces: Iterable[memoryview]) -> Iterator[memoryview]:
        for piece in pieces:
            hashed.update(piece)
            yield piece

    if isinstance(given, str):
        for piece in seen(_raw(source, given)):
            file.write(piece)
    else:
        write_pieces(file, tensor, given.format, tensor.nbytes, seen(in_pieces(given.data)))
    digests[tensor.name] = hashed.digest()


def _raw(source: Weights, name: str) -> Iterator[memoryview]:
    data = source.raw(name)
    for start in range(0, len(data), _STEP):
        yield data[start : start + _STEP]


def _check(made: Path, name: str, parts: list[_Part], digests: Mapping[str, bytes], keys: Mapping[str, Values]) -> None:
    """Raises RecipeError where what is on the disk is not what was made."""
    with open_weights(made, called=name) as written:
        wrong = [] if list(written.tensors) == [part.tensor.name for part in parts] else ["the table of tensors"]
        for part in parts if not wrong else ():
            tensor = written.tensors[part.tensor.name]
            hashed = hashlib.blake2b(digest_size=16)
            for piece in _raw(written, tensor.name):
                hashed.update(piece)
            same = (tensor.shape, tensor.number) == (part.tensor.shape, part.tensor.number)
            if not same or hashed.digest() != digests[tensor.name]:
                wrong.append(tensor.name)
        for key, value in keys.items():
            found = written.value(key)
            if not _alike(found, list(value) if not isinstance(value, str | int | float) else value):
                wrong.append(key)
    if wrong:
        raise RecipeError(
            f"the file that was written does not hold what was made: {', '.join(wrong[:5])}",
            hint="Check the disk and the memory, then try again.",
            tensors=wrong,
        )


def _alike(found: Any, value: Any) -> bool:
    """Whether a value is as it was set; a number that is none of float32 is the nearest."""
    if isinstance(value, list):
        return isinstance(found, list) and len(found) == len(value) and all(map(_alike, found, value))
    if isinstance(value, float):
        return isinstance(found, float) and bool(np.float32(found) == np.float32(value))
    return bool(found == value)
