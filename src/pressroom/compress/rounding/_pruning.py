"""Pruning: SparseGPT, and the two simple criteria that it is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.rounding._curvature import Curvature, checked, computing, curved, needs_torch, relative
from pressroom.compress.rounding._descent import descend, places, prune_block
from pressroom.compress.rounding._sparsity import Sparsity, sparsity
from pressroom.compress.rounding.base import Pruned
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from pressroom.compress.rounding.base import Bools, Floats, Order, Pattern, Per

#: Columns that are gone through one by one before the rest of the span hears of them, where no pattern says it.
_WIDTH = 32


def pruned(
    weights: Floats,
    hessian: Floats | Curvature,
    *,
    ratio: float | None = None,
    pattern: Pattern | None = None,
    per: Per = "layer",
    damp: float = 0.01,
    order: Order | None = None,
    threads: int = 1,
) -> Pruned:
    """Prune a layer as SparseGPT does: weights that stay make up for those that go.

    Exactly the share `ratio` of the weights goes (to the nearest whole number), or of every `pattern[1]` weights of a
    row all but `pattern[0]`. `per` says whether every row loses the same share. `order`: "given", or
    "activation": the columns, or the groups of a pattern, that most enters are done first; None: "activation" for a
    pattern and "given" for a ratio, as on SmolLM2 each loses least.

    Raises:
        RecipeError: the arguments do not fit each other, or weights or hessian are not finite.
        MissingDependencyError: PyTorch is not installed.
    """
    curvature = curved(hessian)
    weights = checked(weights, curvature, damp)
    what = _asked(ratio, pattern, per, curvature.columns)
    group = pattern[1] if pattern else 1
    run = places(curvature, order or ("activation" if pattern else "given"), width=group, group=group)
    with computing(threads):
        torch = needs_torch()
        factor = curvature.factor(run, damp)
        if factor is not None:
            ordered = torch.from_numpy(weights).t()[torch.from_numpy(run)].contiguous()
            width = pattern[1] if pattern else _WIDTH
            errors, kept = descend(ordered, factor, width=width, sparsity=what, block=prune_block)
            values, keep = np.empty_like(weights), np.empty(weights.shape, dtype=np.bool_)
            values[:, run] = torch.where(kept, ordered - errors, torch.zeros(())).t().numpy()
            keep[:, run] = kept.t().numpy()
            if np.isfinite(values).all():
                return _result(weights, values, keep, curvature)
        return _simple(weights, curvature, what, curvature.diagonal, fallback=True)


def wanda(
    weights: Floats,
    hessian: Floats | Curvature,
    *,
    ratio: float | None = None,
    pattern: Pattern | None = None,
    per: Per = "row",
    threads: int = 1,
) -> Pruned:
    """Prune the weights with the least |weight| · |what enters its column| (arXiv 2306.11695); the others stay as
    they are. Arguments and errors are those of `pruned`."""
    curvature = curved(hessian)
    weights = checked(weights, curvature, 0)
    what = _asked(ratio, pattern, per, curvature.columns)
    with computing(threads):
        return _simple(weights, curvature, what, curvature.diagonal)


def magnitude(
    weights: Floats,
    hessian: Floats | Curvature,
    *,
    ratio: float | None = None,
    pattern: Pattern | None = None,
    per: Per = "layer",
    threads: int = 1,
) -> Pruned:
    """Prune the smallest weights; the others stay as they are. The hessian only says what that costs.

    Arguments and errors are those of `pruned`.
    """
    curvature = curved(hessian)
    weights = checked(weights, curvature, 0)
    what = _asked(ratio, pattern, per, curvature.columns)
    with computing(threads):
        return _simple(weights, curvature, what, None)


def _asked(ratio: float | None, pattern: Pattern | None, per: Per, columns: int) -> Sparsity:
    what = sparsity(ratio, pattern, per, columns)
    if what is None:
        raise RecipeError("nothing says how much to prune", hint="Give a ratio, or a pattern such as 2 of 4.")
    return what


def _simple(
    weights: Floats, curvature: Curvature, what: Sparsity, importance: Floats | None, *, fallback: bool = False
) -> Pruned:
    keep = what.least(weights, importance)
    # Not weights * keep, which would leave -0.0.
    values = np.where(keep, weights, np.float32(0))
    return _result(weights, values, keep, curvature, fallback=fallback)


def _result(weights: Floats, values: Floats, keep: Bools, curvature: Curvature, *, fallback: bool = False) -> Pruned:
    error = relative(curvature.losses(weights - values), curvature.losses(weights))
    return Pruned(values=values, mask=keep, error=error, fallback=fallback)
