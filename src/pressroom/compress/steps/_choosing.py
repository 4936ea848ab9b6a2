"""Which inputs of a layer can go, if those that stay are fitted to its old output again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Groups that go at once before what the others are worth is computed again: a sixteenth of those that are to go.
_ROUNDS = 16
_DAMP = 0.001


def least_loss(weights: NDArray[np.float32], hessian: NDArray[np.float32], groups: int, keep: int) -> NDArray[np.intp]:
    """The numbers, sorted, of `keep` of so many groups of columns that lie side by side.

    Again and again those go without which the least of the output is lost when all others make up for it: for a group G
    that is trace(W_G (H^-1_GG)^-1 W_Gᵀ), with W and H^-1 as they are once those before it are gone (optimal brain
    surgeon for whole columns, as in ZipLM, arXiv 2302.04089).
    """
    columns = weights.shape[1]
    each = columns // groups
    matrix = hessian.astype(np.float64)
    mean = float(matrix.diagonal().mean()) or 1.0
    matrix[np.diag_indices(columns)] += _DAMP * mean
    inverse: Any = np.linalg.inv(matrix)
    inverse = (inverse + inverse.T) / 2
    left: Any = weights.astype(np.float64)
    stay = np.arange(groups)
    step = max(1, -(-(groups - keep) // _ROUNDS))
    while len(stay) > keep:
        count = min(step, len(stay) - keep)
        gone = np.sort(np.argsort(_worth(left, inverse, len(stay), each), kind="stable")[:count])
        out = (gone[:, None] * each + np.arange(each)).reshape(-1)
        rest = np.setdiff1d(np.arange(left.shape[1]), out)
        # What goes is eliminated: those that stay take over what they can of its output.
        share = np.linalg.solve(inverse[np.ix_(out, out)], inverse[np.ix_(out, rest)])
        left = left[:, rest] - left[:, out] @ share
        inverse = inverse[np.ix_(rest, rest)] - inverse[np.ix_(rest, out)] @ share
        stay = np.delete(stay, gone)
    return stay.astype(np.intp)


def _worth(weights: Any, inverse: Any, groups: int, each: int) -> Any:
    """What is lost without each group, if the others make up for it."""
    if each == 1:
        return np.square(weights).sum(axis=0) / inverse.diagonal()
    found = np.empty(groups)
    for group in range(groups):
        here = slice(group * each, (group + 1) * each)
        part = weights[:, here]
        found[group] = np.sum(part.T * np.linalg.solve(inverse[here, here], part.T))
    return found
