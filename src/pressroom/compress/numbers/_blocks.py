"""What all formats of blocks share: rows go in, are cut, searched and packed, and come out again."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.numbers._bits import CODE, Part, packed, unpacked
from pressroom.compress.numbers._fitting import inverse
from pressroom.compress.numbers._levels import Levels
from pressroom.compress.numbers._rows import (
    PIECE,
    Blocks,
    blocks_of,
    check_bytes,
    check_rows,
    checked_importance,
    tiles,
)
from pressroom.compress.numbers.base import Grid, NumberFormat, Piece
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]
    Fields = dict[str, Bytes]


@dataclass(frozen=True, slots=True)
class Lines:
    """What makes values of levels: level * step + offset, each (sub-blocks, blocks)."""

    step: Floats
    offset: Floats | None


class BlockFormat(NumberFormat):
    """A format by its tables: the levels, and where the bits are."""

    #: Sub-blocks with scales of their own.
    subs: int = 1
    levels: Levels
    parts: tuple[Part, ...]

    @abstractmethod
    def choose(self, blocks: Blocks) -> Fields:
        """The scales of each block, as the fields that hold them, (items, blocks)."""

    @abstractmethod
    def lines(self, fields: Fields) -> Lines:
        """What these scales make of levels, as llama.cpp computes it."""

    def encode(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        check_rows(self, rows)
        importance = checked_importance(rows.shape[1], importance)
        count, across = rows.shape[0], rows.shape[1] // self.block
        data = np.empty((count, across, self.nbytes), np.uint8)
        for tile in tiles(count, across, self.block):
            columns = slice(tile.blocks.start * self.block, tile.blocks.stop * self.block)
            weights = np.ascontiguousarray(rows[tile.rows, columns], np.float32)
            fields = self._scales(weights, None if importance is None else importance[columns])
            each = weights.reshape(-1, self.block)
            fields[CODE] = self._codes(each, self.lines(fields))
            high, wide, _ = data[tile.rows, tile.blocks].shape
            data[tile.rows, tile.blocks] = packed(self.parts, fields, self.nbytes).T.reshape(high, wide, self.nbytes)
        return data.reshape(count, across * self.nbytes)

    def decode(self, data: Bytes) -> Floats:
        check_bytes(self, data)
        blocks = data.reshape(-1, self.nbytes)
        rows = np.empty((len(blocks), self.block), np.float32)
        step = max(1, PIECE // self.block)
        for start in range(0, len(blocks), step):
            fields = unpacked(self.parts, np.ascontiguousarray(blocks[start : start + step].T))
            with np.errstate(invalid="ignore", over="ignore"):  # a damaged file may hold infinite scales
                rows[start : start + step] = self._values(fields[CODE], self.lines(fields)).T
        return rows.reshape(data.shape[0], data.shape[1] // self.nbytes * self.block)

    def grid(self, rows: Floats, importance: Floats | None = None) -> Grid:
        check_rows(self, rows)
        importance = checked_importance(rows.shape[1], importance)
        if rows.shape[1] != self.block:
            raise RecipeError(
                f"a grid of {self.name} was asked for {rows.shape[1]} columns",
                hint=f"Give the {self.block} columns of one block.",
                columns=rows.shape[1],
                block=self.block,
            )
        step = max(1, PIECE // self.block)
        found = [
            self._scales(np.ascontiguousarray(rows[start : start + step], np.float32), importance)
            for start in range(0, max(len(rows), 1), step)
        ]
        return BlockGrid(self, {name: np.concatenate([one[name] for one in found], axis=1) for name in found[0]})

    def layout(self) -> tuple[Piece, ...]:
        return tuple(sorted((piece for part in self.parts for piece in part.pieces()), key=lambda piece: piece.at))

    def _scales(self, weights: Floats, importance: Floats | None) -> Fields:
        return self.choose(blocks_of(weights, importance, block=self.block, subs=self.subs))

    def _codes(self, each: Floats, lines: Lines) -> Bytes:
        """The nearest codes, (block, blocks), of blocks (blocks, block)."""
        count = len(each)
        # A copy in any case: a matrix of one block is contiguous either way round, and would be changed in place.
        t = np.array(each.T, order="C").reshape(self.subs, self.block // self.subs, count)
        if lines.offset is not None:
            t -= lines.offset[:, None]
        with np.errstate(over="ignore"):
            t *= inverse(lines.step)[:, None]
        self.levels.round(t)
        return self.levels.codes(t).reshape(self.block, count)

    def _values(self, codes: Bytes, lines: Lines) -> Floats:
        values = self.levels.of(codes).reshape(self.subs, self.block // self.subs, codes.shape[1])
        values *= lines.step[:, None]
        if lines.offset is not None:
            values += lines.offset[:, None]
        return values.reshape(codes.shape)


class BlockGrid(Grid):
    """The grid of one block column, with its scales as they are stored."""

    def __init__(self, form: BlockFormat, fields: Fields) -> None:
        self._form = form
        self._fields = fields
        self._lines = form.lines(fields)
        self._inverse = inverse(self._lines.step)
        self._size = form.block // form.subs

    def nearest(self, values: Floats, at: int) -> Bytes:
        sub = at // self._size
        t = values.astype(np.float32)
        if self._lines.offset is not None:
            t -= self._lines.offset[sub]
        with np.errstate(over="ignore"):
            t *= self._inverse[sub]
        self._form.levels.round(t)
        return self._form.levels.codes(t)

    def values(self, codes: Bytes, at: int) -> Floats:
        sub = at // self._size
        values = self._form.levels.of(codes)
        values *= self._lines.step[sub]
        if self._lines.offset is not None:
            values += self._lines.offset[sub]
        return values

    def pack(self, codes: Bytes) -> Bytes:
        fields = {**self._fields, CODE: np.ascontiguousarray(codes.T)}
        return np.ascontiguousarray(packed(self._form.parts, fields, self._form.nbytes).T)
