"""How much to scale: a power of how much enters each column, the one that loses least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.compress.numbers import NumberFormat

    Floats = NDArray[np.float32]

#: How far two scales may lie apart: beyond it the columns with the smallest are lost, and f16 has no room.
_MOST_APART = 256.0
#: Rows that are looked at of each tensor.
ROWS = 128


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scales:
    """`scales`, one a column; the power that they are; and the shares of the layers' output, squared, that rounding
    with them and without them loses, on the rows that were looked at."""

    scales: Floats
    power: float
    error: float
    before: float


def best_scales(
    weights: Sequence[Floats],
    moments: Floats,
    format: NumberFormat,
    *,
    hessian: Floats | None = None,
    shared: Floats | None = None,
    steps: int = 10,
) -> Scales:
    """The scales for the columns of layers with the same input, when they will be rounded to a format.

    Tried are the root of the mean square of what enters a column to the powers 0, 1/steps, … 1; the power 0 is no
    scaling, so that on what was looked at nothing is lost. `weights` are some rows of each layer, (rows, columns);
    `moments` (columns,) the mean squares; `hessian` (columns, columns) the mean of x xᵀ, with which errors that cancel
    each other count as they do (None: as if inputs were independent). `shared` (columns,): the moments to derive
    scales from, where some columns must have the same; else `moments`.
    """
    size = _sizes(moments if shared is None else shared)
    whole = sum(_loss(one, moments, hessian) for one in weights)
    tried = []
    for number in range(steps + 1):
        power = number / steps
        scales = _within(size**power)
        importance = (moments / scales**2).astype(np.float32)
        lost = 0.0
        for rows in weights:
            wide = rows * scales
            bound = format.bound(wide, importance)
            near = bound.decode(bound.encode(wide, importance)) / scales
            lost += _loss(rows - near, moments, hessian)
        tried.append((lost, power, scales))
    lost, power, scales = min(tried, key=lambda one: one[0])
    share = 1 / whole if whole > 0 else 0.0
    return Scales(scales=scales, power=power, error=lost * share, before=tried[0][0] * share)


def _sizes(moments: Floats) -> Floats:
    """The root mean squares relative to their mean; columns that little enters are not made ever smaller."""
    roots = np.sqrt(moments.astype(np.float64))
    mean = float(roots.mean())
    if not mean > 0:
        return np.ones_like(moments, np.float32)
    return np.maximum(roots / mean, 1e-4).astype(np.float32)


def _within(scales: NDArray[np.floating]) -> Floats:
    """Around 1, and not too far apart. Powers of two times 1 to 2 in steps of 1/64: the same on every machine."""
    low, high = float(scales.min()), float(scales.max())
    middle = np.sqrt(low * high)
    scales = np.clip(scales / middle, 1 / np.sqrt(_MOST_APART), np.sqrt(_MOST_APART))
    fraction, exponent = np.frexp(scales)
    found: Floats = np.ldexp(np.rint(fraction * 128) / 128, exponent).astype(np.float32)
    return found


def _loss(rows: Floats, moments: Floats, hessian: Floats | None) -> float:
    if hessian is None:
        return float((np.square(rows, dtype=np.float64) * moments).sum())
    return max(float(np.multiply(rows @ hessian, rows, dtype=np.float64).sum()), 0.0)
