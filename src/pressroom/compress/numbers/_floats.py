"""Floating point formats: every weight alone, nothing to choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pressroom.compress.numbers._bits import CODE
from pressroom.compress.numbers._rows import check_bytes, check_rows, checked_importance
from pressroom.compress.numbers.base import Grid, NumberFormat, Piece
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

_STEP = 1 << 20


class FloatFormat(NumberFormat):
    """A format of one weight, which NumPy stores as `stored`."""

    block = 1
    stored: ClassVar[str]

    def encode(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        check_rows(self, rows)
        checked_importance(rows.shape[1], importance)
        data = np.empty(rows.shape, self.stored)
        step = max(1, _STEP // rows.shape[1])
        for start in range(0, len(rows), step):
            data[start : start + step] = self._to_stored(np.ascontiguousarray(rows[start : start + step], np.float32))
        return data.view(np.uint8)

    def decode(self, data: Bytes) -> Floats:
        check_bytes(self, data)
        return self._from_stored(np.ascontiguousarray(data).view(self.stored))

    def grid(self, rows: Floats, importance: Floats | None = None) -> Grid:
        raise RecipeError(
            f"{self.name} keeps every weight alone: there is no grid to choose",
            hint="Round with encode.",
            format=self.name,
        )

    def layout(self) -> tuple[Piece, ...]:
        return (Piece(0, 8 * self.nbytes, CODE, (0,)),)

    def _to_stored(self, rows: Floats) -> NDArray[np.generic]:
        most = np.finfo(self.stored).max
        return np.clip(rows, -most, most).astype(self.stored)

    def _from_stored(self, stored: NDArray[np.generic]) -> Floats:
        return stored.astype(np.float32)
