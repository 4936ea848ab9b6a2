"""A histogram of a stream of numbers, of one size however many come and however far they reach."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Of both signs together. In the worst case the largest value lies a little above half of the reach: then each sign has
#: 2,048 bins, which is what TensorRT's calibration looks at.
BINS = 8192
_PIECE = 1 << 20


class Histogram:
    """Counts in equal bins from -reach to reach, the reach a power of two.

    Where a value lies beyond it the reach is doubled, as often as needed, and bins are joined; as bins of a smaller
    reach lie whole in those of a larger one, the counts are those that all values together would have given, in any
    order. Memory is fixed: 64 KB. Zeros are counted apart: they lie in no bin, and come back as they are whatever is
    chosen.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        #: 0 until something other than 0 came.
        self.reach = 0.0
        self._zeros = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count finite values."""
        flat = values.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            self._add(flat[start : start + _PIECE].astype(np.float64))

    def _add(self, values: NDArray[np.float64]) -> None:
        other = values[values != 0]
        self._zeros += values.size - other.size
        if not other.size:
            return
        largest = float(np.abs(other).max())
        # Not the largest itself, so that it does not lie on the outer edge of the last bin.
        needed = 2.0 ** math.frexp(largest)[1]
        if self.reach == 0:
            self.reach = needed
        while self.reach < needed:
            self._double()
        at = np.floor(other * (BINS / 2 / self.reach)).astype(np.int64) + BINS // 2
        self.counts += np.bincount(at, minlength=BINS)

    def _double(self) -> None:
        joined = np.zeros_like(self.counts)
        joined[BINS // 4 : 3 * BINS // 4] = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = joined
        self.reach *= 2

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum()) + self._zeros

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2 * self.reach / BINS

    def edges(self) -> NDArray[np.float64]:
        """The lower ends of the bins and the upper end of the last."""
        return np.linspace(-self.reach, self.reach, BINS + 1)

    def centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The middles of the bins that hold anything, and their counts; 0 itself is one."""
        some = np.flatnonzero(self.counts)
        middles: NDArray[np.float64] = (some + 0.5 - BINS / 2).astype(np.float64) * self.width
        counts = self.counts[some].astype(np.float64)
        if self._zeros:
            middles = np.concatenate([middles, [0.0]])
            counts = np.concatenate([counts, [float(self._zeros)]])
        return middles, counts

    def folded(self) -> NDArray[np.float64]:
        """The counts by distance from 0, of both signs together: BINS / 2 bins. Without the zeros."""
        half = BINS // 2
        return (self.counts[half:] + self.counts[:half][::-1]).astype(np.float64)

    def quantile(self, share: float) -> float:
        """The value that this share of all lie below, evenly spread in its bin."""
        counts = self.counts.astype(np.float64)
        counts[BINS // 2] += self._zeros
        return _quantile(counts, share) * self.width - self.reach

    def quantile_of_size(self, share: float) -> float:
        """The distance from 0 that this share of all lie within."""
        counts = self.folded()
        counts[0] += self._zeros
        return _quantile(counts, share) * self.width


def _quantile(counts: NDArray[np.float64], share: float) -> float:
    """In bins from the first edge."""
    below = np.concatenate([[0.0], np.cumsum(counts)])
    wanted = share * below[-1]
    at = int(np.clip(np.searchsorted(below, wanted, side="left") - 1, 0, len(counts) - 1))
    return at + (wanted - below[at]) / counts[at] if counts[at] else float(at)
