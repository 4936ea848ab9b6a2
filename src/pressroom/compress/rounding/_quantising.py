"""GPTQ onto the values that the blocks of a number format can take, pruning in the same pass if asked to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.rounding._curvature import (
    Curvature,
    Factor,
    checked,
    computing,
    curved,
    needs_torch,
    relative,
)
from pressroom.compress.rounding._descent import Rounder, RunawayError, descend, places
from pressroom.compress.rounding._sparsity import Sparsity, sparsity
from pressroom.compress.rounding._sweeping import Sweeper
from pressroom.compress.rounding.base import Rounded
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.compress.numbers import NumberFormat
    from pressroom.compress.rounding.base import Bools, Bytes, Floats, Order, Pattern, Per

    Losses = NDArray[np.float64]

#: Rows that are done at once: what bounds the memory for the largest layers.
_ROWS = 4096


def rounded(
    weights: Floats,
    hessian: Floats | Curvature,
    format: NumberFormat,
    *,
    damp: float = 0.01,
    order: Order = "activation",
    sweeps: int = 1,
    importance: Floats | None = None,
    ratio: float | None = None,
    pattern: Pattern | None = None,
    per: Per = "layer",
    threads: int = 1,
) -> Rounded:
    """Round a layer to a number format so that its output on what enters it changes least.

    The scales of a block are chosen when the pass comes to it, from the weights as changed so far. A row that plain
    rounding (`format.encode` with the importance) serves no worse is rounded plainly.

    damp: the share of the mean of the hessian's diagonal that is added to it; where its factors cannot be had it is
        raised, tenfold at most four times, and then all rows are rounded plainly (`fallback`).
    order: "given", or "activation": what enters most is done first. As the weights of a block share scales, and lie
        side by side in the file, the blocks are sorted by the mean of their diagonal, and the columns within a block.
        On SmolLM2 "activation" loses 11 % less on other text.
    sweeps: how often, after the pass, every block is rounded anew with all others as they are. On SmolLM2 the first
        takes another 4 % off the loss on other text, the second 1.3 %.
    importance: of every column, for plain rounding and the sweeps' choice of scales; None: the hessian's diagonal.
    ratio, pattern, per: prune as well, as `pruned` does; only for formats that have a zero in every block. Then each
        row is compared with plain rounding of the weights that are kept.
    threads: how many to compute with. A layer is thousands of small steps, so that two layers on one thread each are
        done sooner than one after the other on two.

    A format that keeps every weight alone, such as bf16, loses too little to be worth a pass: it is rounded plainly.

    Raises:
        RecipeError: the arguments do not fit each other, or weights or hessian are not finite.
        MissingDependencyError: PyTorch is not installed.
    """
    curvature = curved(hessian)
    weights = checked(weights, curvature, damp)
    columns = curvature.columns
    if not format.fits(columns):
        raise RecipeError(
            f"{columns:,} columns cannot be cut into blocks of {format.block}, as {format.name} does",
            hint="Choose a format with smaller blocks for this layer.",
            columns=columns,
            format=format.name,
        )
    if sweeps < 0:
        raise RecipeError(f"{sweeps} sweeps are not possible", hint="Ask for 0 or more.", asked=sweeps)
    what = sparsity(ratio, pattern, per, columns)
    if what is not None:
        _must_allow(what, format)
    importance = curvature.diagonal if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    run = places(curvature, order, width=format.block, group=pattern[1] if pattern else 1)
    with computing(threads):
        factor = curvature.factor(run, damp) if format.block > 1 else None
        job = _Job(format, curvature, importance, what)
        pass_ = None if factor is None else _Pass(job, factor, run, sweeps)
        # All rows at once where what one row loses depends on the others.
        step = len(weights) if what is not None and what.per == "layer" else _ROWS
        parts = [_part(weights[at : at + step], job, pass_) for at in range(0, len(weights), step)]
    return Rounded(
        data=np.concatenate([part.data for part in parts]),
        values=np.concatenate([part.values for part in parts]),
        error=relative(
            np.concatenate([part.lost for part in parts]), whole := np.concatenate([part.whole for part in parts])
        ),
        nearest=relative(np.concatenate([part.lost_plainly for part in parts]), whole),
        plain_rows=sum(part.plain_rows for part in parts),
        fallback=format.block > 1 and any(part.fallback for part in parts),
        damp=damp if factor is None else factor.damp,
        mask=None if what is None else np.concatenate([part.mask for part in parts if part.mask is not None]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What is asked for of all rows alike."""

    format: NumberFormat
    curvature: Curvature
    importance: Floats
    what: Sparsity | None


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What became of some rows; the losses have the shape (rows,)."""

    data: Bytes
    values: Floats
    mask: Bools | None
    lost: Losses
    lost_plainly: Losses
    whole: Losses
    plain_rows: int
    fallback: bool


def _part(weights: Floats, job: _Job, pass_: _Pass | None) -> _Part:
    """Round some rows both ways, and take the better for each."""
    found = None if pass_ is None else pass_(weights)
    mask: Bools | None = None
    if found is not None:
        mask = found[1]
    elif job.what is not None:
        mask = job.what.least(weights, job.curvature.diagonal)
    # Not weights * mask, which would leave -0.0.
    stay = weights if mask is None else np.where(mask, weights, np.float32(0))
    data = job.format.encode(stay, job.importance)
    values = job.format.decode(data)
    lost_plainly = job.curvature.losses(weights - values)
    lost, plain = lost_plainly, np.ones(len(weights), dtype=np.bool_)
    if found is not None:
        changed = job.format.decode(found[0])
        losses = job.curvature.losses(weights - changed)
        plain = ~(losses < lost_plainly)
        lost = np.where(plain, lost_plainly, losses)
        data = np.where(plain[:, None], data, found[0])
        values = np.where(plain[:, None], values, changed)
    if mask is not None and values[~mask].any():
        raise _no_zero(job.format)
    whole = job.curvature.losses(weights)
    return _Part(data, values, mask, lost, lost_plainly, whole, int(plain.sum()), found is None)


class _Pass:
    """The pass with its sweeps, for any rows: bytes, and what was kept; None where the numbers ran away."""

    def __init__(self, job: _Job, factor: Factor, run: NDArray[np.intp], sweeps: int) -> None:
        self.job, self.factor, self.run, self.sweeps = job, factor, run, sweeps
        self.sweeper = Sweeper(job.curvature, run, job.format.block, factor.damp) if sweeps else None

    def __call__(self, weights: Floats) -> tuple[Bytes, Bools | None] | None:
        torch = needs_torch()
        format, (rows, columns) = self.job.format, weights.shape
        # What a column weighs once those after it make up for it: on SmolLM2 6 % less is lost than with the diagonal
        # of the hessian.
        stiffness = np.empty(columns, dtype=np.float32)
        stiffness[self.run] = self.factor.stiffness.numpy()
        data = np.empty((rows, columns // format.block, format.nbytes), dtype=np.uint8)
        rounder = Rounder(format, self.run, stiffness, data)
        ordered = torch.from_numpy(weights).t()[torch.from_numpy(self.run)].contiguous()
        try:
            errors, kept = descend(ordered, self.factor, width=format.block, sparsity=self.job.what, block=rounder)
            # In a sweep nothing comes after, and what weighs is the diagonal.
            rounder.importance = self.job.importance
            for _ in range(self.sweeps):
                assert self.sweeper is not None
                self.sweeper.sweep(ordered, errors, kept, rounder)
        except RunawayError:
            return None
        mask: Bools | None = None
        if kept is not None:
            mask = np.empty((rows, columns), dtype=np.bool_)
            mask[:, self.run] = kept.t().numpy()
        return data.reshape(rows, -1), mask


def _must_allow(what: Sparsity, format: NumberFormat) -> None:
    """Raises RecipeError where a format cannot be had together with pruning."""
    if what.pattern and format.block % what.pattern[1]:
        stay, of = what.pattern
        raise RecipeError(
            f"{stay} of {of} weights cannot be kept while rounding to {format.name}, whose blocks have {format.block}",
            hint=f"Take a format whose blocks are a multiple of {of}.",
            format=format.name,
        )
    # Zeros among weights of one sign, and among weights of both: where all stay zeros every block has one.
    generator = np.random.default_rng(0)
    probe = generator.standard_normal((8, format.block), dtype=np.float32)
    probe[:4] = np.abs(probe[:4]) + 1
    probe[:, ::4] = 0
    if format.decode(format.encode(probe))[:, ::4].any():
        raise _no_zero(format)


def _no_zero(format: NumberFormat) -> RecipeError:
    return RecipeError(
        f"{format.name} has no zero in every block, which pruned weights need",
        hint="Prune without rounding, or round to a format such as q4_0 or q8_0.",
        format=format.name,
    )
