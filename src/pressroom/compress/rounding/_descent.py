"""One pass over the columns of a layer: each is rounded or pruned, and those after it make up for what is lost.

Tensors here are transposed, (columns, rows), so that a column lies in one piece of memory. Errors are brought forward
in three steps, so that nearly all of the work is multiplication of matrices: to a span of columns from all those before
it, to a block from the span, and in a block column by column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.compress.rounding._curvature import Curvature, Factor, needs_torch
from pressroom.compress.rounding._sparsity import Sparsity
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.compress.numbers import NumberFormat
    from pressroom.compress.rounding.base import Bytes, Floats, Order

    Indices = NDArray[np.intp]
    #: (aim, stiffness, mixing of the block, weights, keep or None, first column) -> errors: how a block is done.
    Block = Callable[[Any, Any, Any, Any, Any, int], Any]

#: Columns to which errors are brought forward at once.
_SPAN = 128


class RunawayError(Exception):
    """The changes that should make up for errors have grown beyond all numbers. Never leaves this package."""


def places(curvature: Curvature, order: Order, *, width: int, group: int) -> Indices:
    """The columns in the order of a pass in which `width` columns that lie side by side stay together.

    In the order of activation those with the larger mean diagonal of the hessian come first: the blocks of `width`
    columns, and in each the groups of `group`, which stay as they are. So errors made where they weigh most find most
    columns to make up for them.

    Raises:
        RecipeError: there is no such order.
    """
    if order not in ("given", "activation"):
        raise RecipeError(f"there is no order {order!r}", hint="'given' or 'activation'.", asked=order)
    if order == "given":
        return np.arange(curvature.columns)
    groups = curvature.diagonal.reshape(-1, width // group, group).mean(axis=2)
    blocks = np.argsort(-groups.mean(axis=1), kind="stable")
    inside = np.argsort(-groups, axis=1, kind="stable")[blocks]
    starts = blocks[:, None] * width + inside * group
    return (starts[:, :, None] + np.arange(group)).reshape(-1)


def descend(weights: Any, factor: Factor, *, width: int, sparsity: Sparsity | None, block: Block) -> tuple[Any, Any]:
    """Go through the columns, `width` of them at a time: the errors W - Q, and where weights are kept (or None).

    `weights` are (columns, rows), in the order of the factor. What is pruned is chosen from the weights as changed so
    far: in a pattern when the block begins, by a ratio when the span begins.
    """
    torch = needs_torch()
    columns = len(weights)
    mixing, stiffness = factor.mixing, factor.stiffness
    errors = torch.empty_like(weights)
    kept = None
    if sparsity:
        kept = sparsity.keep(weights.square() * stiffness[:, None])
    span = width * max(1, _SPAN // width)
    for start in range(0, columns, span):
        end = min(start + span, columns)
        ahead = torch.addmm(weights[start:end], mixing[:start, start:end].t(), errors[:start])
        if kept is not None and sparsity and not sparsity.pattern:
            now = settled(ahead, weights[start:end], mixing[start:end, start:end])
            kept[start:end] = sparsity.keep_as_many(now.square() * stiffness[start:end, None], kept[start:end])
        for first in range(start, end, width):
            last = min(first + width, end)
            here = slice(first, last)
            aim = torch.addmm(ahead[first - start : last - start], mixing[start:first, here].t(), errors[start:first])
            if kept is not None and sparsity and sparsity.pattern:
                now = settled(aim, weights[here], mixing[here, here])
                kept[here] = sparsity.keep(now.square() * stiffness[here, None])
            keep = None if kept is None else kept[here]
            errors[here] = block(aim, stiffness[here], mixing[here, here], weights[here], keep, first)
    return errors, kept


def settled(aim: Any, weights: Any, mixing: Any) -> Any:
    """What the columns of a block (or span) would be if none of them were rounded: the weights as changed so far.

    `aim` is where each is drawn by the columns before the block if all before it in the block stay as they were at
    first; but they are drawn too.
    """
    torch = needs_torch()
    return weights + torch.linalg.solve_triangular(mixing.t(), aim - weights, upper=False, unitriangular=True)


def prune_block(aim: Any, stiffness: Any, mixing: Any, weights: Any, keep: Any, first: int) -> Any:
    """Set what is not kept to 0, column by column: the errors of the block."""
    torch = needs_torch()
    errors = torch.empty_like(aim)
    for at in range(len(aim)):
        wanted = torch.addmv(aim[at], errors[:at].t(), mixing[:at, at]) if at else aim[at]
        errors[at] = weights[at] - wanted * keep[at]
    return errors


@dataclass(slots=True, eq=False)
class Rounder:
    """Rounds blocks to a number format, and keeps the bytes.

    importance: what weighs the columns in the choice of scales.
    order: the columns of the layer in the order of the pass; blocks stay whole.
    data: (rows, blocks, bytes of a block), filled by the pass.
    """

    format: NumberFormat
    order: Indices
    importance: Floats
    data: Bytes

    def __call__(self, aim: Any, stiffness: Any, mixing: Any, weights: Any, keep: Any, first: int) -> Any:
        _, packed, errors = self.tried(aim, stiffness, mixing, weights, keep, first)
        self.data[:, self.block_at(first)] = packed.numpy()
        return errors

    def block_at(self, first: int) -> int:
        """Which block of the file column `first` of the pass begins."""
        return int(self.order[first]) // self.format.block

    def tried(self, aim: Any, stiffness: Any, mixing: Any, weights: Any, keep: Any, first: int) -> tuple[Any, Any, Any]:
        """What each row loses in the block, the bytes of the block, and the errors W - Q.

        The loss is what the columns of the block cannot make up for among themselves: the sum of D_k |(E M)_k|².
        """
        torch = needs_torch()
        if not bool(torch.isfinite(aim.sum(dtype=torch.float64))):
            raise RunawayError
        width = self.format.block
        number = self.block_at(first)
        inside = self.order[first : first + width] - number * width
        rows = aim.shape[1]
        natural = np.empty((rows, width), dtype=np.float32)
        now = settled(aim, weights, mixing)
        natural[:, inside] = (now if keep is None else now * keep).t().numpy()
        grid = self.format.grid(natural, self.importance[number * width : (number + 1) * width])
        errors, residuals = torch.empty_like(aim), torch.empty_like(aim)
        codes = np.empty((rows, width), dtype=np.uint8)
        for at, place in enumerate(inside.tolist()):
            goal = torch.addmv(aim[at], errors[:at].t(), mixing[:at, at]) if at else aim[at]
            code = grid.nearest((goal if keep is None else goal * keep[at]).numpy(), place)
            codes[:, place] = code
            value = torch.from_numpy(grid.values(code, place))
            torch.sub(goal, value, out=residuals[at])
            torch.sub(weights[at], value, out=errors[at])
        return stiffness @ residuals.square_(), torch.from_numpy(grid.pack(codes)), errors
