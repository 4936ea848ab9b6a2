"""Weights to round: drawn, and made to be awkward. And plain rounding, written down slowly to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pressroom.compress.numbers import NumberFormat, formats, number_format

# What GGUF has a type for, and llama.cpp reads.
GGUF = [form for form in formats() if form.ggml is not None]
BLOCKS = [form for form in GGUF if form.block > 1]
OTHERS = [
    number_format(name).bound(np.ones((1, 64), np.float32))
    for name in (
        *("nf4", "int8-g64", "int8-g32-asym", "int4-g32", "int4-g64-asym", "int3-g32", "int3-g16-asym", "int5-g8"),
        *("int6-g16-asym", "int7-g32", "int2-g32", "int2-g32-asym", "t2-g128", "int4-channel", "int8-channel-asym"),
    )
]
FLOATS = [form for form in formats() if form.block == 1]
NON_LINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def weights(rows: int, columns: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Like those of a model: rows of different size, and more large weights than a normal distribution has."""
    random = np.random.default_rng(seed)
    drawn = random.standard_normal((rows, columns)) * np.exp(0.3 * random.standard_normal((rows, columns)))
    return (0.04 * np.exp(0.3 * random.standard_normal((rows, 1))) * drawn).astype(np.float32)


def importances(columns: int, *, seed: int = 0) -> NDArray[np.float32]:
    return np.exp(1.5 * np.random.default_rng(seed).standard_normal(columns)).astype(np.float32)


def loss(rows: NDArray[np.float32], near: NDArray[np.float32], importance: NDArray[np.float32] | None) -> float:
    return float(losses(rows, near, importance, rows.shape[1]).sum())


def losses(
    rows: NDArray[np.float32], near: NDArray[np.float32], importance: NDArray[np.float32] | None, block: int
) -> NDArray[np.float64]:
    """The weighted squared error of each block."""
    squares = (rows.astype(np.float64) - near) ** 2
    if importance is not None:
        squares *= importance.astype(np.float64)
    return squares.reshape(len(rows), -1, block).sum(axis=2)


@st.composite
def awkward(draw: st.DrawFn, columns: int) -> NDArray[np.float32]:
    """Rows of any finite size: ordinary ones with zeros, equal, huge and tiny weights thrown in."""
    rows = draw(st.integers(1, 3))
    drawn = weights(rows, columns, seed=draw(st.integers(0, 1 << 20)))
    drawn *= np.float32(draw(st.sampled_from([1, 1, 1, 1e-3, 1e3, 1e-6, 1e-9, 1e-30, 1e6, 1e30])))
    odd = draw(
        st.lists(
            st.tuples(
                st.integers(0, rows - 1),
                st.integers(0, columns - 1),
                st.integers(1, columns),
                st.one_of(
                    st.floats(width=32, allow_nan=False, allow_infinity=False),
                    st.sampled_from([0.0, -0.0, 1.0, -1.0, 65504.0, 7e4, -1e9, 3.4e38, 6e-8, -1e-45]),
                ),
            ),
            max_size=6,
        )
    )
    for row, first, count, value in odd:
        drawn[row, first : first + count] = value
    return drawn


@st.composite
def awkward_importance(draw: st.DrawFn, columns: int) -> NDArray[np.float32] | None:
    kind = draw(st.sampled_from(["none", "drawn", "zeros", "some zeros", "huge", "tiny"]))
    if kind == "none":
        return None
    drawn = importances(columns, seed=draw(st.integers(0, 1 << 20)))
    if kind == "zeros":
        drawn[:] = 0
    elif kind == "some zeros":
        drawn[:: draw(st.integers(1, 5))] = 0
    elif kind == "huge":
        drawn *= np.float32(1e35)
    elif kind == "tiny":
        drawn *= np.float32(1e-40)
    return drawn


@dataclass(frozen=True)
class Plain:
    """What plain rounding needs to know of a format."""

    levels: tuple[int, ...]
    extreme: int = 0  # the level of the extreme weight; 0: levels count from the smallest weight on
    subs: int = 1
    sub_levels: tuple[int, int] = (1, 1)


PLAIN = {
    "q8_0": Plain(tuple(range(-127, 128)), 127),
    "q5_0": Plain(tuple(range(-16, 16)), -16),
    "q5_1": Plain(tuple(range(32))),
    "q4_0": Plain(tuple(range(-8, 8)), -8),
    "q4_1": Plain(tuple(range(16))),
    "iq4_nl": Plain(NON_LINEAR, -127),
    "iq4_xs": Plain(NON_LINEAR, -127, 8, (-32, 31)),
    "q6_k": Plain(tuple(range(-32, 32)), -32, 16, (-128, 127)),
    "q5_k": Plain(tuple(range(32)), 0, 8, (0, 63)),
    "q4_k": Plain(tuple(range(16)), 0, 8, (0, 63)),
    "q3_k": Plain(tuple(range(-4, 4)), -4, 16, (-32, 31)),
    "q2_k": Plain(tuple(range(4)), 0, 16, (0, 15)),
    "tq2_0": Plain((-1, 0, 1), 1),
    "tq1_0": Plain((-1, 0, 1), 1),
}


def _half(value: float) -> float:
    return float(np.float16(min(max(value, -65504.0), 65504.0)))


def plainly(form: NumberFormat, block: NDArray[np.float32]) -> NDArray[np.float64]:
    """One block, rounded with the scales that its extreme weights ask for."""
    how = PLAIN[form.name]
    cut = block.astype(np.float64).reshape(how.subs, -1)
    levels = np.array(how.levels, np.float64)
    if how.extreme:
        extremes = np.array([float(part[np.abs(part).argmax()]) for part in cut])
        steps, offsets = extremes / how.extreme, np.zeros(how.subs)
    else:
        lows = cut.min(axis=1) if how.subs == 1 else np.minimum(cut.min(axis=1), 0)
        highs = cut.max(axis=1) if how.subs == 1 else np.maximum(cut.max(axis=1), 0)
        steps, offsets = (highs - lows) / levels[-1], lows
    if how.subs == 1:
        steps, offsets = np.array([_half(steps[0])]), np.array([_half(offsets[0])])
    else:
        low, high = how.sub_levels
        of = steps[np.abs(steps).argmax()] / (low or high)
        steps = _in_steps(steps, _half(of), low, high)
        offsets = -_in_steps(-offsets, _half(-offsets.min() / high), 0, high)
    values = np.empty_like(cut)
    for sub, (step, offset) in enumerate(zip(steps, offsets, strict=True)):
        possible = levels * step + offset
        values[sub] = possible[np.abs(cut[sub][:, None] - possible).argmin(axis=1)]
    return values.reshape(block.shape)


def _in_steps(numbers: NDArray[np.float64], step: float, low: int, high: int) -> NDArray[np.float64]:
    return np.zeros_like(numbers) if step == 0 else np.clip(np.rint(numbers / step), low, high) * step
