"""Matrices as products of smaller ones: by their singular values, plain or weighted by what enters the layer, and
several together as Tucker and CP decompositions.

found = factor(weights, Keep(share=0.5), hessian)
found.values, found.error, found.numbers
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pressroom.compress.lowrank.base import Factored, Keep, Stacked, even_rank, numbers_needed, wrong_keep
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.lowrank._factoring import factor
    from pressroom.compress.lowrank._stacking import needs_tensorly, stack_numbers, stack_ranks, stacked

__all__ = [
    "Factored",
    "Keep",
    "Stacked",
    "even_rank",
    "factor",
    "needs_tensorly",
    "numbers_needed",
    "stack_numbers",
    "stack_ranks",
    "stacked",
    "wrong_keep",
]

_find = _lazily(
    __name__,
    {
        "factor": "_factoring",
        "needs_tensorly": "_stacking",
        "stack_numbers": "_stacking",
        "stack_ranks": "_stacking",
        "stacked": "_stacking",
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)
