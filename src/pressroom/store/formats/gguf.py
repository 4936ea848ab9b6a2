"""GGUF, versions 2 and 3, little-endian: the header and the table of tensors, never the data.

The rules are those of ggml's own reader, so that what is accepted here loads there: no nested lists, tensors packed in
the order of the table with nothing but padding between them, rows of whole blocks. On top come bounds on how much
a header may claim. Shapes are given outermost dimension first, as NumPy and safetensors write them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from pressroom.kernel.errors import WeightsError
from pressroom.store.formats._ggml import FILE_TYPES, TYPES
from pressroom.store.formats._naming import Named, dominant, plain, shares, storable
from pressroom.store.formats._window import Window
from pressroom.store.formats.base import TensorInfo, WeightsInfo

MAGIC = b"GGUF"

_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_MOST_NAME = 64  # GGML_MAX_NAME
_MOST_KEY = 65_535  # the specification's 2**16 - 1
# Far above what any model has (a few hundred keys, thousands of tensors, half a million strings), and low enough that
# a header made of nothing but claims is refused within seconds.
_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 18
_MOST_STRINGS = 1 << 24
_MOST_TEXT_BYTES = 8192

_HEAD = struct.Struct("<4sI")
_COUNTS = struct.Struct("<QQ")
_U32 = struct.Struct("<I")
_ARRAY_HEAD = struct.Struct("<IQ")
_PLACE = struct.Struct("<IQ")
_SHAPES = tuple(struct.Struct(f"<{dimensions}Q") for dimensions in range(_MOST_DIMENSIONS + 1))
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_UNSIGNED_32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9


@dataclass(slots=True)
class _Keys:
    """What the key-value part says: scalars as they are, of lists only how long they are."""

    scalars: dict[str, str | int | float | bool] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    alignment: int = _ALIGNMENT


def read(named: Named) -> WeightsInfo:
    """Raises MalformedWeightsError, WeightsError (one part of a split model), StoreError and NotFoundError."""
    with Window(named) as window:
        magic, version = window.unpack(_HEAD, "the magic number and version")
        if magic != MAGIC:
            raise named.malformed(f"it begins with {magic!r}, and GGUF with {MAGIC!r}")
        _check_version(named, version)
        tensor_count, key_count = window.unpack(_COUNTS, "the counts of tensors and keys")
        if key_count > _MOST_KEYS or tensor_count > _MOST_TENSORS:
            raise named.malformed(
                f"its header claims {key_count} keys and {tensor_count} tensors; at most {_MOST_KEYS} and "
                f"{_MOST_TENSORS} are read"
            )
        keys = _read_keys(window, key_count)
        parts = keys.scalars.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise WeightsError(
                f"{named.name!r} is one of {parts} parts of a split model",
                hint="Join the parts into one file with `llama-gguf-split --merge`, then pull that.",
                file=named.name,
                parts=parts,
            )
        tensors = _read_tensors(window, tensor_count, keys.alignment)
    return _described(named, keys, tensors)


def _check_version(named: Named, version: int) -> None:
    if version & 0xFFFF == 0:
        raise named.malformed(
            "it is GGUF for big-endian machines",
            hint="Fetch the little-endian file, or convert this one with gguf-py's gguf_convert_endian.py.",
        )
    if version not in (2, 3):
        raise named.malformed(
            f"it is GGUF version {version}, and versions 2 and 3 are read",
            hint="Convert the model again with a current llama.cpp." if version == 1 else "",
            version=version,
        )


def _read_keys(window: Window, count: int) -> _Keys:
    keys = _Keys()
    strings = 0
    for number in range(count):
        key = _read_name(window, f"the name of key {number}", _MOST_KEY)
        if key in keys.scalars or key in keys.lengths:
            raise window.named.malformed(f"the key {key!r} occurs twice")
        kind: int = window.unpack(_U32, f"the type of {key!r}")[0]
        if kind == _STRING:
            keys.scalars[key] = _read_text(window, f"the value of {key!r}")
        elif kind == _ARRAY:
            keys.lengths[key], stepped = _skip_list(window, key, _MOST_STRINGS - strings)
            strings += stepped
        elif kind in _SCALARS:
            value = window.unpack(_SCALARS[kind], f"the value of {key!r}")[0]
            keys.scalars[key] = storable(bool(value) if kind == _BOOL else value)
        else:
            raise window.named.malformed(f"the key {key!r} has the unknown type {kind}")
        if key == "general.alignment":
            keys.alignment = _checked_alignment(window, kind, keys.scalars.get(key))
    return keys


def _checked_alignment(window: Window, kind: int, value: object) -> int:
    if kind != _UNSIGNED_32 or not isinstance(value, int) or value == 0 or value & (value - 1):
        raise window.named.malformed(
            f"general.alignment is {value!r}, and must be a power of two as a 32-bit unsigned number"
        )
    return value


def _read_name(window: Window, what: str, most: int) -> str:
    length = window.u64(what)
    if not 0 < length <= most:
        raise window.named.malformed(f"{what} is {length} bytes long; 1 to {most} are allowed")
    try:
        return window.take(length, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise window.named.malformed(f"{what} is not UTF-8") from error


def _read_text(window: Window, what: str) -> str:
    length = window.u64(what)
    text = window.take(min(length, _MOST_TEXT_BYTES), what).decode("utf-8", errors="replace")
    window.skip(max(0, length - _MOST_TEXT_BYTES), what)
    return plain(text)


def _skip_list(window: Window, key: str, most_strings: int) -> tuple[int, int]:
    """Step over a list; returns its length and how many of its entries had to be looked at one by one."""
    kind, count = window.unpack(_ARRAY_HEAD, f"the head of the list {key!r}")
    what = f"the list {key!r} of {count} entries"
    if kind == _STRING:
        if count * 8 > window.left:  # an empty string takes the 8 bytes of its length
            raise window.named.malformed(f"{what} cannot fit into the {window.left} bytes that are left of the file")
        if count > most_strings:
            raise window.named.malformed(f"{what} makes more than {_MOST_STRINGS} strings in the header")
        window.skip_strings(count, what)
        return count, count
    if kind not in _SCALARS:
        nested = " of lists, which ggml does not read either" if kind == _ARRAY else f" of the unknown type {kind}"
        raise window.named.malformed(f"{what} is a list{nested}")
    window.skip(count * _SCALARS[kind].size, what)
    return count, 0


def _read_tensors(window: Window, count: int, alignment: int) -> tuple[TensorInfo, ...]:
    named = window.named
    if not count:
        raise named.malformed("it holds no tensors", hint="It may be a vocabulary only: fetch the model itself.")
    relative: list[TensorInfo] = []
    seen: set[str] = set()
    end = 0
    for number in range(count):
        name = _read_name(window, f"the name of tensor {number}", _MOST_NAME)
        if name in seen:
            raise named.malformed(f"the tensor {name!r} occurs twice")
        seen.add(name)
        tensor = _read_tensor(window, name)
        if tensor.offset % alignment:
            raise named.malformed(f"the tensor {name!r} starts at {tensor.offset}, not at a multiple of {alignment}")
        expected = -(-end // alignment) * alignment
        if tensor.offset != expected:
            kind = "overlaps the one before it" if tensor.offset < expected else "leaves a hole before it"
            raise named.malformed(f"the tensor {name!r} at {tensor.offset} of the data {kind}; {expected} is its place")
        end = tensor.offset + tensor.nbytes
        relative.append(tensor)
    data = -(-window.position // alignment) * alignment
    if data + end > window.size:
        raise named.malformed(
            f"its tensors end at byte {data + end}, and the file at byte {window.size}",
            hint="The download was cut short: fetch the file again.",
            needed=data + end,
            size=window.size,
        )
    return tuple(
        TensorInfo(name=t.name, dtype=t.dtype, shape=t.shape, offset=data + t.offset, nbytes=t.nbytes) for t in relative
    )


def _read_tensor(window: Window, name: str) -> TensorInfo:
    """One row of the table; its offset counts from the start of the data."""
    named = window.named
    dimensions: int = window.unpack(_U32, f"the dimensions of {name!r}")[0]
    if dimensions > _MOST_DIMENSIONS:
        raise named.malformed(f"the tensor {name!r} has {dimensions} dimensions; at most {_MOST_DIMENSIONS} are read")
    shape = window.unpack(_SHAPES[dimensions], f"the shape of {name!r}")
    elements = 1
    for n in shape:
        elements *= n
    if not 0 < elements < 1 << 63:
        raise named.malformed(f"the tensor {name!r} has the impossible shape {list(reversed(shape))}")
    number, offset = window.unpack(_PLACE, f"the place of {name!r}")
    kind = TYPES.get(number)
    if kind is None:
        raise named.malformed(
            f"the tensor {name!r} is of type {number}, which ggml does not know",
            hint="It may be written for a fork of llama.cpp, or by a newer one than this Pressroom knows.",
            type=number,
        )
    row = shape[0] if shape else 1
    if row % kind.elements:
        raise named.malformed(
            f"the tensor {name!r} has rows of {row}, and {kind.name} comes in blocks of {kind.elements}"
        )
    nbytes = elements // kind.elements * kind.nbytes
    return TensorInfo(name=name, dtype=kind.name, shape=tuple(reversed(shape)), offset=offset, nbytes=nbytes)


def _described(named: Named, keys: _Keys, tensors: tuple[TensorInfo, ...]) -> WeightsInfo:
    elements: dict[str, int] = {}
    for tensor in tensors:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.elements
    architecture = _text(named, keys, "general.architecture")
    model, pre = _text(named, keys, "tokenizer.ggml.model"), _text(named, keys, "tokenizer.ggml.pre")
    vocabulary = keys.lengths.get("tokenizer.ggml.tokens") or _count(named, keys, f"{architecture}.vocab_size")
    template = keys.scalars.pop("tokenizer.chat_template", None)
    metadata = dict(keys.scalars)
    metadata["chat_template"] = bool(template)
    metadata["tensor_types"] = shares(elements)
    return WeightsInfo(
        format="gguf",
        architecture=architecture,
        parameters=sum(elements.values()),
        tokenizer=f"{model} ({pre})" if model and pre else model,
        vocabulary=vocabulary,
        context_length=_count(named, keys, f"{architecture}.context_length"),
        quantization=_quantization(named, keys, elements),
        license=_text(named, keys, "general.license"),
        metadata=metadata,
        tensors=tensors,
    )


def _quantization(named: Named, keys: _Keys, elements: dict[str, int]) -> str | None:
    """The name of the mixture, unless it claims plain numbers and the tensors are something else."""
    most = dominant(elements)
    number = _count(named, keys, "general.file_type", low=0)
    claimed = FILE_TYPES.get(number) if number is not None else None
    return most if claimed is None or claimed in ("F32", "F16", "BF16") else claimed


def _text(named: Named, keys: _Keys, key: str) -> str | None:
    value = keys.scalars.get(key)
    if key in keys.lengths or not isinstance(value, str | None):
        raise named.malformed(f"{key} must be text")
    return value or None


def _count(named: Named, keys: _Keys, key: str, *, low: int = 1) -> int | None:
    value = keys.scalars.get(key)
    if value is None and key not in keys.lengths:
        return None
    if type(value) is not int or not low <= value < 1 << 32:
        raise named.malformed(f"{key} is {value!r}, and must be a whole number from {low} up")
    return value
