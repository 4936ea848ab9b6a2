"""Super-blocks: sub-blocks with scales of a few bits, which count in steps of one float16 scale of the super-block.

The search begins with the best scale of each sub-block alone and rounds these scales. Then it goes round: levels for
the scales, scales of the sub-blocks for the levels, scale of the super-block for those. The sums that the last two need
are taken once for each sub-block, so that a round costs little more than to round the weights once. The best scales
that were passed on the way are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pressroom.compress.numbers._bits import MIN, SCALE, SUB_MIN, SUB_SCALE, half_bytes, halves
from pressroom.compress.numbers._blocks import BlockFormat, Lines
from pressroom.compress.numbers._fitting import LineFit, ScaleFit, error, extreme, inverse, ratio, total
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._rows import Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]
    Fields = dict[str, Bytes]


class _Best:
    """The best scales so far: arrays whose last axis is the blocks."""

    def __init__(self, blocks: int) -> None:
        self._least = np.full(blocks, np.inf, np.float32)
        self.found: tuple[Floats, ...] = ()

    def offer(self, left: Floats, *arrays: Floats) -> None:
        """Keep the arrays of the blocks whose error `left` is the least so far."""
        if not self.found:
            self.found = tuple(array.copy() for array in arrays)
            self._least = left
            return
        better = left < self._least
        self._least = np.where(better, left, self._least)
        for kept, array in zip(self.found, arrays, strict=True):
            np.copyto(kept, array, where=better)


class SuperScale(BlockFormat):
    """value = level * (scale * sub-scale)."""

    sub_levels: ClassVar[Steps]
    #: The level of a sub-block's extreme weight in plain rounding, and of the extreme sub-scale.
    plain: ClassVar[float]
    tops: ClassVar[Sequence[float]]
    around: ClassVar[Sequence[float]] = ()
    repeats: ClassVar[int] = 1
    #: Factors of the first scale of the super-block, and rounds after each.
    starts: ClassVar[Sequence[float]] = (1.0,)
    rounds: ClassVar[int] = 2

    def choose(self, blocks: Blocks) -> Fields:
        x, w = blocks.x, blocks.w
        count = len(blocks.exponent)
        best = _Best(count)
        fitted = ScaleFit(x, w, self.levels).search(self.tops, self.around, self.repeats).reshape(self.subs, count)
        simple = (extreme(x) / np.float32(self.plain)).reshape(self.subs, count)
        self._go(blocks, simple, 1.0, 0, best)
        for start in self.starts:
            self._go(blocks, fitted, start, self.rounds, best)
        sub, scale = best.found
        return {SUB_SCALE: self.sub_levels.codes(sub), SCALE: half_bytes(scale)}

    def _go(self, blocks: Blocks, each: Floats, start: float, rounds: int, best: _Best) -> None:
        x, w = blocks.x, blocks.w
        stored, scale = blocks.half(extreme(each) / np.float32(self.sub_levels.low * start))
        sub = self._rounded(each, scale)
        for left_rounds in range(rounds, -1, -1):
            step = (scale * sub).ravel()
            q = x * inverse(step)
            self.levels.round(q)
            weighed = q if w is None else q * w
            along = total(weighed, x).reshape(sub.shape)
            squares = total(weighed, q).reshape(sub.shape)
            q *= step
            best.offer(error(x, w, q).reshape(sub.shape).sum(axis=0), sub, stored)
            if left_rounds:
                sub = np.where(squares > 0, self._rounded(ratio(along, squares), scale), sub)
                stored, scale = blocks.half(ratio((sub * along).sum(axis=0), (sub * sub * squares).sum(axis=0)))

    def _rounded(self, each: Floats, scale: Floats) -> Floats:
        sub = each * inverse(scale)
        self.sub_levels.round(sub)
        return sub

    def lines(self, fields: Fields) -> Lines:
        return Lines(halves(fields[SCALE]) * self.sub_levels.of(fields[SUB_SCALE]), None)


class SuperLine(BlockFormat):
    """value = code * (scale * sub-scale) - min * sub-min."""

    top: ClassVar[int]
    #: The largest sub-scale and sub-min.
    sub_top: ClassVar[int]
    cuts: ClassVar[Sequence[tuple[float, float]]]
    repeats: ClassVar[int] = 1
    #: Factors of the first scales of the super-block, and rounds after each.
    starts: ClassVar[Sequence[float]] = (1.0,)
    rounds: ClassVar[int] = 2

    def __init_subclass__(cls) -> None:
        cls.levels = Steps(0, cls.top)

    def choose(self, blocks: Blocks) -> Fields:
        x, w = blocks.x, blocks.w
        count = len(blocks.exponent)
        best = _Best(count)
        shape = (self.subs, count)
        low = np.minimum(x.min(axis=0), 0)
        plain = (np.maximum(x.max(axis=0), 0) - low) / np.float32(self.top)
        self._go(blocks, plain.reshape(shape), low.reshape(shape), 1.0, 0, best)
        scale, offset = (one.reshape(shape) for one in LineFit(x, w, self.top).search(self.cuts, self.repeats))
        for start in self.starts:
            self._go(blocks, scale, offset, start, self.rounds, best)
        sub, least, stored, stored_min = best.found
        return {
            SUB_SCALE: sub.astype(np.uint8),
            SUB_MIN: least.astype(np.uint8),
            SCALE: half_bytes(stored),
            MIN: half_bytes(stored_min),
        }

    def _go(self, blocks: Blocks, each: Floats, offset: Floats, start: float, rounds: int, best: _Best) -> None:
        x, w = blocks.x, blocks.w
        shape = each.shape
        # One sign for all offsets of the super-block: that of most.
        sign = np.where(offset.sum(axis=0) > 0, np.float32(-1), np.float32(1))
        under = np.maximum(-offset * sign, 0)
        divisor = np.float32(self.sub_top * start)
        stored, scale = blocks.half(each.max(axis=0) / divisor)
        stored_min, unit = blocks.half(sign * under.max(axis=0) / divisor)
        sub = self._whole(each * inverse(scale))
        least = self._whole(-offset * inverse(unit))
        sum_w = np.float32(len(x)) if w is None else w.sum(axis=0).reshape(shape)
        sum_x = (x if w is None else x * w).sum(axis=0).reshape(shape)
        for left_rounds in range(rounds, -1, -1):
            step, down = scale * sub, unit * least
            q = x + down.ravel()
            q *= inverse(step).ravel()
            self.levels.round(q)
            weighed = q if w is None else q * w
            sum_q = weighed.sum(axis=0).reshape(shape)
            squares = total(weighed, q).reshape(shape)
            along = total(weighed, x).reshape(shape)
            sums = _Sums(sum_w, sum_x, sum_q, squares, along)
            q *= step.ravel()
            q -= down.ravel()
            best.offer(error(x, w, q).reshape(shape).sum(axis=0), sub, least, stored, stored_min)
            if left_rounds:
                sub, least = self._follow(sums, scale, unit, sub)
                scale, unit = sums.units(sub, least)
                (stored, scale), (stored_min, unit) = blocks.half(scale), blocks.half(unit)

    def lines(self, fields: Fields) -> Lines:
        step = halves(fields[SCALE]) * fields[SUB_SCALE].astype(np.float32)
        return Lines(step, -(halves(fields[MIN]) * fields[SUB_MIN].astype(np.float32)))

    def _whole(self, numbers: Floats) -> Floats:
        np.clip(numbers, 0, self.sub_top, out=numbers)
        return np.rint(numbers, out=numbers)

    def _follow(self, sums: _Sums, scale: Floats, unit: Floats, sub: Floats) -> tuple[Floats, Floats]:
        """The sub-scales and sub-mins that suit the levels best: the whole numbers on both sides of the best scale,
        each with its own best offset."""
        below = np.floor(sums.slope() * inverse(scale))
        found: tuple[Floats, Floats] | None = None
        least_error = None
        for candidate in (below, below + 1, sub):
            tried = np.clip(candidate, 0, np.float32(self.sub_top))
            step = tried * scale
            low = self._whole((step * sums.q - sums.x) * inverse(unit) / sums.w_or_one())
            left = sums.left(step, unit * low)
            if found is None or least_error is None:
                found, least_error = (tried, low), left
            else:
                better = left < least_error
                found = (np.where(better, tried, found[0]), np.where(better, low, found[1]))
                least_error = np.where(better, left, least_error)
        assert found is not None
        return found


class _Sums:
    """Weighted sums over sub-blocks: of 1, x, q, q² and x q. Each (sub-blocks, blocks)."""

    def __init__(self, w: Floats | np.float32, x: Floats, q: Floats, squares: Floats, along: Floats) -> None:
        self.w = w
        self.x = x
        self.q = q
        self.squares = squares
        self.along = along

    def w_or_one(self) -> Floats | np.float32:
        """The sum of the weights, and 1 where it is 0."""
        if isinstance(self.w, np.ndarray):
            return np.where(self.w > 0, self.w, np.float32(1))
        return self.w

    def left(self, step: Floats, down: Floats) -> Floats:
        """The error of x ~ step * q - down, without sum(w x²), which is the same for all."""
        return step * (step * self.squares - 2 * self.along - 2 * down * self.q) + down * (down * self.w + 2 * self.x)

    def slope(self) -> Floats:
        """The best step, with whatever offset suits it."""
        mean = self.q / self.w_or_one()
        return ratio(np.maximum(self.along - mean * self.x, 0), np.maximum(self.squares - mean * self.q, 0))

    def units(self, sub: Floats, least: Floats) -> tuple[Floats, Floats]:
        """The best scale and the best unit of the offsets of each super-block, for these sub-scales and sub-mins."""
        a = (sub * sub * self.squares).sum(axis=0)
        b = (sub * least * self.q).sum(axis=0)
        c = (least * least * self.w).sum(axis=0)
        u = (sub * self.along).sum(axis=0)
        v = (least * self.x).sum(axis=0)
        determinant = a * c - b * b
        # Where one follows from the other, the offsets are left out or the scales are.
        whole = determinant > np.float32(1e-6) * a * c
        scale = np.where(whole, ratio(u * c - b * v, determinant), ratio(u, a))
        unit = np.where(whole, ratio(u * b - a * v, determinant), np.float32(0))
        return np.maximum(scale, 0), unit
