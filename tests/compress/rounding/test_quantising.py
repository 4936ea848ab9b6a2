from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pressroom.compress.numbers import number_format
from pressroom.compress.rounding import Curvature, rounded
from pressroom.kernel import RecipeError

from .even import Even
from .layers import error, inverse_factor, layer

Q4 = number_format("q4_0")


def plainly(weights: Any, hessian: Any, format: Any = Q4) -> Any:
    return format.decode(format.encode(weights, hessian.diagonal().copy()))


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one.data, other.data) and one.error == other.error)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q8_0", "iq4_nl"])
def test_it_loses_far_less_than_plain_rounding(name: str) -> None:
    weights, hessian = layer(96, 160)
    format = number_format(name)
    result = rounded(weights, hessian, format)
    nearest = error(weights, plainly(weights, hessian, format), hessian)
    assert result.error < 0.6 * nearest
    assert result.error == pytest.approx(error(weights, result.values, hessian), rel=1e-3)
    assert result.nearest == pytest.approx(nearest, rel=1e-3)
    assert np.array_equal(format.decode(result.data), result.values)
    assert result.data.dtype == np.uint8
    assert result.data.shape == (96, 160 // 32 * format.nbytes)
    assert not result.fallback
    assert result.mask is None


@pytest.mark.parametrize("name", ["q4_k", "q3_k", "q2_k", "q6_k", "iq4_xs", "tq2_0"])
def test_formats_with_large_blocks(name: str) -> None:
    weights, hessian = layer(24, 512)
    result = rounded(weights, hessian, number_format(name))
    assert result.error < 0.8 * result.nearest
    assert np.array_equal(number_format(name).decode(result.data), result.values)


def test_it_holds_for_inputs_it_has_not_seen() -> None:
    (weights, seen), (_, other) = layer(96, 160), layer(96, 160, text=1)
    result = rounded(weights, seen, Q4)
    assert error(weights, result.values, other) < 0.7 * error(weights, plainly(weights, other), other)


@pytest.mark.parametrize("damp", [0.01, 0.1])
def test_without_scales_it_is_the_pass_of_the_paper(damp: float) -> None:
    """The slow and obvious loop in float64 must come to the same weights."""
    weights, hessian = layer(16, 192)
    format = Even()
    result = rounded(weights, hessian, format, damp=damp, order="given", sweeps=0)
    upper = inverse_factor(hessian, damp)
    left, expected = weights.astype(np.float64), np.empty_like(weights)
    for column in range(192):
        expected[:, column] = format.decode(format.encode(left[:, column].astype(np.float32)))
        lost = (left[:, column] - expected[:, column]) / upper[column, column]
        left[:, column:] -= np.outer(lost, upper[column, column:])
    # A weight half-way between two values may go either way in float32, and takes those after it along.
    assert (result.values == expected).mean() > 0.99
    assert result.error == pytest.approx(error(weights, expected, hessian), rel=0.02)


def test_inputs_without_correlation_give_plain_rounding() -> None:
    weights, _ = layer(32, 96)
    for hessian in (np.eye(96, dtype=np.float32), 7 * np.eye(96, dtype=np.float32)):
        for order in ("given", "activation"):
            result = rounded(weights, hessian, Q4, order=order)
            assert np.array_equal(result.data, Q4.encode(weights, hessian.diagonal().copy()))
            assert result.error == result.nearest


def test_no_row_is_worse_than_plain_rounding() -> None:
    for seed in range(5):
        # As few inputs as this leave most directions to the damping.
        weights, hessian = layer(64, 64, tokens=8, seed=seed)
        result = rounded(weights, hessian, Q4, damp=1.0)
        lost = [np.einsum("ij,jk,ik->i", e, hessian, e) for e in (weights - result.values,
                weights - plainly(weights, hessian))]  # fmt: skip
        assert (lost[0] <= lost[1] * (1 + 1e-4) + 1e-12).all()
        assert result.error <= result.nearest


def test_the_order_of_activation_and_sweeps_help() -> None:
    totals = {}
    for name, options in {
        "given": {"order": "given", "sweeps": 0},
        "activation": {"order": "activation", "sweeps": 0},
        "swept": {"order": "activation", "sweeps": 1},
        "swept twice": {"order": "activation", "sweeps": 2},
    }.items():
        totals[name] = sum(rounded(*layer(48, 256, seed=seed), Q4, **options).error for seed in range(3))  # type: ignore[arg-type]
    assert totals["swept twice"] < totals["swept"] < totals["activation"] < totals["given"]


def test_it_is_deterministic() -> None:
    weights, hessian = layer(40, 192)
    before = weights.copy(), hessian.copy()
    first = rounded(weights, hessian, Q4, threads=1)
    assert same(first, rounded(weights, hessian, Q4, threads=1))
    assert same(first, rounded(weights, Curvature(hessian), Q4, threads=1))
    assert np.array_equal(weights, before[0]) and np.array_equal(hessian, before[1])
    assert not np.shares_memory(first.values, weights)


def test_the_size_of_the_hessian_does_not_count() -> None:
    weights, hessian = layer(40, 96)
    result = rounded(weights, hessian, Q4)
    for factor in (2.0**-100, 2.0**-40, 2.0**40, 2.0**120):
        assert same(result, rounded(weights, hessian * np.float32(factor), Q4))


def test_a_curvature_serves_many_layers_and_formats() -> None:
    weights, hessian = layer(40, 256)
    curvature = Curvature(hessian)
    for name in ("q4_0", "q4_k", "q8_0", "q4_0"):
        format = number_format(name)
        for part in (weights[:7], weights[7:]):
            assert same(rounded(part, curvature, format), rounded(part, hessian, format))


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (1, 32), (33, 32), (3, 288)])
def test_odd_shapes(rows: int, columns: int) -> None:
    weights, hessian = layer(rows, columns)
    result = rounded(weights, hessian, Q4)
    assert result.values.shape == (rows, columns)
    assert result.error == pytest.approx(error(weights, result.values, hessian), rel=1e-3)
    assert result.error <= result.nearest


def test_many_rows_are_the_same_in_parts() -> None:
    weights, hessian = layer(4100, 32)
    whole, part = rounded(weights, hessian, Q4), rounded(weights[4096:], hessian, Q4)
    assert np.array_equal(whole.data[4096:], part.data)
    assert len(whole.data) == 4100


def test_dead_columns() -> None:
    weights, hessian = layer(32, 96)
    dead = [0, 5, 40, *range(64, 96)]
    hessian[dead] = 0
    hessian[:, dead] = 0
    result = rounded(weights, hessian, Q4)
    assert not result.fallback
    assert result.error < 0.6 * result.nearest
    # Nobody knows what they are worth, so they are kept near what they were.
    assert np.abs(result.values - weights)[:, 64:].max() < np.abs(weights).max() / 4


def test_fewer_inputs_than_columns() -> None:
    weights, hessian = layer(32, 128, tokens=20)
    result = rounded(weights, hessian, Q4, damp=0)
    assert not result.fallback
    assert result.damp > 0
    assert result.error < 0.3 * result.nearest


def test_inputs_of_very_different_sizes() -> None:
    weights, hessian = layer(32, 128, tokens=40)
    sizes = np.logspace(-6, 6, 128, dtype=np.float32)
    for damp in (0, 1e-12, 0.01):
        result = rounded(weights, hessian * sizes * sizes[:, None], Q4, damp=damp)
        assert np.isfinite(result.values).all()
        assert result.error <= result.nearest


def test_a_hessian_that_cannot_be_used_falls_back_and_says_so() -> None:
    weights, _ = layer(16, 64)
    nothing = np.zeros((64, 64), dtype=np.float32)
    result = rounded(weights, nothing, Q4)
    assert result.fallback
    assert np.array_equal(result.data, Q4.encode(weights, nothing.diagonal().copy()))
    assert result.error == 0 and result.plain_rows == 16
    impossible = np.full((64, 64), 30, dtype=np.float32)  # correlations above 1
    impossible.flat[::65] = 1
    impossible[:32, :32] *= -1
    impossible.flat[::65] = 1
    result = rounded(weights, impossible, Q4)
    assert result.fallback
    assert np.array_equal(result.data, Q4.encode(weights))


def test_very_large_and_very_small_weights() -> None:
    weights, hessian = layer(16, 64)
    for size in (1e-30, 1e-6, 1e5, 1e18, 1e30):
        result = rounded(weights * np.float32(size), hessian, Q4)
        assert np.isfinite(result.values).all()
        assert result.error <= result.nearest
        assert result.error == pytest.approx(error(weights * np.float32(size), result.values, hessian), rel=1e-3)
    assert not rounded(np.zeros_like(weights), hessian, Q4).values.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    weights, hessian = layer(16, 64)
    broken = weights.copy()
    broken[3, 7] = bad
    with pytest.raises(RecipeError, match=r"the weights: the entry at \(3, 7\)"):
        rounded(broken, hessian, Q4)
    hessian[2, 9] = hessian[9, 2] = bad
    with pytest.raises(RecipeError, match=r"the hessian: the entry at \(2, 9\)"):
        rounded(weights, hessian, Q4)


def test_what_does_not_fit_is_refused() -> None:
    weights, hessian = layer(16, 64)
    with pytest.raises(RecipeError, match="blocks of 256"):
        rounded(weights, hessian, number_format("q4_k"))
    with pytest.raises(RecipeError, match="64 columns, the hessian has 32"):
        rounded(weights, hessian[:32, :32], Q4)
    with pytest.raises(RecipeError, match="as many rows as columns"):
        rounded(weights, hessian[:32], Q4)
    with pytest.raises(RecipeError, match="not symmetric"):
        rounded(weights, hessian + np.triu(np.ones_like(hessian), 1), Q4)
    with pytest.raises(RecipeError, match="on its diagonal"):
        rounded(weights, hessian - 100 * np.eye(64, dtype=np.float32), Q4)
    with pytest.raises(RecipeError, match="no order 'random'"):
        rounded(weights, hessian, Q4, order="random")  # type: ignore[arg-type]
    for damp in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="damping"):
            rounded(weights, hessian, Q4, damp=damp)
    with pytest.raises(RecipeError, match="sweeps"):
        rounded(weights, hessian, Q4, sweeps=-1)
    with pytest.raises(RecipeError, match="threads"):
        rounded(weights, hessian, Q4, threads=0)


@pytest.mark.parametrize("options", [{"pattern": (2, 4)}, {"ratio": 0.4}, {"ratio": 0.4, "per": "row"}])
@pytest.mark.parametrize("order", ["given", "activation"])
def test_rounding_and_pruning_in_one_pass(options: dict[str, Any], order: Any) -> None:
    weights, hessian = layer(48, 160)
    result = rounded(weights, hessian, Q4, order=order, **options)
    assert result.mask is not None
    assert not result.values[~result.mask].any()
    if "pattern" in options:
        assert (result.mask.reshape(48, -1, 4).sum(axis=2) == 2).all()
    else:
        assert (~result.mask).sum() == pytest.approx(0.4 * 48 * 160, abs=1)
    assert result.error < 0.8 * result.nearest
    assert result.nearest == pytest.approx(
        error(weights, plainly(np.where(result.mask, weights, np.float32(0)), hessian), hessian), rel=1e-3
    )


def test_formats_without_a_zero_cannot_be_pruned() -> None:
    weights, hessian = layer(16, 64)
    for name in ("q4_1", "iq4_nl"):
        with pytest.raises(RecipeError, match=f"{name} has no zero"):
            rounded(weights, hessian, number_format(name), ratio=0.5)
    with pytest.raises(RecipeError, match="5 of 32 weights cannot be kept while rounding to even"):
        rounded(weights, hessian, Even(), pattern=(5, 32))


def test_formats_that_keep_every_weight_alone_are_rounded_plainly() -> None:
    weights, hessian = layer(16, 60)
    for name in ("f32", "f16", "bf16"):
        format = number_format(name)
        result = rounded(weights, hessian, format)
        assert np.array_equal(result.data, format.encode(weights))
        assert not result.fallback
        assert result.error == result.nearest < 1e-5
