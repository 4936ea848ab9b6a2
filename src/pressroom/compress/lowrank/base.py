"""What factoring gives back, and how many numbers are needed.

`weights` are float32 of the shape (rows, columns), a row for every output of the layer. The error of a result Q is that
of `compress.rounding`: trace((W - Q) H (W - Q)ᵀ) relative to trace(W H Wᵀ), H the hessian of the layer; where none is
given, H is the identity, and it is the share of the squares of the weights. No argument is changed.

A matrix of m x n numbers is held as two factors of r(m + n). With its r singular values apart, as a singular value
decomposition is written, they are r(m + n + 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """How much of a matrix is kept; one of the three is given.

    rank: so many singular values. share: the largest rank whose two factors need at most this share of the numbers.
    energy: the least rank that keeps this share of the layer's output, squared (of the weights' squares, where there
    is no hessian): layers that are nearer to a low rank get a lower one.

    Raises:
        RecipeError: none or several are given, or one is out of its range.
    """

    rank: int = 0
    share: float = 0.0
    energy: float = 0.0

    def __post_init__(self) -> None:
        problems = self.wrong()
        if problems:
            raise RecipeError("; ".join(problems), hint="Give one: rank = 64, share = 0.5 or energy = 0.95.")

    def wrong(self) -> list[str]:
        """What is wrong, in words that begin with the option's name."""
        return wrong_keep(self.rank, self.share, self.energy)

    def most(self, rows: int, columns: int) -> int | None:
        """The rank that a matrix of this shape gets; None where that hangs on its values. 0: not even 1 fits."""
        if self.rank:
            return min(self.rank, rows, columns)
        if self.share:
            return min(int(self.share * rows * columns / (rows + columns) + 1e-9), rows, columns)
        return None


def wrong_keep(rank: int, share: float, energy: float) -> list[str]:
    """What is wrong with these as a choice of a rank."""
    found = []
    if sum(bool(one) for one in (rank, share, energy)) != 1:
        found.append("rank, share, energy: exactly one of them says how much is kept")
    if rank < 0:
        found.append(f"rank = {rank} is not a whole number from 1 on")
    if not 0 <= share < 1:  # also of what is not a number
        found.append(f"share = {share} is not a share of the numbers between 0 and 1")
    if not 0 <= energy < 1:
        found.append(f"energy = {energy} is not a share of the output between 0 and 1")
    return found


def numbers_needed(rows: int, columns: int, rank: int, *, apart: bool = False) -> int:
    """The numbers in the factors of a matrix; `apart`: with its singular values beside them, not in one of them."""
    return rank * (rows + columns + int(apart))


def even_rank(rows: int, columns: int) -> int:
    """The lowest rank whose factors need as many numbers as the matrix, or more: from there on nothing is gained."""
    return math.ceil(rows * columns / (rows + columns))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Factored:
    """A matrix as the product of two: `left` (rows, rank), of columns that are orthogonal and of length 1, and `right`
    (rank, columns), which has the singular values in it. `sigma`, float64 (rank,), are these: of the weights, or, with
    a hessian, of the weights times a factor of it (scaled), largest first. error: what is lost; see above.
    fallback: the hessian could not be used, so that this is the plain decomposition.
    """

    left: Floats
    right: Floats
    sigma: NDArray[np.float64]
    error: float
    fallback: bool = False

    @property
    def rank(self) -> int:
        """Of how many."""
        return len(self.sigma)

    @property
    def numbers(self) -> int:
        """In the two factors."""
        return numbers_needed(self.left.shape[0], self.right.shape[1], self.rank)

    @property
    def whole(self) -> int:
        """In the matrix."""
        return int(self.left.shape[0] * self.right.shape[1])

    @property
    def values(self) -> Floats:
        """The matrix that the factors stand for."""
        product: Floats = self.left @ self.right
        return product


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stacked:
    """Matrices of one shape, decomposed together: `values` (matrices, rows, columns) is what the parts stand for,
    `numbers` are in the parts, `ranks` theirs by mode, `errors` what is lost of each."""

    values: Floats
    numbers: int
    ranks: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def whole(self) -> int:
        """In the matrices."""
        return int(self.values.size)
