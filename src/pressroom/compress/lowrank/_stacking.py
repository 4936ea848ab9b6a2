"""Matrices of one shape as one tensor of three dimensions, decomposed together with tensorly."""

from __future__ import annotations

import importlib
import math
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pressroom.compress.lowrank._factoring import spread
from pressroom.compress.lowrank.base import Keep, Stacked
from pressroom.compress.rounding._curvature import Curvature, computing, relative
from pressroom.kernel import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pressroom.compress.lowrank.base import Floats

Decomposition = Literal["tucker", "cp"]

_ROUNDS = 25
# Of the mean of the hessian's diagonal: here its factor is divided by.
_DAMP = 1e-3
# Alternating least squares hold a matrix of this many numbers for each rank: beyond 2 GB of float64 it is refused.
_MOST_NUMBERS = 1 << 28


def needs_tensorly() -> Any:
    """The modules tensorly and tensorly.decomposition. Raises MissingDependencyError."""
    try:
        return importlib.import_module("tensorly"), importlib.import_module("tensorly.decomposition")
    except ImportError as error:
        raise MissingDependencyError(
            "Tucker and CP decompositions need the library tensorly, which is not installed",
            hint="Install it: pip install 'pressroom[compress]'",
            missing="tensorly",
        ) from error


def stacked(
    matrices: Sequence[Floats],
    keep: Keep,
    by: Decomposition,
    curvatures: Sequence[Curvature] = (),
    *,
    seed: int = 0,
    threads: int = 1,
) -> Stacked:
    """Decompose matrices of one shape together.

    tucker: a core (matrices, r, s), and vectors of the rows (rows, r) and of the columns (columns, s) that all matrices
        share. `rank` is r and s; with `share` these are as near to each other as the shape lets them.
    cp: sums of outer products of three vectors: `rank` of them, or as many as `share` allows.

    With `curvatures`, one for each matrix, inputs are whitened by their mean first: where all matrices have the same
    input, as gate and up of a layer, the loss on the output is what is made small.

    Raises:
        RecipeError: the shapes differ, an entry is not finite, `keep` says `energy`, nothing fits the share, or a CP
            decomposition would not fit into memory.
        MissingDependencyError: tensorly is not installed.
    """
    tensorly, decomposition = needs_tensorly()
    shapes = {np.shape(one) for one in matrices}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or len(curvatures) not in (0, len(matrices)):
        raise RecipeError(
            f"matrices that are decomposed together have one shape; these have {sorted(shapes)}",
            hint="Choose targets of one shape, with a hessian for each of them or for none.",
        )
    plain = np.stack(matrices).astype(np.float64)
    if not np.isfinite(plain).all():
        raise RecipeError("not all of the weights are finite", hint="The model is damaged: check the weights.")
    ranks = stack_ranks(plain.shape, keep, by)
    whiten, back = _whitening(curvatures, plain.shape[2], threads)
    tensor = plain @ whiten
    size = float(np.abs(tensor).max()) or 1.0
    with tensorly.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of ranks that one of its unfoldings does not have, which it cuts to what it has
        if by == "tucker":
            # The mode of the matrices stays whole: they are few, and differ.
            core, factors = decomposition.partial_tucker(
                tensor / size, rank=list(ranks), modes=[1, 2], n_iter_max=_ROUNDS, random_state=seed
            )[0]
            found = factors[0] @ core @ factors[1].T
        else:
            parts = decomposition.parafac(
                tensor / size, rank=ranks[0], n_iter_max=_ROUNDS, init="random", random_state=seed, tol=1e-6
            )
            found = tensorly.cp_to_tensor(parts)
    values = (np.asarray(found) @ back * size).astype(np.float32)
    if not np.isfinite(values).all():
        raise RecipeError(
            f"the {by} decomposition gave numbers that are not finite", hint="Ask for another rank, or take by = 'svd'."
        )
    return Stacked(
        values=values,
        numbers=stack_numbers(plain.shape, ranks),
        ranks=ranks,
        errors=_errors(plain, values, curvatures, threads),
    )


def _whitening(curvatures: Sequence[Curvature], columns: int, threads: int) -> tuple[Any, Any]:
    """What the inputs' side is multiplied with, and what undoes it."""
    usable = [one.matrix for one in curvatures if one.usable]
    if not usable:
        return np.eye(columns), np.eye(columns)
    with computing(threads):
        found = spread(Curvature(np.mean(usable, axis=0, dtype=np.float32)), damp=_DAMP)
        if found is None:
            return np.eye(columns), np.eye(columns)
        return found.numpy(), found.inverse().numpy()


def _errors(plain: Any, values: Floats, curvatures: Sequence[Curvature], threads: int) -> tuple[float, ...]:
    found = []
    for number, (before, after) in enumerate(zip(plain.astype(np.float32), values, strict=True)):
        if curvatures:
            with computing(threads):
                losses = [curvatures[number].losses(one) for one in (before - after, before)]
        else:
            losses = [np.square(one, dtype=np.float64).sum(axis=1) for one in (before - after, before)]
        found.append(relative(losses[0], losses[1]))
    return tuple(found)


def stack_ranks(shape: tuple[int, ...], keep: Keep, by: Decomposition) -> tuple[int, ...]:
    """The ranks of a decomposition: (r, s) of Tucker, (r,) of CP. Raises RecipeError."""
    count, rows, columns = shape
    if keep.energy:
        raise RecipeError(f"{by} takes a rank or a share, not an energy", hint="Give rank = 64 or share = 0.5.")
    if by == "tucker":
        ranks = _tucker_ranks(count, rows, columns, keep)
    else:
        ranks = (keep.rank or int(keep.share * math.prod(shape) / sum(shape) + 1e-9),)
        needed = ranks[0] * max(rows * columns, count * max(rows, columns))
        if needed > _MOST_NUMBERS:
            raise RecipeError(
                f"a CP decomposition of {count} x {rows:,} x {columns:,} with {ranks[0]:,} parts needs "
                f"{needed * 8 / 1e9:.1f} GB",
                hint="Ask for a lower rank or share, for fewer layers, or take by = 'tucker'.",
                needed=needed * 8,
            )
    if min(ranks) < 1:
        raise RecipeError(
            f"a share of {keep.share} of {count} x {rows:,} x {columns:,} numbers is less than {by} of rank 1 needs",
            hint="Ask for a larger share.",
            share=keep.share,
        )
    return ranks


def _tucker_ranks(count: int, rows: int, columns: int, keep: Keep) -> tuple[int, ...]:
    least = min(rows, columns)
    if keep.rank:
        return min(keep.rank, rows), min(keep.rank, columns)
    most = keep.share * count * rows * columns
    # count r² + (rows + columns) r = most, for r = s.
    both = int((-(rows + columns) + math.sqrt((rows + columns) ** 2 + 4 * count * most)) / (2 * count))
    if both < least:
        return both, both
    # The shorter side keeps all its directions, and needs no vectors for that; they are counted all the same.
    longer = int((most - least**2) / (max(rows, columns) + count * least))
    longer = max(least, min(longer, max(rows, columns), count * least))
    return (longer, least) if rows > columns else (least, longer)


def stack_numbers(shape: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    """How many numbers are in the parts."""
    count, rows, columns = shape
    if len(ranks) == 1:
        return ranks[0] * sum(shape)
    return rows * ranks[0] + columns * ranks[1] + count * ranks[0] * ranks[1]
