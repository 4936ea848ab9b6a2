"""Sketches: a few thousand weights of a file, at places that its layout decides, by which a child finds its parent.

Two files are compared by the entropy of the differences of their samples, which is about what storing one as the
difference from the other costs. The differences are those of the codec: of values in their order as whole numbers, and
with a symbol of its own for a weight that became zero, so that a pruned model still knows what it was made from.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pressroom.store.formats import TensorInfo

Array = NDArray[Any]

# Samples of a file over all its tensors: 32 KB, which is enough to tell checkpoints of one run apart.
_BUDGET = 16_384
_RUN = 16  # neighbouring elements: one read brings them all
_MOST_RUNS = 16
_LEAST_ELEMENTS = 1024
_STEP = 0x9E3779B1  # 2**32 over the golden ratio: places that are spread evenly, however many are taken
_FAR = 4096  # differences from here on are one symbol, and cost their bits
_GONE = 2 * _FAR + 1
_WIDTHS = {"BF16": 2, "F16": 2, "I16": 2, "U16": 2, "F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8}
_SIGNED = frozenset({"I8", "I16", "I32", "I64"})
_UNSIGNED = frozenset({"U16", "U32", "U64"})

_PROBES = 32
_PROBE = 512
_PROBE_ENDS = 4096


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a tensor is sampled: `width` bytes an element, of which the upper `kept` are in the sketch."""

    position: int
    dtype: str
    nbytes: int
    width: int
    kept: int
    runs: tuple[int, ...]

    @property
    def order(self) -> str:
        """How its values are ordered."""
        if self.dtype in _SIGNED:
            return "signed"
        return "unsigned" if self.dtype in _UNSIGNED else "float"

    @property
    def size(self) -> int:
        return len(self.runs) * _RUN * self.kept


def _spots(tensors: Sequence[TensorInfo]) -> list[_Spot]:
    return _planned(tuple((len(t.shape), t.dtype, t.nbytes) for t in tensors))


@functools.lru_cache(maxsize=8)  # one layout is compared with that of many files
def _planned(tensors: tuple[tuple[int, str, int], ...]) -> list[_Spot]:
    eligible = [
        (position, dtype, nbytes)
        for position, (dimensions, dtype, nbytes) in enumerate(tensors)
        if dimensions > 1 and nbytes // _WIDTHS.get(dtype, 1) >= _LEAST_ELEMENTS
    ]
    count = max(1, min(_MOST_RUNS, _BUDGET // (_RUN * max(1, len(eligible)))))
    spots = []
    for position, dtype, nbytes in eligible:
        width = _WIDTHS.get(dtype, 1)
        last = nbytes // width - _RUN
        runs = tuple((((n + 1) * _STEP & 0xFFFFFFFF) * last) >> 32 for n in range(count))
        spots.append(_Spot(position, dtype, nbytes, width, min(width, 2), runs))
    return spots


def take(fd: int, tensors: Sequence[TensorInfo]) -> bytes:
    """The sketch of an open file with these tensors. Raises OSError; what is cut short comes as zeros."""
    parts = []
    for spot in _spots(tensors):
        start, length = tensors[spot.position].offset, _RUN * spot.width
        raw = b"".join(os.pread(fd, length, start + run * spot.width).ljust(length, b"\0") for run in spot.runs)
        parts.append(raw if spot.width == spot.kept else _upper(raw, spot))
    return b"".join(parts)


def _upper(raw: bytes, spot: _Spot) -> bytes:
    values = np.frombuffer(raw, np.uint8).reshape(-1, spot.width)
    return values[:, spot.width - spot.kept :].tobytes()


def probe(fd: int, size: int) -> bytes:
    """A digest over samples of an open file: two files with different ones differ. Raises OSError."""
    hasher = blake3(size.to_bytes(8, "little"))
    hasher.update(os.pread(fd, _PROBE_ENDS, 0))
    hasher.update(os.pread(fd, _PROBE_ENDS, max(0, size - _PROBE_ENDS)))
    for n in range(_PROBES):
        hasher.update(os.pread(fd, _PROBE, size * n // _PROBES))
    return hasher.digest(length=16)


def distance(
    tensors: Sequence[TensorInfo], sketch: bytes, others: Sequence[TensorInfo], other: bytes, common: Mapping[int, int]
) -> float:
    """What the file with `sketch` costs as the difference from the one with `other`, about: 0 (nothing) to 1 (all).

    `common` pairs the numbers of tensors that both have with the same name, type and shape. What neither has sampled is
    taken to cost as much as the rest.
    """
    mine, theirs = _values(tensors, sketch), _values(others, other)
    # Tensors whose values have the same order and width are compared at once.
    groups: dict[tuple[int, str], list[tuple[Array, Array, float]]] = {}
    for position, at in common.items():
        if position in mine and at in theirs:
            spot, child = mine[position]
            parent = theirs[at][1]
            count = min(len(child), len(parent))
            child, parent = child[:count], parent[:count]
            if spot.kept == 2:
                child = _unpruned(child, parent)
            groups.setdefault((spot.kept, spot.order), []).append((child, parent, spot.nbytes / count))
    symbols: dict[int, list[Array]] = {}
    weights: dict[int, list[Array]] = {}
    for (width, order), found in groups.items():
        child, parent = (np.concatenate([entry[n] for entry in found]) for n in (0, 1))
        symbols.setdefault(width, []).append(_symbols(child, parent, width, order))
        weights.setdefault(width, []).append(np.repeat([weight for *_, weight in found], [len(c) for c, *_ in found]))
    cost = total = 0.0
    for width in symbols:
        weight = np.concatenate(weights[width])
        cost += _entropy(np.concatenate(symbols[width]), weight, 8 * width) / (8 * width) * float(weight.sum())
        total += float(weight.sum())
    return cost / total if total else 1.0


def _values(tensors: Sequence[TensorInfo], sketch: bytes) -> dict[int, tuple[_Spot, Array]]:
    found = {}
    at = 0
    for spot in _spots(tensors):
        raw = np.frombuffer(sketch[at : at + spot.size], "<u2" if spot.kept == 2 else np.uint8)
        at += spot.size
        if len(raw) * spot.kept == spot.size:
            found[spot.position] = (spot, raw)
    return found


def _unpruned(child: Array, parent: Array) -> Array:
    """Pruning by magnitude takes the codec next to nothing, from the very parent it was done to: where the border
    between what went and what stayed is sharp, what went counts as unchanged.
    """
    gone = (child == 0) & (parent != 0)
    if gone.any() and not gone.all():
        magnitude = parent & 0x7FFF
        if magnitude[gone].max() < magnitude[~gone].min():
            return np.where(gone, parent, child)
    return child


def _symbols(child: Array, parent: Array, width: int, order: str) -> Array:
    gone = (child == 0) & (parent != 0)
    if width == 1:
        difference = (child.astype(np.int16) - parent).astype(np.int8).astype(np.int32)
    else:
        difference = _ordered(child, order) - _ordered(parent, order)
    return np.where(gone, _GONE, np.clip(difference, -_FAR, _FAR) + _FAR)


def _ordered(values: Array, order: str) -> Array:
    """The values as whole numbers in their own order: of floats the negative ones count down from zero."""
    if order == "signed":
        return values.view("<i2").astype(np.int32)
    if order == "unsigned":
        return values.astype(np.int32)
    return np.where(values >> 15, -(values & 0x7FFF).astype(np.int32), values)


def _entropy(symbols: Array, weights: Array, bits: int) -> float:
    counts = np.bincount(symbols, weights, minlength=_GONE + 1)
    share = counts / counts.sum()
    used = share[share > 0]
    return float(-(used * np.log2(used)).sum() + (share[0] + share[2 * _FAR]) * bits)
