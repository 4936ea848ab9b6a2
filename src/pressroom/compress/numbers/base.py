"""What a number format is: a way to keep weights in fewer bits, as GGUF files have them.

A format cuts every row of a matrix into blocks of `block` weights that lie side by side along the input dimension, and
keeps each block in `nbytes` bytes, whatever its neighbours hold. To add a format, add one file to `backends/`, named as
the format, with a class `Format`; nothing else changes. Formats with a width or a reach of choice (int4-g64) are one
class, `Uniform`, and are found by their names as well.

Arrays: weights are float32 of the shape (rows, columns), a row for every output; encoded weights are uint8 of the shape
(rows, bytes of a row), which is what a GGUF file holds, byte for byte. `importance` is float32 of the shape (columns,):
the mean square of what enters each column, which is how much an error there weighs. None means that all weigh the same.
Nothing is changed in place, and no result shares memory with what was given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pressroom.kernel import PluginError, RecipeError, did_you_mean, plugins

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

_PACKAGE = "pressroom.compress.numbers.backends"
_GROUP = "pressroom.numbers"


@dataclass(frozen=True, slots=True)
class Piece:
    """Which bits of a block hold what: a picture of the format is drawn from these.

    Bits are counted from 0, from the first byte of the block and in it from the least significant bit. The `bits` bits
    from bit `at` on hold the bits from `low` on of the items `items` of the field `field`. There is one item in all
    formats but the ternary TQ1_0, which keeps several in one byte as digits of a number.
    """

    at: int
    bits: int
    field: str
    items: tuple[int, ...]
    low: int = 0


class Grid(ABC):
    """The values that the weights of one block column may take, for each of n rows: the scales are chosen and stay.

    A routine that rounds column by column asks for the nearest code of one column, takes the error from the columns
    that come after it, and goes on to the next; `pack` then writes the block. `at` is the place of the column in the
    block, from 0 to block - 1. A code is a number from 0 on that says which of the values a weight has.
    """

    @abstractmethod
    def nearest(self, values: Floats, at: int) -> Bytes:
        """The codes of column `at` whose values are nearest to `values`; both of the shape (n,)."""

    @abstractmethod
    def values(self, codes: Bytes, at: int) -> Floats:
        """What the codes of column `at` stand for; both of the shape (n,)."""

    @abstractmethod
    def pack(self, codes: Bytes) -> Bytes:
        """The blocks that hold these codes, (n, block), with the scales of the grid: (n, nbytes).

        `decode` of the result is `values` of the codes, bit for bit.
        """


class NumberFormat(ABC):
    """One way to keep weights. Nothing changes in it: all objects of a format are alike, and equal."""

    #: As people and GGUF files call it, in small letters: "q4_0".
    name: str
    #: The number of the type in GGUF files; None where they have none for it.
    ggml: int | None
    #: The weights of a block.
    block: int
    #: The bytes of a block.
    nbytes: int

    @property
    def bits(self) -> float:
        """Bits for one weight, with its share of the scales."""
        return 8 * self.nbytes / self.block

    def fits(self, columns: int) -> bool:
        """Whether rows of so many weights can be cut into whole blocks."""
        return columns > 0 and columns % self.block == 0

    def bound(self, rows: Floats, importance: Floats | None = None) -> NumberFormat:
        """The format as it is used for this matrix: itself, save where a scale reaches over a row or the whole matrix,
        whose size, or values, it must then know.

        Raises:
            RecipeError: as `encode`.
        """
        return self

    @abstractmethod
    def encode(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        """The rows in this format, rounded as well as it knows how to: (n, columns // block * nbytes).

        The scales of each block are searched for the least sum of importance * error². It is never larger than that of
        plain rounding, which takes the scale from the largest weight. A block of zeros gives zeros. Weights too large
        for the scales of the format (float16) become the largest that it can hold. Where the importance of a whole
        block is 0, its weights count alike.

        Rows that lie on a grid of the format, with its outermost codes in use as plain rounding leaves them, come back
        as they are where a block has one scale (q4_0, q8_0 …) or a scale and a min (q4_1, q5_1). Formats whose scales
        are counted in steps of another scale (q2_k to q6_k, iq4_xs) do not always find the grid again, and lose a
        little.

        Raises:
            RecipeError: the columns do not fit, a weight is infinite or not a number (it names the place), or the
                importance has another length, is negative or not finite.
        """

    @abstractmethod
    def decode(self, data: Bytes) -> Floats:
        """The weights that the bytes stand for: exactly the float32 that llama.cpp computes.

        Raises:
            RecipeError: the rows are not whole blocks.
        """

    @abstractmethod
    def grid(self, rows: Floats, importance: Floats | None = None) -> Grid:
        """The values that a block column can take, chosen for these weights: rows (n, block), importance (block,).

        The scales are those that `encode` would choose.

        Raises:
            RecipeError: as `encode`; or the format keeps every weight alone, in a block of 1 (f32, f16, bf16).
        """

    @abstractmethod
    def layout(self) -> tuple[Piece, ...]:
        """Where every bit of a block is, in the order of the bits, without gaps.

        The fields are "code", whose items are the places of the weights in the block; "scale" and "min", which are
        float16 numbers (in nf4 the scale is a float32); "sub-scale" and "sub-min", with an item for each sub-block, in
        the order of the weights; and "zero", the code of 0.
        """

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"<number format {self.name}: {self.bits:g} bits>"


@cache
def number_format(name: str) -> NumberFormat:
    """The format of this name; capital letters are as good as small ones.

    Raises:
        RecipeError: there is none; it says which there are.
    """
    from pressroom.compress.numbers._uniform import EXAMPLES, named

    known = plugins.names(_PACKAGE, _GROUP)
    if name.lower() not in known:
        uniform = named(name.lower())
        if uniform is not None:
            return uniform
    try:
        found: Any = plugins.load(_PACKAGE, _GROUP, name.lower(), attribute="Format")
    except PluginError as error:
        if name.lower() in known:
            raise
        every = sorted([*known, *EXAMPLES])
        raise RecipeError(
            f"there is no number format called {name!r}",
            hint=did_you_mean(name.lower(), every, otherwise=f"There are: {', '.join(every)}."),
            asked=name,
            known=every,
        ) from error
    result = found()
    assert isinstance(result, NumberFormat)
    return result


@cache
def formats() -> tuple[NumberFormat, ...]:
    """Every format with one fixed block, from the fewest bits a weight to the most. Those of the family `Uniform` are
    too many to be listed."""
    every = (number_format(name) for name in plugins.names(_PACKAGE, _GROUP))
    return tuple(sorted(every, key=lambda one: (one.bits, one.name)))
