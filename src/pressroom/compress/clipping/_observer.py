"""Watches numbers go by, and says afterwards which range to divide into whole numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.compress.clipping._choosing import best_by_divergence, best_by_error
from pressroom.compress.clipping._histogram import Histogram
from pressroom.compress.clipping.base import Affine, Method, Range, affine, check_method
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

#: What a batch adds to the moving averages, as in PyTorch's observer.
MOMENTUM = 0.01
#: In percent, of all values: what lies within the range.
PERCENTILE = 99.99


class Observer:
    """What a stream of arrays holds: smallest, largest, their moving averages, and a histogram. Memory is fixed.

    All but the moving averages are the same in whatever order and pieces the numbers come. `name` is for errors.
    """

    def __init__(self, name: str = "", *, percentile: float = PERCENTILE) -> None:
        if not 50 < percentile <= 100:
            raise RecipeError(
                f"a percentile of {percentile} is not possible",
                hint="Give one above 50 and up to 100.",
                asked=percentile,
            )
        self.name = name
        self.percentile = percentile
        self.low = 0.0
        self.high = 0.0
        self._histogram = Histogram()
        self._average: tuple[float, float] | None = None

    @property
    def seen(self) -> int:
        """How many numbers came by."""
        return self._histogram.total

    def add(self, array: ArrayLike) -> None:
        """Look at a batch, of any shape.

        Raises:
            RecipeError: a number is infinite or is none; nothing of the batch is counted.
        """
        values = np.asarray(array, np.float32)
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            bad = int((~np.isfinite(values)).sum())
            raise RecipeError(
                f"{bad:,} of {values.size:,} numbers{f' at {self.name}' if self.name else ''} are not finite",
                hint="The model or what it is calibrated with is damaged: check its outputs first.",
                name=self.name,
                count=bad,
            )
        self._histogram.add(values)
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._average is None:
            self._average = low, high
        else:
            before = self._average
            self._average = before[0] + MOMENTUM * (low - before[0]), before[1] + MOMENTUM * (high - before[1])

    def range(self, method: Method = "mse", *, bits: int = 8, symmetric: bool = True) -> Range:
        """The range to keep. It always has 0 in it, and is never wider than what was seen.

        For "mse" and "kl" it depends on how many bits there will be, and whether codes are symmetric. "kl" of an
        asymmetric range cuts off both ends at one distance from 0.

        Raises:
            RecipeError: nothing was seen, or there is no such method.
        """
        check_method(method)
        if not self.seen:
            raise RecipeError(
                f"nothing was seen{f' at {self.name}' if self.name else ''}: there is no range",
                hint="Run text through the model between prepare and convert.",
                name=self.name,
            )
        affine(Range(0, 0), bits=bits)  # refuses the bits
        whole = Range(self.low, self.high)
        if self._histogram.reach == 0 or method == "min-max":
            return whole
        if method == "moving-average":
            assert self._average is not None
            return _inside(Range(*self._average), whole)
        if method == "percentile":
            return _inside(self._percentile(symmetric=symmetric), whole)
        if method == "mse":
            return _inside(best_by_error(self._histogram, whole, bits=bits, symmetric=symmetric), whole)
        return _inside(best_by_divergence(self._histogram, whole, bits=bits, symmetric=symmetric), whole)

    def scale_and_zero(self, method: Method = "mse", *, bits: int = 8, symmetric: bool = True) -> Affine:
        """The whole numbers for that range."""
        return affine(self.range(method, bits=bits, symmetric=symmetric), bits=bits, symmetric=symmetric)

    def error(self, numbers: Affine) -> float:
        """What rounding to them loses of all that was seen, squared, as a share of its squares; from the histogram."""
        values, counts = self._histogram.centres()
        if not counts.size or not (whole := float((counts * values**2).sum())):
            return 0.0
        return float((counts * (values - numbers.values(numbers.codes(values))) ** 2).sum()) / whole

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"name": self.name, "seen": self.seen, "low": self.low, "high": self.high}

    def _percentile(self, *, symmetric: bool) -> Range:
        share = self.percentile / 100
        if symmetric:
            size = self._histogram.quantile_of_size(share)
            return Range(-size, size)
        tail = (1 - share) / 2
        return Range(self._histogram.quantile(tail), self._histogram.quantile(1 - tail))


def _inside(found: Range, whole: Range) -> Range:
    """Not beyond what was seen, and with 0 in it."""
    return Range(min(max(found.low, whole.low), 0.0), max(min(found.high, whole.high), 0.0))
