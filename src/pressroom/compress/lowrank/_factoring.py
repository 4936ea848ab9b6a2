"""A matrix as the product of two of a lower rank, so that what it gives for what enters it changes least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.compress.lowrank.base import Factored, Keep
from pressroom.compress.rounding._curvature import (
    Curvature,
    checked,
    computing,
    curved,
    must_be_finite,
    needs_torch,
    relative,
)
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.compress.lowrank.base import Floats

# Of the mean of the hessian's diagonal: enough that a singular one has a factor. Its size has no say beyond that, as
# nothing is divided by the factor.
_DAMP = 1e-6


def factor(
    weights: Floats, rank: int | Keep, curvature: Floats | Curvature | None = None, *, threads: int = 1
) -> Factored:
    """The factors of a rank whose product loses least: of the weights, or, with a hessian (`curvature`), of the layer's
    output on the inputs it was made from.

    With H = S Sᵀ that loss is |(W - Q) S|², least where Q S is the truncated singular value decomposition of W S: its
    factor of H whitens the inputs, so that every direction counts as it is used (SVD-LLM, arXiv 2403.07378). The left
    singular vectors U are enough: Q = U Uᵀ W, so that the inverse of S, which SVD-LLM multiplies with, is not needed,
    and a hessian that is singular is none the worse.

    Raises:
        RecipeError: the arguments do not fit each other, weights or hessian are not finite, or the rank is no rank of
            such a matrix.
        MissingDependencyError: PyTorch is not installed.
    """
    torch = needs_torch()
    keep = rank if isinstance(rank, Keep) else Keep(rank=rank)
    curve = None if curvature is None else curved(curvature)
    weights = _matrix(weights) if curve is None else checked(weights, curve, 0.0)
    if keep.rank > min(weights.shape):
        raise RecipeError(
            f"rank {keep.rank:,} was asked for of a matrix of {weights.shape[0]:,} x {weights.shape[1]:,}",
            hint=f"It has no more than {min(weights.shape):,}.",
            asked=keep.rank,
        )
    with computing(threads):
        whole = torch.from_numpy(weights).double()
        whitening = None if curve is None else spread(curve)
        seen = whole if whitening is None else whole @ whitening
        left, sigma = _left(seen, keep)
        right = left.t() @ whole
        result = left.float().numpy().copy(), right.float().numpy().copy()
        difference = (whole - left @ right).float().numpy()
    return Factored(
        left=result[0],
        right=result[1],
        sigma=sigma.numpy().copy(),
        error=_error(weights, difference, None if whitening is None else curve),
        fallback=curve is not None and whitening is None,
    )


def _matrix(weights: Floats) -> Floats:
    """As `checked`, where there is no hessian that it must fit."""
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    if weights.ndim != 2 or not weights.size:
        raise RecipeError(f"weights are a matrix of (rows, columns); these have the shape {weights.shape}")
    must_be_finite(weights, "the weights")
    return weights


def spread(curvature: Curvature, *, damp: float = _DAMP) -> Any:
    """S with H = S Sᵀ, float64; None where there is none, as where nothing enters the layer."""
    found = curvature.factor(np.arange(curvature.columns), damp)
    return None if found is None else (found.mixing * found.stiffness.sqrt()).double()


def _left(seen: Any, keep: Keep) -> tuple[Any, Any]:
    """The left singular vectors that are kept, and their singular values.

    By way of the smaller of A Aᵀ and Aᵀ A, whose eigenvalues are their squares: a tenth of the time of a decomposition
    of A, and in float64 good to 1e-8 of the largest, which is below what the float32 weights hold.
    """
    torch = needs_torch()
    rows, columns = seen.shape
    squares, vectors = torch.linalg.eigh(seen @ seen.t() if rows <= columns else seen.t() @ seen)
    squares, vectors = squares.flip(0).clamp_(min=0), vectors.flip(1)
    count = _rank(squares.numpy(), keep, rows, columns)
    vectors = vectors[:, :count]
    # The products with the right ones are as long as the singular values; those of length 0 become any directions.
    left = vectors if rows <= columns else torch.linalg.qr(seen @ vectors)[0]
    return left, squares[:count].sqrt()


def _rank(squares: NDArray[np.float64], keep: Keep, rows: int, columns: int) -> int:
    count = keep.most(rows, columns)
    if count is None:
        total = np.cumsum(squares)
        count = int(np.searchsorted(total, keep.energy * total[-1])) + 1 if total[-1] > 0 else 1
    if count < 1:
        raise RecipeError(
            f"a share of {keep.share} of {rows:,} x {columns:,} numbers is less than rank 1 needs ({rows + columns:,})",
            hint="Ask for a larger share, or leave this layer as it is.",
            share=keep.share,
        )
    return min(count, rows, columns)


def _error(weights: Floats, difference: Floats, curvature: Curvature | None) -> float:
    if curvature is not None:
        return relative(curvature.losses(difference), curvature.losses(weights))
    squares = [np.square(one, dtype=np.float64).sum(axis=1) for one in (difference, weights)]
    return relative(squares[0], squares[1])
