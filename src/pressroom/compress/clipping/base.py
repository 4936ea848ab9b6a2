"""What a range is, how it is chosen, and the whole numbers that it is divided into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np

from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: How a range is chosen from what was seen.
#: min-max: all of it. moving-average: what a batch usually reaches, the averages of smallest and largest over batches.
#: percentile: all but a share of the values, so that a few far ones do not widen the steps for all. mse: the range that
#: loses least, squared, between the values and what they are rounded to. kl: the range whose rounded histogram diverges
#: least from the histogram itself (Migacz, 8-bit inference with TensorRT, GTC 2017).
Method = Literal["min-max", "moving-average", "percentile", "mse", "kl"]
METHODS: Final[tuple[str, ...]] = get_args(Method)


@dataclass(frozen=True, slots=True)
class Range:
    """Values are cut off below `low` and above `high`; 0 lies between them."""

    low: float
    high: float

    @property
    def largest(self) -> float:
        """The end that is farther from 0."""
        return max(-self.low, self.high)


@dataclass(frozen=True, slots=True)
class Affine:
    """value = (code - zero) * scale, with codes from `lowest` to `highest`: 0 is a code, and comes back as 0."""

    scale: float
    zero: int
    lowest: int
    highest: int

    @property
    def range(self) -> Range:
        """What can be told apart without being cut off."""
        return Range((self.lowest - self.zero) * self.scale, (self.highest - self.zero) * self.scale)

    def codes(self, values: NDArray[np.floating]) -> NDArray[np.int32]:
        """The nearest codes."""
        if self.scale == 0:
            return np.full(values.shape, self.zero, np.int32)
        found: NDArray[np.int32] = np.clip(np.rint(values / self.scale) + self.zero, self.lowest, self.highest).astype(
            "i4"
        )
        return found

    def values(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """What codes stand for."""
        return ((codes.astype(np.int64) - self.zero) * self.scale).astype(np.float32)


def affine(found: Range, *, bits: int = 8, symmetric: bool = True) -> Affine:
    """The whole numbers for a range. Symmetric ones go from -(2^(bits-1) - 1) to as much above, so that both signs are
    alike; asymmetric ones have all 2^bits codes, from -2^(bits-1) on.

    Raises:
        RecipeError: not so many bits.
    """
    if not 2 <= bits <= 16:
        raise RecipeError(f"codes of {bits} bits are not possible", hint="Ask for 2 to 16.", asked=bits)
    half = 1 << (bits - 1)
    if symmetric:
        return Affine(found.largest / (half - 1), 0, 1 - half, half - 1)
    scale = (found.high - found.low) / (2 * half - 1)
    zero = round(-found.low / scale) - half if scale > 0 else 0
    return Affine(scale, min(max(zero, -half), half - 1), -half, half - 1)


def check_method(method: str) -> None:
    """Raises RecipeError where there is no such one."""
    if method not in METHODS:
        raise RecipeError(
            f"there is no method {method!r} to choose a range", hint=f"Take one of {', '.join(METHODS)}.", asked=method
        )
