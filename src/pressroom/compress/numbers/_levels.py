"""The levels of a format: what a code stands for before any scale is put on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]


class Levels(Protocol):
    """Levels in rising order, which the codes count."""

    @property
    def low(self) -> float:
        """The lowest level."""
        ...

    @property
    def high(self) -> float:
        """The highest level."""
        ...

    def round(self, values: Floats) -> None:
        """Put the nearest level in the place of each value. An infinite value goes to the outermost level."""
        ...

    def codes(self, levels: Floats) -> Bytes:
        """The codes of values that `round` left behind."""
        ...

    def of(self, codes: Bytes) -> Floats:
        """The levels that codes stand for."""
        ...


class Steps:
    """All whole numbers from `low` to `high`. The code 0 is `zero`: `low`, unless a format leaves codes unused."""

    def __init__(self, low: int, high: int, *, zero: int | None = None) -> None:
        self.low = float(low)
        self.high = float(high)
        self._zero = np.float32(low if zero is None else zero)

    def round(self, values: Floats) -> None:
        np.clip(values, self.low, self.high, out=values)
        np.rint(values, out=values)

    def codes(self, levels: Floats) -> Bytes:
        return (levels - self._zero).astype(np.uint8)

    def of(self, codes: Bytes) -> Floats:
        levels = codes.astype(np.float32)
        levels += self._zero
        return levels


class Codebook:
    """Whole numbers chosen by hand, in rising order."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        self.low = float(levels[0])
        self.high = float(levels[-1])
        self._levels = np.array(levels, np.float32)
        # Half-way between two whole numbers is a multiple of 1/2: which level is nearest is the same within each half.
        halves = np.arange(2 * levels[0], 2 * levels[-1] + 1) / 2 + 0.25
        nearest = np.abs(halves[:, None] - self._levels).argmin(axis=1)
        self._nearest = self._levels[nearest]
        self._code = np.zeros(levels[-1] - levels[0] + 1, np.uint8)
        self._code[np.array(levels) - levels[0]] = np.arange(len(levels))

    def round(self, values: Floats) -> None:
        np.clip(values, self.low, self.high, out=values)
        values -= np.float32(self.low)
        values *= np.float32(2)
        np.take(self._nearest, values.astype(np.int32), out=values, mode="clip")

    def codes(self, levels: Floats) -> Bytes:
        return self._code[(levels - np.float32(self.low)).astype(np.int32)]

    def of(self, codes: Bytes) -> Floats:
        return self._levels[codes]


class Chosen:
    """Any levels in rising order. A value half-way between two goes to the upper one."""

    def __init__(self, levels: tuple[float, ...]) -> None:
        self.low = levels[0]
        self.high = levels[-1]
        self._levels = np.array(levels, np.float32)
        self._middles = (self._levels[1:] + self._levels[:-1]) / np.float32(2)

    def round(self, values: Floats) -> None:
        np.take(self._levels, self._at(values), out=values, mode="clip")

    def codes(self, levels: Floats) -> Bytes:
        return self._at(levels)

    def of(self, codes: Bytes) -> Floats:
        return self._levels[codes]

    def _at(self, values: Floats) -> Bytes:
        # Fifteen comparisons of whole arrays take a seventh of the time of a search for each value.
        found = np.zeros(values.shape, np.uint8)
        for middle in self._middles:
            found += values >= middle
        return found
