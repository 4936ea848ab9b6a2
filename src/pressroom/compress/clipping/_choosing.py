"""Which part of a histogram to divide into whole numbers: by the squared error, or by the divergence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.clipping._histogram import BINS, Histogram
from pressroom.compress.clipping.base import Range, affine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.float64]

#: Shares of what was seen that are tried as an end of the range.
_SHARES = np.concatenate([np.linspace(0.02, 1, 99), [0.002, 0.005, 0.01]])
_ROUNDS = 3


def best_by_error(seen: Histogram, whole: Range, *, bits: int, symmetric: bool) -> Range:
    """The range of the least squared error. Symmetric ones are tried one by one; of an asymmetric one the ends are
    moved in turn until neither moves."""
    values, counts = seen.centres()

    def error(found: Range) -> float:
        numbers = affine(found, bits=bits, symmetric=symmetric)
        if numbers.scale == 0:
            return float((counts * values**2).sum())
        codes = np.clip(np.rint(values / numbers.scale) + numbers.zero, numbers.lowest, numbers.highest)
        return float((counts * (values - (codes - numbers.zero) * numbers.scale) ** 2).sum())

    def best(tried: Iterable[Range]) -> Range:
        return min(tried, key=error)

    if symmetric:
        found = best(Range(-whole.largest * share, whole.largest * share) for share in _SHARES)
        near = np.linspace(0.985, 1.015, 13)
        return best(Range(found.low * share, min(found.high * share, whole.largest)) for share in near)
    found = best(Range(whole.low * share, whole.high * share) for share in _SHARES)
    for _ in range(_ROUNDS):
        before = found
        found = best([found, *(Range(whole.low * share, found.high) for share in _SHARES)])
        found = best([found, *(Range(found.low, whole.high * share) for share in _SHARES)])
        if found == before:
            break
    return found


def best_by_divergence(seen: Histogram, whole: Range, *, bits: int, symmetric: bool) -> Range:
    """The distance from 0 at which to cut off so that what is left, rounded, diverges least from what was there.

    As in TensorRT's calibration: P is the histogram up to the cut with all that lies beyond added to its last bin; Q is
    the same histogram without that, its bins joined into as many as there are codes, each of which is spread evenly
    over those of its bins that are not empty; the cut with the least KL(P || Q) is taken. Zeros, of which there may be
    more than of anything else, are left out: they always have a code. Where everything has one sign, asymmetric codes
    all lie on that side.
    """
    counts = seen.folded()
    one_sided = not symmetric and (whole.low == 0 or whole.high == 0)
    levels = (1 << bits) if one_sided else (1 << (bits - 1))
    last = int(np.flatnonzero(counts)[-1]) + 1
    if last <= levels:
        return whole
    # Every bin up to where there are four for each code, then ever larger steps: the curve is flat there.
    cuts = np.unique(np.concatenate([np.geomspace(levels, last, 400).astype(np.int64), [last]]))
    cut = min(cuts.tolist(), key=lambda at: _divergence(counts, at, levels))
    size = cut * seen.reach / (BINS // 2)
    return Range(-size, size)


def _divergence(counts: Counts, cut: int, levels: int) -> float:
    inside = counts[:cut]
    p = inside.copy()
    p[-1] += counts[cut:].sum()
    # The level of each bin: as equal parts as bins allow.
    level = np.arange(cut) * levels // cut
    some = inside > 0
    sums = np.bincount(level, weights=inside, minlength=levels)
    filled = np.bincount(level, weights=some.astype(np.float64), minlength=levels)
    q = np.where(some, (sums / np.maximum(filled, 1))[level], 0.0)
    both = (p > 0) & (q > 0)
    # What the last bin got from beyond, where nothing was inside, Q does not have at all.
    missing = float(p[(p > 0) & (q == 0)].sum()) / float(p.sum())
    if not q.any() or missing == 1:
        return float("inf")
    p /= p.sum()
    q /= q.sum()
    lost = missing * np.log(1e12) if missing else 0.0
    return float((p[both] * np.log(p[both] / q[both])).sum()) + lost
