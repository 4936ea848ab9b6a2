"""How much is pruned, and which weights, given what each is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pressroom.compress.rounding._curvature import needs_torch
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from pressroom.compress.rounding.base import Bools, Floats, Pattern, Per


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Either a share of the weights or a pattern of those that stay; see `sparsity`.

    What weights are worth are tensors (columns, rows). Those that are worth least go, of equals the first.
    """

    ratio: float
    pattern: Pattern | None
    per: Per

    def keep(self, worth: Any) -> Any:
        """Where a weight is kept, of all columns or, in a pattern, of any whole groups."""
        torch = needs_torch()
        columns, rows = worth.shape
        if self.pattern:
            stay, of = self.pattern
            return _gone(worth.view(columns // of, of, rows), of - stay, dim=1).logical_not_().view(columns, rows)
        if self.per == "row":
            return _gone(worth, math.floor(self.ratio * columns + 0.5), dim=0).logical_not_()
        return self._keep_of_all(torch, worth, math.floor(self.ratio * columns * rows + 0.5))

    def keep_as_many(self, worth: Any, before: Any) -> Any:
        """Where a weight is kept, as many as in `before`: in all rows together, or in each."""
        torch = needs_torch()
        if self.per == "row":
            ranks = torch.sort(torch.sort(worth, dim=0, stable=True).indices, dim=0, stable=True).indices
            return ranks >= len(worth) - before.sum(dim=0)
        return self._keep_of_all(torch, worth, before.numel() - int(before.sum()))

    def least(self, weights: Floats, importance: Floats | None) -> Bools:
        """Where a weight is kept, (rows, columns), by its size and the importance of its column alone."""
        torch = needs_torch()
        worth = torch.from_numpy(weights).t().abs()
        if importance is not None:
            worth = worth * torch.from_numpy(importance).sqrt()[:, None]
        keep: Bools = self.keep(worth.contiguous()).t().contiguous().numpy()
        return keep

    @staticmethod
    def _keep_of_all(torch: Any, worth: Any, count: int) -> Any:
        flat = worth.t().reshape(-1)  # rows first, so that of equals those of the first rows go
        return _gone(flat, count, dim=0).logical_not_().view(*worth.t().shape).t().contiguous()


def sparsity(ratio: float | None, pattern: Pattern | None, per: Per, columns: int) -> Sparsity | None:
    """What is asked for; None where nothing is.

    Raises:
        RecipeError: both are asked for, or one that is not possible for so many columns.
    """
    if per not in ("row", "layer"):
        raise RecipeError(f"weights cannot be pruned per {per!r}", hint="Per 'row' or per 'layer'.", asked=per)
    if pattern is not None:
        if ratio is not None:
            raise RecipeError("a ratio and a pattern cannot both be had", hint="Ask for one of them.")
        stay, of = pattern
        if not (0 < stay < of):
            raise RecipeError(
                f"{stay} of {of} is no pattern", hint="Say how many of how many stay, such as 2 of 4.", asked=pattern
            )
        if columns % of:
            raise RecipeError(
                f"{columns:,} columns cannot be cut into groups of {of}",
                hint="Prune this layer by a ratio, or leave it out.",
                columns=columns,
                pattern=pattern,
            )
        return Sparsity(1 - stay / of, pattern, per)
    if ratio is None:
        return None
    if not 0 <= ratio < 1:
        raise RecipeError(
            f"the share {ratio} of the weights cannot be pruned", hint="Give a number from 0 to below 1.", asked=ratio
        )
    return Sparsity(ratio, None, per)


def _gone(worth: Any, count: int, *, dim: int) -> Any:
    """Where the `count` lowest along a dimension are; of equals the first."""
    torch = needs_torch()
    gone = torch.zeros(worth.shape, dtype=torch.bool)
    if count:
        gone.scatter_(dim, torch.sort(worth, dim=dim, stable=True).indices.narrow(dim, 0, count), True)
    return gone
