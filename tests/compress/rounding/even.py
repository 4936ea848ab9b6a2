"""A number format without scales: 256 even steps, in blocks of 16."""

from __future__ import annotations

from typing import Any

import numpy as np

from pressroom.compress.numbers import Grid, NumberFormat, Piece

STEP = np.float32(1 / 256)


class Steps(Grid):
    def nearest(self, values: Any, at: int) -> Any:
        return np.clip(np.rint(values / STEP) + 128, 0, 255).astype(np.uint8)

    def values(self, codes: Any, at: int) -> Any:
        return (codes.astype(np.float32) - 128) * STEP

    def pack(self, codes: Any) -> Any:
        return codes.copy()


class Even(NumberFormat):
    name = "even"
    ggml = None
    block = 16
    nbytes = 16

    def encode(self, rows: Any, importance: Any = None) -> Any:
        return Steps().nearest(rows, 0)

    def decode(self, data: Any) -> Any:
        return Steps().values(data, 0)

    def grid(self, rows: Any, importance: Any = None) -> Grid:
        return Steps()

    def layout(self) -> tuple[Piece, ...]:
        return tuple(Piece(8 * at, 8, "code", (at,)) for at in range(16))
