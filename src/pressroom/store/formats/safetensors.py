"""safetensors: a length, a JSON header, and tensors that fill the rest of the file without a hole.

The rules are those of the format's own library: no hole, no overlap, no byte after the last tensor, every tensor as
long as its shape and type say. Repeated keys are refused, which the library lets pass.
"""

from __future__ import annotations

import re
from typing import Any

from pressroom.store.formats._json import parsed_object
from pressroom.store.formats._naming import Named, dominant, plain, shares
from pressroom.store.formats._window import Window
from pressroom.store.formats.base import TensorInfo, WeightsInfo

# Bits an element, as of safetensors 0.8: the small types are packed, a tensor of them still ends at a whole byte.
BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
MOST_HEADER = 100_000_000  # the library's own bound

_MOST_ELEMENTS = 1 << 63
_METADATA = "__metadata__"
_SURROGATE = re.compile("[\ud800-\udfff]")


def read(named: Named) -> WeightsInfo:
    """Raises MalformedWeightsError, StoreError and NotFoundError."""
    with Window(named) as window:
        length = window.u64("the length of the header")
        if length > MOST_HEADER:
            raise named.malformed(f"its header claims {length} bytes; at most {MOST_HEADER} are read", length=length)
        header = _parsed(named, window.take(length, "the header"))
        start, size = window.position, window.size
    metadata = _metadata(named, header.pop(_METADATA, {}))
    tensors = _tensors(named, header, start, size)
    elements: dict[str, int] = {}
    for tensor in tensors:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.elements
    metadata["tensor_types"] = shares(elements)
    return WeightsInfo(
        format="safetensors",
        parameters=sum(elements.values()),
        quantization=dominant(elements),
        metadata=metadata,
        tensors=tensors,
    )


def _parsed(named: Named, raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise named.malformed(f"its header begins with {raw[:1]!r}, and must be a JSON object")
    return parsed_object(named, raw, "its header")


def _metadata(named: Named, found: object) -> dict[str, str | int | float | bool]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise named.malformed(f"{_METADATA} must hold text under each key")
    return {plain(key): plain(value) for key, value in found.items() if not _SURROGATE.search(key + value)}


def _tensors(named: Named, header: dict[str, Any], start: int, size: int) -> tuple[TensorInfo, ...]:
    if not header:
        raise named.malformed("it holds no tensors")
    tensors = [_tensor(named, name, entry, start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            kind = "overlaps the one before it" if tensor.offset < end else "leaves a hole before it"
            raise named.malformed(f"the tensor {tensor.name!r} at byte {tensor.offset} {kind}, which ends at {end}")
        end += tensor.nbytes
    if end != size:
        what = "was cut short" if end > size else "has bytes that belong to no tensor"
        raise named.malformed(
            f"its tensors end at byte {end}, the file at byte {size}: it {what}",
            hint="Fetch the file again and compare its digest with the publisher's.",
            needed=end,
            size=size,
        )
    return tuple(tensors)


def _tensor(named: Named, name: str, entry: object, start: int) -> TensorInfo:
    if _SURROGATE.search(name):
        raise named.malformed(f"the name of the tensor {name!r} is not Unicode text")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise named.malformed(f"the entry of the tensor {name!r} must be dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise named.malformed(
            f"the tensor {name!r} has the type {dtype!r}, which the format does not know",
            hint=f"Known: {', '.join(BITS)}.",
        )
    if not _naturals(shape):
        raise named.malformed(f"the shape of the tensor {name!r} must be a list of whole numbers")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise named.malformed(f"data_offsets of the tensor {name!r} must be two rising whole numbers")
    elements = 1
    for n in shape:
        elements *= n
        if elements >= _MOST_ELEMENTS:
            raise named.malformed(f"the tensor {name!r} has an impossible shape")
    nbytes, rest = divmod(elements * bits, 8)
    if rest:
        raise named.malformed(f"the tensor {name!r} of {elements} {dtype} does not end at a whole byte")
    begin, end = offsets
    if end - begin != nbytes:
        raise named.malformed(
            f"the tensor {name!r} takes {nbytes} bytes by its shape and type, and {end - begin} by its data_offsets"
        )
    return TensorInfo(name=name, dtype=dtype, shape=tuple(shape), offset=start + begin, nbytes=nbytes)


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)
