"""Whole numbers times a scale, as vLLM's kernels have them: a scale for a group of a row, or for the whole row.

Scales are rounded to the type that the engine keeps them in before the weights are rounded to them, so that what is
measured here is what runs there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.compress.numbers import Grid, NumberFormat, Piece, number_format
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

_SCALE_BYTES = 4
# Shares of the largest weight that are tried for where the codes end: what is clipped loses, the rest gains.
_SHARES = {8: (1.0, 0.98, 0.95), 4: tuple(np.linspace(1.05, 0.5, 23))}
_TINIEST = 1e-12


class WholeNumbers(NumberFormat):
    """`bits` a weight, codes from -2^(bits-1) to 2^(bits-1)-1, value = code * scale. `scale` is the type of the scale:
    f32, f16 or bf16. Encoded: a byte a code, plus 2^(bits-1), then the scale as float32."""

    name = "int"
    ggml = None
    block = 1
    nbytes = 1

    def __init__(self, bits: int, block: int, scale: str) -> None:
        self.width, self.scale = bits, scale
        self.half = 1 << (bits - 1)
        self.block, self.nbytes = block, block + _SCALE_BYTES
        self.name = f"int{bits}-{block}"
        self._scales = number_format(scale)

    def __eq__(self, other: object) -> bool:
        mine = (self.width, self.block, self.scale)
        return isinstance(other, WholeNumbers) and mine == (other.width, other.block, other.scale)

    def __hash__(self) -> int:
        return hash((self.width, self.block, self.scale))

    def encode(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        if not np.isfinite(rows).all():
            raise RecipeError("a weight is not finite", hint="Take a sound file.")
        groups = rows.reshape(-1, self.block)
        weights = None
        if importance is not None:
            weights = np.tile(importance.reshape(-1, self.block), (len(rows), 1))
        scales = self._best(groups, weights)
        codes = self._codes(groups, scales) + self.half
        return self._packed(codes.astype(np.uint8), scales).reshape(len(rows), -1)

    def decode(self, data: Bytes) -> Floats:
        codes, scales = self.parts(data)
        values = codes.reshape(*scales.shape, self.block).astype(np.float32) * scales[..., None]
        return values.reshape(len(data), -1)

    def parts(self, data: Bytes) -> tuple[NDArray[np.int8], Floats]:
        """The codes (rows, columns) and the scales (rows, groups)."""
        blocks = np.ascontiguousarray(data).reshape(len(data), -1, self.nbytes)
        codes = (blocks[..., : self.block].astype(np.int16) - self.half).astype(np.int8)
        scales = np.ascontiguousarray(blocks[..., self.block :]).view(np.float32)[..., 0]
        return codes.reshape(len(data), -1), scales

    def grid(self, rows: Floats, importance: Floats | None = None) -> Grid:
        weights = None if importance is None else np.broadcast_to(importance, rows.shape)
        return _Chosen(self, self._best(rows, weights))

    def layout(self) -> tuple[Piece, ...]:
        codes = [Piece(8 * n, 8, "code", (n,)) for n in range(self.block)]
        return (*codes, Piece(8 * self.block, 32, "scale", (0,)))

    def _best(self, groups: Floats, weights: NDArray[np.floating[Any]] | None) -> Floats:
        """The scale of each group (n, block) that loses least, of those tried, as the engine keeps it."""
        largest = np.abs(groups).max(axis=1)
        # One step more below zero than above: the largest may be either.
        ends = np.maximum(largest / (self.half - 0.5), _TINIEST)
        best, least = np.empty(0, np.float32), np.empty(0, np.float32)
        for share in _SHARES[self.width]:
            scales = self._kept(ends * np.float32(share))
            lost = np.square(groups - self._codes(groups, scales) * scales[:, None])
            loss = (lost if weights is None else lost * weights).sum(axis=1)
            if not len(best):
                best, least = scales, loss
            else:
                better = loss < least
                best, least = np.where(better, scales, best), np.where(better, loss, least)
        return best

    def _kept(self, scales: Floats) -> Floats:
        return self._scales.decode(self._scales.encode(scales.astype(np.float32)[:, None]))[:, 0]

    def _codes(self, groups: Floats, scales: Floats) -> Floats:
        found: Floats = np.clip(np.rint(groups / scales[:, None]), -self.half, self.half - 1)
        return found

    def _packed(self, codes: Bytes, scales: Floats) -> Bytes:
        raw = np.ascontiguousarray(scales, dtype=np.float32)[:, None].view(np.uint8)
        return np.concatenate([codes, raw], axis=1)


class _Chosen(Grid):
    def __init__(self, format: WholeNumbers, scales: Floats) -> None:
        self._format, self._scales = format, scales

    def nearest(self, values: Floats, at: int) -> Bytes:
        half = self._format.half
        found: Bytes = (np.clip(np.rint(values / self._scales), -half, half - 1) + half).astype(np.uint8)
        return found

    def values(self, codes: Bytes, at: int) -> Floats:
        return (codes.astype(np.float32) - self._format.half) * self._scales

    def pack(self, codes: Bytes) -> Bytes:
        return self._format._packed(codes, self._scales)
