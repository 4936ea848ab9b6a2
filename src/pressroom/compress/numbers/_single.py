"""Blocks with one scale, or one scale and one offset, as float16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pressroom.compress.numbers._bits import MIN, SCALE, half_bytes, halves
from pressroom.compress.numbers._blocks import BlockFormat, Lines
from pressroom.compress.numbers._fitting import LineFit, ScaleFit, error, extreme, inverse, ratio, total
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._rows import Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]
    Fields = dict[str, Bytes]


class OneScale(BlockFormat):
    """value = level * scale."""

    #: The level that the extreme weight gets in plain rounding.
    plain: ClassVar[float]
    #: The levels that the extreme weight is put on in turn; what is beyond the outermost level is cut off.
    tops: ClassVar[Sequence[float]]
    #: Factors that the best of those scales is then changed by, and how often the scale follows the levels.
    around: ClassVar[Sequence[float]] = ()
    repeats: ClassVar[int] = 2

    def choose(self, blocks: Blocks) -> Fields:
        x, w = blocks.x, blocks.w
        fitted = ScaleFit(x, w, self.levels).search(self.tops, self.around, self.repeats)
        best = np.zeros_like(fitted)
        least = np.full_like(fitted, np.inf)
        # 0 last, and only if it is better: that is for weights far below the smallest scale where no level is 0.
        for scale in (extreme(x) / np.float32(self.plain), fitted, np.zeros_like(fitted)):
            stored, near = blocks.half(scale)
            t = x * inverse(near)
            self.levels.round(t)
            t *= near
            left = error(x, w, t)
            better = left < least
            np.copyto(least, left, where=better)
            np.copyto(best, stored, where=better)
        if self.levels.low == -self.levels.high:
            best = np.abs(best)  # both signs give the same values: files are as others write them
        return {SCALE: half_bytes(best)}

    def lines(self, fields: Fields) -> Lines:
        return Lines(halves(fields[SCALE])[None], None)


class OneLine(BlockFormat):
    """value = code * scale + min."""

    top: ClassVar[int]
    #: The shares of the range that are cut off below and above.
    cuts: ClassVar[Sequence[tuple[float, float]]]
    repeats: ClassVar[int] = 2

    def __init_subclass__(cls) -> None:
        cls.levels = Steps(0, cls.top)

    def choose(self, blocks: Blocks) -> Fields:
        x, w = blocks.x, blocks.w
        low = x.min(axis=0)
        plain = (x.max(axis=0) - low) / np.float32(self.top)
        fitted = LineFit(x, w, self.top).search(self.cuts, self.repeats)
        best = [np.zeros_like(low), np.zeros_like(low)]
        least = np.full_like(low, np.inf)
        for number, (scale, offset) in enumerate((fitted, (plain, low), fitted)):
            if number == 2:
                # Once more, now that the offset is rounded: the scale that suits it.
                offset = blocks.half(offset, down=True)[1]
                scale = self._suited(x, w, scale, offset)
            stored_offset, near_offset = blocks.half(offset, down=True)
            stored, near = blocks.half(scale)
            t = x - near_offset
            t *= inverse(near)
            self.levels.round(t)
            t *= near
            t += near_offset
            left = error(x, w, t)
            better = left < least
            np.copyto(least, left, where=better)
            np.copyto(best[0], stored, where=better)
            np.copyto(best[1], stored_offset, where=better)
        return {SCALE: half_bytes(best[0]), MIN: half_bytes(best[1])}

    def _suited(self, x: Floats, w: Floats | None, scale: Floats, offset: Floats) -> Floats:
        above = x - offset
        q = above * inverse(scale)
        self.levels.round(q)
        weighed = q if w is None else q * w
        return ratio(total(weighed, above), total(weighed, q))

    def lines(self, fields: Fields) -> Lines:
        return Lines(halves(fields[SCALE])[None], halves(fields[MIN])[None])
