"""Sweeps after the pass: every block is rounded anew, now that what comes after it is known as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.compress.rounding._curvature import Curvature, needs_torch
from pressroom.compress.rounding._descent import Rounder

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Sweeper:
    """Descends along one block of columns at a time, scales and codes together.

    With the errors E of all other blocks fixed, the loss of a row is that of its block against another target, weighed
    by the block's own part of the hessian. A row takes the new block only where that loses less, so that no sweep makes
    the loss (with the damped hessian) larger.
    """

    def __init__(self, curvature: Curvature, order: NDArray[np.intp], width: int, damp: float) -> None:
        torch = needs_torch()
        self.width = width
        self.hessian = torch.from_numpy(curvature.matrix[np.ix_(order, order)])
        extra = damp * float(curvature.diagonal.mean(dtype=np.float64))
        starts = range(0, len(order), width)
        # In float64 before the damping, which float32 may be too coarse for.
        blocks = torch.stack([self.hessian[at : at + width, at : at + width] for at in starts]).double()
        blocks.diagonal(dim1=1, dim2=2).add_(extra)
        self.hessian.diagonal().add_(extra)
        self.inverses = torch.linalg.inv(blocks).float()
        lower = torch.linalg.cholesky(blocks.flip(1, 2)).flip(1, 2)
        roots = lower.diagonal(dim1=1, dim2=2)
        self.mixings = (lower / roots[:, None, :]).float().contiguous()
        self.stiffnesses = roots.square().float()

    def sweep(self, weights: Any, errors: Any, kept: Any, rounder: Rounder) -> None:
        """One sweep: `errors` (columns, rows) and the data of the rounder are changed in place."""
        torch = needs_torch()
        for number, first in enumerate(range(0, len(weights), self.width)):
            here = slice(first, first + self.width)
            # How far the block is from what would be best for it if it could take any value.
            away = self.inverses[number] @ (self.hessian[here] @ errors)
            shift = away - errors[here]
            goal = weights[here] + shift
            mixing, stiffness = self.mixings[number], self.stiffnesses[number]
            before = stiffness @ (mixing.t() @ away).square_()
            keep = None if kept is None else kept[here]
            losses, packed, found = rounder.tried(goal, stiffness, mixing, goal, keep, first)
            better = losses < before * (1 - 1e-5)
            errors[here] = torch.where(better, found - shift, errors[here])
            rows = better.numpy()
            rounder.data[rows, rounder.block_at(first)] = packed[better].numpy()
