"""Scales of the least weighted squared error: many candidates are rounded to, and each is given its best scale.

For given levels q of the weights x, the scale s of the least sum of w (x - s q)² is sum(w x q) / sum(w q²), and it
lowers that sum by sum(w x q)² / sum(w q²). So candidates are compared by that figure, without their errors. With an
offset, x ~ s q + o, the same holds once the weighted means are taken from x and q.

Arrays: x and w are (weights of a block, blocks), results are (blocks,).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.numbers._levels import Levels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


_NOTHING = np.float32(1e-36)


def total(*factors: Floats) -> Floats:
    """The sum over each block of the product of two arrays."""
    first, second = factors
    found: Floats = np.einsum("ij,ij->j", first, second)
    return found


def ratio(above: Floats, below: Floats) -> Floats:
    """above / below, and 0 where below is 0, or nothing beside the largest weight of a block, which is about 1."""
    found: Floats = np.divide(above, below, out=np.zeros_like(above), where=np.abs(below) > _NOTHING)
    return found


def inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 where there is none: all levels are then alike."""
    return ratio(np.ones_like(scale), scale)


def error(x: Floats, w: Floats | None, values: Floats) -> Floats:
    """The sum of w (x - values)² over each block. Uses up `values`."""
    np.subtract(x, values, out=values)
    return total(values, values) if w is None else total(np.multiply(values, values), w)


class ScaleFit:
    """The scale of each block, x ~ s * level."""

    def __init__(self, x: Floats, w: Floats | None, levels: Levels) -> None:
        self._x = x
        self._w = w
        self._wx = x if w is None else x * w
        self._levels = levels
        self._rounded = np.empty_like(x)
        self._square = np.empty_like(x)
        blocks = x.shape[1]
        self.scale = np.zeros(blocks, np.float32)
        self._gain = np.zeros(blocks, np.float32)

    def try_inverse(self, factor: Floats) -> None:
        """Round x * factor to levels, and keep the best scale for these levels if nothing better is known."""
        t = self._rounded
        np.multiply(self._x, factor, out=t)
        self._levels.round(t)
        above, below = self._sums(t)
        scale = ratio(above, below)
        gain = above * scale
        better = gain > self._gain
        np.copyto(self._gain, gain, where=better)
        np.copyto(self.scale, scale, where=better)

    def _sums(self, q: Floats) -> tuple[Floats, Floats]:
        if self._w is None:
            return total(self._x, q), total(q, q)
        np.multiply(q, q, out=self._square)
        return total(self._wx, q), total(self._square, self._w)

    def search(self, tops: Sequence[float], around: Sequence[float], repeats: int) -> Floats:
        """The best scale that is found: candidates put the extreme weight on each of `tops`, then change the best of
        them by the factors `around`, then take the best scale of its own levels for a candidate."""
        unit = inverse(extreme(self._x))
        for top in tops:
            self.try_inverse(unit * np.float32(top))
        best = inverse(self.scale)
        for factor in around:
            self.try_inverse(best * np.float32(factor))
        for _ in range(repeats):
            self.try_inverse(inverse(self.scale))
        return self.scale


def extreme(x: Floats) -> Floats:
    """The weight of each block that is farthest from 0, with its sign."""
    high = x.max(axis=0)
    low = x.min(axis=0)
    farthest: Floats = np.where(high >= -low, high, low)
    return farthest


class LineFit:
    """The scale and the offset of each block, x ~ s * q + o, for whole numbers q from 0 to `top`."""

    def __init__(self, x: Floats, w: Floats | None, top: int) -> None:
        self._top = float(top)
        self._w = w
        self._low = x.min(axis=0)
        self._span = x.max(axis=0) - self._low
        self._y = (x - self._low) * inverse(self._span)
        self._sum_w = np.float32(len(x)) if w is None else w.sum(axis=0)
        # Weighted and without its mean: sum(w y q) is then the covariance.
        self._mean = (self._y.sum(axis=0) if w is None else total(self._y, w)) / self._sum_w
        self._wy = self._y - self._mean
        if w is not None:
            self._wy *= w
        self._rounded = np.empty_like(x)
        self._square = np.empty_like(x)
        blocks = x.shape[1]
        self._scale = np.zeros(blocks, np.float32)
        self._offset = self._mean.copy()
        self._gain = np.zeros(blocks, np.float32)

    def try_line(self, scale: Floats, offset: Floats) -> None:
        """Round (y - offset) / scale, and keep the best line for these levels if nothing better is known.

        `y`, as scale and offset, is x brought to the range from 0 to 1.
        """
        t = self._rounded
        factor = inverse(scale)
        np.multiply(self._y, factor, out=t)
        t -= offset * factor
        np.clip(t, 0, self._top, out=t)
        np.rint(t, out=t)
        if self._w is None:
            mean, squares = t.sum(axis=0), total(t, t)
        else:
            np.multiply(t, self._w, out=self._square)
            mean, squares = self._square.sum(axis=0), total(self._square, t)
        mean /= self._sum_w
        spread = np.maximum(squares - mean * mean * self._sum_w, 0)
        along = total(self._wy, t)
        slope = ratio(along, spread)
        gain = along * slope
        better = gain > self._gain
        np.copyto(self._gain, gain, where=better)
        np.copyto(self._scale, slope, where=better)
        np.copyto(self._offset, self._mean - slope * mean, where=better)

    def search(self, cuts: Sequence[tuple[float, float]], repeats: int) -> tuple[Floats, Floats]:
        """The best line that is found: candidates leave out these shares of the range, below and above; then the best
        line of its own levels is taken for a candidate."""
        ones = np.ones_like(self._span)
        for below, above in cuts:
            self.try_line(ones * np.float32((1 - below - above) / self._top), ones * np.float32(below))
        for _ in range(repeats):
            self.try_line(self._scale.copy(), self._offset.copy())
        return self._scale * self._span, self._low + self._offset * self._span
