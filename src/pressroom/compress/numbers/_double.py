"""Scales that are rounded themselves: the double quantisation of QLoRA (arXiv 2305.14314), as bitsandbytes does it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

#: Scales that share a scale.
BLOCK = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DoubleQuantised:
    """Scales in 8 bits: scale = map[code] * absmax + offset.

    codes: uint8, one a scale, in their order. absmax: float32, one for 256 scales. offset: the mean of all scales.
    map: what the 256 codes stand for, float32. values: the scales as they come out again, shaped as they came.
    """

    codes: NDArray[np.uint8]
    absmax: Floats
    offset: float
    map: Floats
    values: Floats

    @property
    def nbytes(self) -> int:
        """Of what a file keeps for each matrix, without the map."""
        return self.codes.nbytes + self.absmax.nbytes + 4


def double_quantised(scales: Floats) -> DoubleQuantised:
    """The scales of a matrix in 8 bits, counted row after row."""
    flat = np.ascontiguousarray(scales, np.float32).reshape(-1)
    offset = np.float32(flat.mean(dtype=np.float64)) if flat.size else np.float32(0)
    table = dynamic_map()
    away = np.zeros(-(-flat.size // BLOCK) * BLOCK, np.float32)
    away[: flat.size] = flat - offset
    blocks = away.reshape(-1, BLOCK)
    absmax = np.abs(blocks).max(axis=1, initial=0).astype(np.float32)
    shares = np.divide(blocks, absmax[:, None], out=np.zeros_like(blocks), where=absmax[:, None] > 0)
    middles = (table[1:] + table[:-1]) / np.float32(2)
    codes = np.searchsorted(middles, shares, side="right").astype(np.uint8)
    values = (table[codes] * absmax[:, None]).reshape(-1)[: flat.size] + offset
    return DoubleQuantised(
        codes=codes.reshape(-1)[: flat.size].copy(),
        absmax=absmax,
        offset=float(offset),
        map=table,
        values=values.astype(np.float32).reshape(scales.shape),
    )


@cache
def dynamic_map() -> Floats:
    """The 256 numbers from -1 to 1 of bitsandbytes' 8-bit type: a sign, an exponent of ten that is told by how many
    zeros lead, and the bits that are then left for an even division of 0.1 to 1; with 0 and 1."""
    numbers = [0.0, 1.0]
    for exponent in range(7):
        edges = np.linspace(0.1, 1, 2**exponent + 1, dtype=np.float32)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (exponent - 6)
        numbers += [*middles.tolist(), *(-middles).tolist()]
    table = np.sort(np.array(numbers, np.float32))
    table.flags.writeable = False
    return table
