"""Ranges of a stream of numbers: what is counted, and where each method cuts off."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pressroom.compress.clipping import METHODS, Affine, Observer, Range
from pressroom.compress.clipping._histogram import BINS, Histogram
from pressroom.compress.clipping.base import affine
from pressroom.kernel import RecipeError

Numbers = NDArray[np.float32]


def normal(count: int = 200_000, *, seed: int = 0) -> Numbers:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def watched(*batches: Numbers, percentile: float = 99.99) -> Observer:
    observer = Observer("layer", percentile=percentile)
    for batch in batches:
        observer.add(batch)
    return observer


def loss(values: Numbers, numbers: Affine) -> float:
    return float(((values.astype(np.float64) - numbers.values(numbers.codes(values))) ** 2).sum())


@given(
    sizes=st.lists(st.sampled_from([1e-30, 1e-3, 1, 3, 1e4, 1e30, 0]), min_size=1, max_size=5), seed=st.integers(0, 99)
)
@settings(max_examples=15)
def test_a_histogram_does_not_depend_on_the_order(sizes: list[float], seed: int) -> None:
    """Nor on the pieces: what came first may be far smaller than what comes later."""
    batches = [(normal(500, seed=seed + at) * np.float32(size)) for at, size in enumerate(sizes)]
    once, backwards = Histogram(), Histogram()
    once.add(np.concatenate(batches))
    for batch in batches[::-1]:
        backwards.add(batch)
    assert once.reach == backwards.reach and np.array_equal(once.counts, backwards.counts)
    assert once.total == backwards.total == 500 * len(sizes)


def test_a_histogram_counts_what_numpy_counts() -> None:
    values = normal()
    found = Histogram()
    found.add(values)
    largest = float(np.abs(values).max())
    assert found.reach / 2 <= largest <= found.reach
    counted = np.histogram(values[values != 0].astype(np.float64), bins=found.edges())[0]
    assert np.array_equal(found.counts, counted)
    assert len(found.folded()) == BINS // 2 and found.folded().sum() == found.counts.sum()
    for share in (0.001, 0.3, 0.5, 0.99, 1.0):
        assert found.quantile(share) == pytest.approx(np.quantile(values, share), abs=2 * found.width)


def test_min_max_and_moving_average() -> None:
    observer = watched(np.array([-1.0, 4.0]), np.array([[-3.0], [2.0]]))
    assert observer.range("min-max") == Range(-3, 4)
    low, high = observer.range("moving-average").low, observer.range("moving-average").high
    assert (low, high) == (pytest.approx(-1.02), pytest.approx(3.98))
    assert observer.seen == 4
    # The range always has 0 in it, so that 0 is a code.
    assert watched(np.array([2.0, 5.0])).range("min-max") == Range(0, 5)
    assert watched(np.array([-2.0, -5.0])).range("min-max") == Range(-5, 0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_percentile(symmetric: bool) -> None:
    values = normal()
    found = watched(values, percentile=99.0).range("percentile", symmetric=symmetric)
    if symmetric:
        assert found.high == pytest.approx(np.quantile(np.abs(values), 0.99), abs=0.01)
    else:
        assert found.low == pytest.approx(np.quantile(values, 0.005), abs=0.01)
    outside = float(((values < found.low) | (values > found.high)).mean())
    assert outside == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["normal", "tails", "one-sided", "shifted"])
def test_mse_is_as_good_as_the_best_of_many(kind: str, bits: int, symmetric: bool) -> None:
    """Of a hundred symmetric ranges, or six hundred asymmetric ones, on the numbers themselves."""
    values = {
        "normal": normal(6_000),
        "tails": np.random.default_rng(1).standard_t(3, 6_000).astype(np.float32),
        "one-sided": np.maximum(normal(6_000), 0),
        "shifted": normal(6_000) + 2,
    }[kind]
    observer = watched(values)
    ours = loss(values, observer.scale_and_zero("mse", bits=bits, symmetric=symmetric))
    low, high = float(values.min()), float(values.max())
    ends = np.linspace(0.03, 1, 25)
    if symmetric:
        tried = [Range(-max(-low, high) * end, max(-low, high) * end) for end in np.linspace(0.01, 1, 100)]
    else:
        tried = [Range(min(low, 0) * one, max(high, 0) * two) for one in ends for two in ends]
    best = min(loss(values, affine(one, bits=bits, symmetric=symmetric)) for one in tried)
    assert ours <= 1.03 * best
    numbers = observer.scale_and_zero("mse", bits=bits, symmetric=symmetric)
    assert observer.error(numbers) * float((values.astype(np.float64) ** 2).sum()) == pytest.approx(ours, rel=0.05)


def test_kl_leaves_out_what_few_values_reach() -> None:
    """A few far values do not widen the steps for all; and of a plain histogram next to nothing is cut off."""
    body = np.random.default_rng(2).laplace(size=400_000).astype(np.float32)
    far = np.full(20, 120, np.float32)
    found = watched(body, far).range("kl", bits=8)
    assert 5 < found.high < 20
    even = np.random.default_rng(3).uniform(-1, 1, 400_000).astype(np.float32)
    assert watched(even).range("kl", bits=8).high > 0.97
    assert watched(body).range("kl", bits=4).high < watched(body).range("kl", bits=8).high


def test_kl_is_not_led_astray_by_zeros() -> None:
    """What a ReLU leaves: half of all is 0, which has a code whatever is chosen."""
    values = np.maximum(normal(), 0)
    assert watched(values).range("kl", bits=8).high > 3.5
    assert watched(values).range("kl", bits=8, symmetric=False).high > 3.5


@pytest.mark.parametrize("method", METHODS)
@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([1e-38, 1e-6, 1, 1e6, 1e37]),
    shift=st.sampled_from([-30, -1, 0, 0, 1, 30]),
    bits=st.sampled_from([2, 4, 8]),
    symmetric=st.booleans(),
)
@settings(max_examples=6)
def test_any_range_is_inside_and_zero_comes_back(
    method: str, seed: int, size: float, shift: int, bits: int, symmetric: bool
) -> None:
    values = ((normal(300, seed=seed) + np.float32(shift)) * np.float32(size)).astype(np.float32)
    observer = watched(values[:150], values[150:])
    found = observer.range(method, bits=bits, symmetric=symmetric)  # type: ignore[arg-type]
    assert min(float(values.min()), 0) <= found.low <= 0 <= found.high <= max(float(values.max()), 0)
    numbers = observer.scale_and_zero(method, bits=bits, symmetric=symmetric)  # type: ignore[arg-type]
    assert numbers.values(numbers.codes(np.zeros(1))) == [0]
    assert numbers.lowest <= numbers.zero <= numbers.highest and numbers.highest - numbers.lowest < 1 << bits
    codes = numbers.codes(values)
    assert numbers.lowest <= codes.min() and codes.max() <= numbers.highest
    # What lies inside is off by half a step, or a little more where the zero was rounded to a code.
    inside = (values >= numbers.range.low) & (values <= numbers.range.high)
    off = np.abs(values - numbers.values(codes))[inside]
    assert not off.size or off.max() <= 0.5001 * numbers.scale


def test_nothing_but_zeros() -> None:
    observer = watched(np.zeros(10, np.float32))
    for method in METHODS:
        numbers = observer.scale_and_zero(method, symmetric=False)  # type: ignore[arg-type]
        assert numbers.scale == 0 and numbers.values(numbers.codes(np.array([0.0, 1.0]))).tolist() == [0, 0]
    assert observer.error(numbers) == 0


def test_refused() -> None:
    observer = Observer("blk.3")
    with pytest.raises(RecipeError, match=r"nothing was seen at blk\.3"):
        observer.range("mse")
    observer.add([1.0, -2.0])
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(RecipeError, match=r"1 of 3 numbers at blk\.3"):
            observer.add([1.0, bad, 3.0])
    assert observer.seen == 2 and observer.range("min-max") == Range(-2, 1)
    with pytest.raises(RecipeError, match="'entropy'") as caught:
        observer.range("entropy")  # type: ignore[arg-type]
    assert "kl" in caught.value.hint
    with pytest.raises(RecipeError, match="1 bits"):
        observer.range("mse", bits=1)
    with pytest.raises(RecipeError, match="percentile of 20"):
        Observer(percentile=20)
    observer.add([])
    assert observer.seen == 2


def test_memory_is_bounded() -> None:
    observer = Observer()
    values = normal(1 << 20)
    observer.add(values)
    tracemalloc.start()
    for _ in range(3):
        observer.add(values)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 1 << 18
