"""What the columns that stay must be when others are taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.compress.rounding._curvature import Curvature, checked, computing, curved, needs_torch
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.compress.rounding.base import Floats


def least_squares_refit(
    weights: Floats,
    hessian: Floats | Curvature,
    keep_columns: Sequence[int] | NDArray[np.integer] | NDArray[np.bool_],
    *,
    damp: float = 1e-4,
    threads: int = 1,
) -> Floats:
    """The weights (rows, kept) on the columns that stay that give the output of the whole layer with the least error.

    `keep_columns` are their numbers, in the order in which the result has them, or True for each that stays. `damp`,
    as a share of the mean of the diagonal that is added to it, holds the result near the weights as they were; where
    the hessian needs more, more is taken. Where nothing enters the kept columns they stay as they are.

    Raises:
        RecipeError: the arguments do not fit each other, or weights or hessian are not finite.
        MissingDependencyError: PyTorch is not installed.
    """
    curvature = curved(hessian)
    weights = checked(weights, curvature, damp)
    keep = _numbers(keep_columns, curvature.columns)
    left = np.setdiff1d(np.arange(curvature.columns), keep)
    stay = weights[:, keep]
    part = Curvature(curvature.matrix[np.ix_(keep, keep)])
    with computing(threads):
        torch = needs_torch()
        # W_k + W_l H_lk (H_kk + d)^-1: damping weighs the change, not the weights, so that none is shrunk.
        for extra in (damp, *(max(damp, 1e-4) * 10**more for more in range(1, 5))):
            lower, failed = torch.linalg.cholesky_ex(_damped(part, extra))
            if not int(failed) and float(lower.diagonal().min()) > 0:
                share = (
                    torch.from_numpy(weights[:, left]).double()
                    @ torch.from_numpy(curvature.matrix[np.ix_(left, keep)]).double()
                )
                result: Floats = (stay + torch.cholesky_solve(share.t(), lower).t().numpy()).astype(np.float32)
                if np.isfinite(result).all():
                    return result
    return stay


def _damped(part: Curvature, damp: float) -> Any:
    torch = needs_torch()
    matrix = torch.from_numpy(part.matrix).double()
    matrix.diagonal().add_(damp * float(part.diagonal.mean(dtype=np.float64)))
    return matrix


def _numbers(keep: Sequence[int] | NDArray[np.integer] | NDArray[np.bool_], columns: int) -> NDArray[np.intp]:
    given = np.asarray(keep)
    if given.dtype == np.bool_ and given.shape == (columns,):
        given = np.flatnonzero(given)
    if given.ndim != 1 or not given.size or not np.issubdtype(given.dtype, np.integer):
        raise RecipeError(
            "the columns to keep are not a list of their numbers, with one at least",
            hint=f"Give numbers from 0 to {columns - 1:,}, or True or False for each of the {columns:,} columns.",
        )
    if given.min() < 0 or given.max() >= columns or len(np.unique(given)) != len(given):
        raise RecipeError(
            f"the columns to keep must be different numbers from 0 to {columns - 1:,}; these go from "
            f"{given.min():,} to {given.max():,}, {len(given) - len(np.unique(given)):,} of them twice",
            columns=columns,
        )
    return given.astype(np.intp)
