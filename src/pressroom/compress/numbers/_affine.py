"""The scales of whole numbers in equal steps, above zero, and the code of 0 where codes count from 0 on.

As in `_fitting`, candidates are rounded to and the one that loses least is kept; plain rounding, which takes the scale
from the largest weight, is one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.numbers._fitting import LineFit, ScaleFit, error, extreme, inverse, ratio, total
from pressroom.compress.numbers._levels import Levels
from pressroom.compress.numbers._rows import PIECE, Blocks
from pressroom.compress.numbers._tables import cut_shares

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_AROUND = (0.97, 0.99, 1.01, 1.03)
_REPEATS = 2
#: Parts of the range that codes are spread over, for a block and for a matrix: with few levels, or many weights, less.
_SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
_NEAR = (0.92, 0.94, 0.96, 0.975, 0.985, 0.993, 1.007, 1.015, 1.025, 1.04, 1.06, 1.08)
_SHRUNK_MORE = tuple(float(share) for share in np.geomspace(1, 0.06, 28))


def best_scale(blocks: Blocks, levels: Levels) -> Floats:
    """The scale of each block as it is stored, x ~ level * scale."""
    x, w = blocks.x, blocks.w
    largest: Floats = np.abs(extreme(x))
    fit = ScaleFit(x, w, levels)
    unit = inverse(largest)
    for top in np.linspace(0.5, 1.3, 11) if levels.high > 3 else np.linspace(0.9, 4, 14):
        fit.try_inverse(unit * np.float32(top * levels.high))
    best = inverse(fit.scale)
    for factor in _AROUND:
        fit.try_inverse(best * np.float32(factor))
    for _ in range(_REPEATS):
        fit.try_inverse(inverse(fit.scale))
    found = np.zeros_like(largest)
    least = np.full_like(largest, np.inf)
    # A scale of 0 last, and only if it is better: for weights far below the smallest float16.
    plain: Floats = largest / np.float32(levels.high)
    for scale in (plain, fit.scale, np.zeros_like(largest)):
        stored, near = blocks.half(scale)
        t = x * inverse(near)
        levels.round(t)
        t *= near
        left = error(x, w, t)
        better = left < least
        np.copyto(least, left, where=better)
        np.copyto(found, stored, where=better)
    return found


def best_affine(blocks: Blocks, top: int) -> tuple[Floats, Floats]:
    """The scale of each block as it is stored, and the code of 0, x ~ (code - zero) * scale."""
    x, w = blocks.x, blocks.w
    low, high = np.minimum(x.min(axis=0), 0), np.maximum(x.max(axis=0), 0)
    best = [np.zeros_like(low), np.zeros_like(low)]
    near_best = np.zeros_like(low)
    least = np.full_like(low, np.inf)

    def attempt(scale: Floats, zero: Floats) -> None:
        stored, near = blocks.half(scale)
        t = _coded(x, inverse(near), zero, top)
        t *= near
        left = error(x, w, t)
        better = left < least
        np.copyto(least, left, where=better)
        np.copyto(near_best, near, where=better)
        np.copyto(best[0], stored, where=better)
        np.copyto(best[1], zero, where=better)

    for share in _SHRUNK:
        scale = (high - low) * np.float32(share / top)
        attempt(scale, np.clip(np.rint(-low * np.float32(share) * inverse(scale)), 0, top))
    scale, offset = LineFit(x, w, top).search(cut_shares(top, (0, 1)), 1)
    for rounding in (np.floor, np.ceil):
        attempt(scale, np.clip(rounding(-offset * inverse(scale)), 0, top))
    for _ in range(_REPEATS):
        q = _coded(x, inverse(near_best), best[1], top)
        weighed = q if w is None else q * w
        attempt(ratio(total(weighed, x), total(weighed, q)), best[1].copy())
    attempt(np.zeros_like(low), np.zeros_like(low))
    return best[0], best[1]


def _coded(x: Floats, factor: Floats, zero: Floats, top: int) -> Floats:
    """code - zero of the nearest codes."""
    t = x * factor
    np.rint(t, out=t)
    np.clip(t, -zero, top - zero, out=t)
    return t


def tensor_scale(rows: Floats, importance: Floats | None, levels: Levels) -> float:
    """The one scale of a matrix: found among parts of the range, then fitted to the levels that it gives."""
    largest = float(np.abs(rows).max(initial=0))
    if largest == 0:
        return 0.0
    return _searched(rows, importance, [(largest * share / levels.high, 0.0) for share in _SHRUNK_MORE], levels.low,
                     levels.high)[0]  # fmt: skip


def tensor_affine(rows: Floats, importance: Floats | None, top: int) -> tuple[float, int]:
    """The one scale of a matrix, and its code of 0."""
    low, high = min(float(rows.min(initial=0)), 0.0), max(float(rows.max(initial=0)), 0.0)
    if low == high:
        return 0.0, 0
    tried = []
    for share in _SHRUNK_MORE:
        scale = (high - low) * share / top
        tried.append((scale, float(np.clip(np.rint(-low * share / scale), 0, top))))
    scale, zero = _searched(rows, importance, tried, 0.0, float(top))
    return scale, int(zero)


def _searched(
    rows: Floats, importance: Floats | None, tried: list[tuple[float, float]], low: float, high: float
) -> tuple[float, float]:
    """The best scale and zero of those given, or what fits the levels of the best of them still better. The scale is
    rounded as float16 rounds the fraction, so that products with it are exact."""
    weighs = None
    if importance is not None and importance.max() > 0:
        weighs = (importance / importance.max()).astype(np.float32)
    best, least, fitted = (0.0, 0.0), np.inf, 0.0

    def attempt(scale: float, zero: float) -> None:
        nonlocal best, least, fitted
        scale = _coarse(scale)
        left, above, below = _loss(rows, weighs, scale, low - zero, high - zero)
        if left < least:
            best, least, fitted = (scale, zero), left, above / below if below > 0 else 0.0

    for scale, zero in tried:
        attempt(scale, zero)
    around, zero = best
    for factor in _NEAR:
        attempt(around * factor, zero)
    for _ in range(_REPEATS):
        if fitted > 0:
            attempt(fitted, zero)
    return best


def _coarse(scale: float) -> float:
    """The nearest number with 11 bits, as a float16 has, of any size that a float32 can have."""
    fraction, exponent = np.frexp(scale)
    return float(np.ldexp(np.rint(fraction * 2048) / 2048, max(int(exponent), -100)))


def _loss(rows: Floats, w: Floats | None, scale: float, low: float, high: float) -> tuple[float, float, float]:
    """The sum of w (x - q s)², of w x q, and of w q², where q are the nearest from `low` to `high`."""
    sums = np.zeros(3)
    for x in _pieces(rows):
        with np.errstate(over="ignore"):
            q = x * np.float32(1 / scale)
        np.clip(q, low, high, out=q)
        np.rint(q, out=q)
        weighed = q if w is None else q * w
        away = (x - q * np.float32(scale)).astype(np.float64)
        squares = np.square(away, out=away)
        if w is not None:
            squares *= w
        sums += (
            squares.sum(),
            np.multiply(weighed, x, dtype=np.float64).sum(),
            np.multiply(weighed, q, dtype=np.float64).sum(),
        )
    return float(sums[0]), float(sums[1]), float(sums[2])


def _pieces(rows: Floats) -> Iterator[Floats]:
    step = max(1, PIECE // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step].astype(np.float32)
