"""Rows of weights cut into blocks that a search can work on, piece by piece, and what is refused before that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.compress.numbers.base import NumberFormat

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

# Weights that are worked on at once. A search needs about fifteen arrays of that size: 15 MB, which the caches hold in
# part. The fastest of 2^14 to 2^20, where 2^14 takes twice the time.
PIECE = 1 << 18
_LARGEST_HALF = np.float32(65504)
_SMALLEST_HALF = np.float32(2.0**-24)
# Blocks whose largest weight is below 2^-40 become zeros in every format with float16 scales.
_LEAST_EXPONENT = -40


@dataclass(slots=True)
class Blocks:
    """Blocks ready for a search.

    `x`: the weights divided by a power of two, so that the largest of a block is between 1/2 and 1 and no square
    overflows, (weights of a sub-block, sub-blocks * blocks): the first sub-block of all blocks comes first. `w`: how
    much each weighs, at most 1, or None where all weigh the same. `exponent`: of that power of two, (blocks,).
    """

    x: Floats
    w: Floats | None
    exponent: NDArray[np.int32]

    def half(self, numbers: Floats, *, down: bool = False) -> tuple[Floats, Floats]:
        """Numbers of the blocks rounded to float16: as they are stored, and divided as `x` is.

        The largest float16 stands for all that are larger. What would be rounded to 0 becomes the smallest, because a
        scale of 0 leaves nothing to choose; with `down` it becomes 0.
        """
        with np.errstate(over="ignore", under="ignore"):
            full = np.ldexp(numbers, self.exponent)
            full = np.clip(full, -_LARGEST_HALF, _LARGEST_HALF)
            stored = full.astype(np.float16).astype(np.float32)
            lost = (stored == 0) & (numbers != 0)
            if lost.any() and not down:
                stored[lost] = np.copysign(_SMALLEST_HALF, numbers[lost])
            return stored, np.ldexp(stored, -self.exponent)


def check_rows(form: NumberFormat, rows: Floats) -> None:
    """Refuse what cannot be encoded.

    Raises:
        RecipeError: not a matrix, columns that are not whole blocks, or a weight that is no finite number.
    """
    if rows.ndim != 2:
        raise RecipeError(
            f"{form.name} was given weights of shape {list(rows.shape)}",
            hint="Give a matrix: a row for every output.",
            shape=list(rows.shape),
        )
    columns = rows.shape[1]
    if not form.fits(columns):
        raise RecipeError(
            f"rows of {columns} weights cannot be cut into blocks of {form.block}, as {form.name} needs",
            hint=f"Choose a format whose block divides {columns}, such as f16.",
            format=form.name,
            columns=columns,
            block=form.block,
        )
    step = max(1, (1 << 20) // columns)
    for start in range(0, rows.shape[0], step):
        bad = np.argwhere(~np.isfinite(rows[start : start + step]))
        if len(bad):
            row, column = int(bad[0, 0]) + start, int(bad[0, 1])
            raise RecipeError(
                f"the weight in row {row}, column {column} is {rows[row, column]}",
                hint="No format can round it: look at where the weights come from.",
                row=row,
                column=column,
            )


def checked_importance(columns: int, importance: Floats | None) -> Floats | None:
    """The importance as float32.

    Raises:
        RecipeError: another length than the columns, a negative number or one that is not finite.
    """
    if importance is None:
        return None
    if importance.shape != (columns,):
        raise RecipeError(
            f"there are {columns} columns, and an importance of shape {list(importance.shape)}",
            hint="Give one number for every column: the mean square of what enters it.",
            columns=columns,
            shape=list(importance.shape),
        )
    bad = np.flatnonzero(~(np.isfinite(importance) & (importance >= 0)))
    if len(bad):
        column = int(bad[0])
        raise RecipeError(
            f"the importance of column {column} is {importance[column]}",
            hint="A mean of squares is 0 or more: look at where it was measured.",
            column=column,
        )
    return importance.astype(np.float32)


def check_bytes(form: NumberFormat, data: Bytes) -> None:
    """Raises:
    RecipeError: rows that are not whole blocks.
    """
    if data.ndim != 2 or data.shape[1] == 0 or data.shape[1] % form.nbytes or data.dtype != np.uint8:
        raise RecipeError(
            f"{form.name} was given data of shape {list(data.shape)} and type {data.dtype}",
            hint=f"Give a matrix of uint8 with rows of whole blocks: {form.nbytes} bytes each.",
            format=form.name,
            shape=list(data.shape),
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """Some rows and some columns of a matrix, the columns counted in blocks."""

    rows: slice
    blocks: slice


def tiles(rows: int, blocks: int, block: int) -> Iterator[Tile]:
    """Cut a matrix into tiles of about `PIECE` weights."""
    wide = min(blocks, max(1, PIECE // block))
    high = max(1, PIECE // (block * wide))
    for row in range(0, rows, high):
        for column in range(0, blocks, wide):
            yield Tile(slice(row, min(row + high, rows)), slice(column, min(column + wide, blocks)))


def blocks_of(rows: Floats, importance: Floats | None, *, block: int, subs: int) -> Blocks:
    """The blocks of rows, (n, blocks * block): all blocks of the first row come first."""
    count = rows.size // block
    size = block // subs
    cut = rows.reshape(count, subs, size).transpose(2, 1, 0)
    largest = np.abs(rows).reshape(count, block).max(axis=1)
    exponent = np.maximum(np.frexp(largest)[1], _LEAST_EXPONENT).astype(np.int32)
    with np.errstate(under="ignore"):
        x = cut * np.ldexp(np.float32(1), -exponent)
    w = None
    if importance is not None:
        each = importance.reshape(-1, block)
        most = each.max(axis=1, keepdims=True)
        with np.errstate(under="ignore"):
            each = np.where(most > 0, each / np.where(most > 0, most, 1), np.float32(1)).astype(np.float32)
        spread = np.broadcast_to(each, (len(rows), *each.shape)).reshape(count, subs, size)
        w = np.ascontiguousarray(spread.transpose(2, 1, 0)).reshape(size, subs * count)
    return Blocks(np.ascontiguousarray(x).reshape(size, subs * count), w, exponent)
