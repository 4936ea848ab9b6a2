from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pressroom.compress.rounding import least_squares_refit, magnitude, pruned, wanda
from pressroom.kernel import RecipeError

from .layers import error, inverse_factor, layer

METHODS = [pruned, wanda, magnitude]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8)])
def test_a_pattern_holds_everywhere(method: Any, pattern: tuple[int, int]) -> None:
    weights, hessian = layer(24, 96)
    result = method(weights, hessian, pattern=pattern)
    stay, of = pattern
    assert (result.mask.reshape(24, -1, of).sum(axis=2) == stay).all()
    assert ((result.values != 0) == result.mask).all()
    assert not np.signbit(result.values[~result.mask]).any()
    assert result.error == pytest.approx(error(weights, result.values, hessian), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.77])
@pytest.mark.parametrize("per", ["row", "layer"])
def test_a_ratio_is_kept_exactly(method: Any, ratio: float, per: Any) -> None:
    weights, hessian = layer(23, 150)  # nothing divides anything
    result = method(weights, hessian, ratio=ratio, per=per)
    gone = (~result.mask).sum(axis=1)
    if per == "row":
        assert (gone == int(ratio * 150 + 0.5)).all()
    else:
        assert gone.sum() == int(ratio * 150 * 23 + 0.5)
        assert ratio == 0 or len(set(gone.tolist())) > 1
    assert ((result.values != 0) == result.mask).all()


def test_the_better_the_method_the_less_is_lost() -> None:
    for options in ({"ratio": 0.5}, {"pattern": (2, 4)}):
        weights, hessian = layer(64, 192)
        best, simple, blind = (method(weights, hessian, **options).error for method in METHODS)  # type: ignore[arg-type]
        assert best < 0.6 * simple < 0.6 * blind


def test_it_is_sparsegpt() -> None:
    """2:4 against the slow and obvious loop of the paper in float64."""
    weights, hessian = layer(12, 64)
    result = pruned(weights, hessian, pattern=(2, 4), order="given")
    upper = inverse_factor(hessian, 0.01)
    left, expected = weights.astype(np.float64), np.empty(weights.shape)
    kept = np.ones(weights.shape, dtype=bool)
    for column in range(64):
        if column % 4 == 0:
            group = slice(column, column + 4)
            worth = left[:, group] ** 2 / np.diag(upper)[group] ** 2
            np.put_along_axis(kept[:, group], np.argsort(worth, axis=1)[:, :2], False, axis=1)
        expected[:, column] = np.where(kept[:, column], left[:, column], 0)
        lost = (left[:, column] - expected[:, column]) / upper[column, column]
        left[:, column:] -= np.outer(lost, upper[column, column:])
    assert np.array_equal(result.mask, kept)
    assert np.allclose(result.values, expected, rtol=1e-3, atol=1e-4 * np.abs(weights).max())


def test_wanda_and_magnitude_are_what_they_are_called() -> None:
    weights, hessian = layer(10, 40)
    small = magnitude(weights, hessian, ratio=0.25)
    assert np.abs(weights[~small.mask]).max() < np.abs(weights[small.mask]).min()
    score = np.abs(weights) * np.sqrt(hessian.diagonal())
    result = wanda(weights, hessian, ratio=0.25)
    for row in range(10):
        assert score[row][~result.mask[row]].max() < score[row][result.mask[row]].min()
    assert np.array_equal(result.values[result.mask], weights[result.mask])


def test_inputs_without_correlation_leave_the_other_weights_alone() -> None:
    weights, _ = layer(10, 40)
    result = pruned(weights, np.eye(40, dtype=np.float32), ratio=0.5)
    simple = magnitude(weights, np.eye(40, dtype=np.float32), ratio=0.5)
    assert np.array_equal(result.values, simple.values)


def test_dead_columns_go_first() -> None:
    weights, hessian = layer(16, 64)
    hessian[10:20] = 0
    hessian[:, 10:20] = 0
    for method in (pruned, wanda):
        result = method(weights, hessian, ratio=0.4, per="row")
        assert method is pruned or not result.mask[:, 10:20].any()
        assert np.isfinite(result.values).all()
    assert pruned(weights, hessian, ratio=0.4).error < wanda(weights, hessian, ratio=0.4).error


def test_nothing_known_falls_back_and_says_so() -> None:
    weights, _ = layer(16, 64)
    result = pruned(weights, np.zeros((64, 64), dtype=np.float32), pattern=(2, 4))
    assert result.fallback
    assert (result.mask.reshape(16, -1, 4).sum(axis=2) == 2).all()
    assert np.array_equal(result.values[result.mask], weights[result.mask])


def test_one_row_and_determinism() -> None:
    for rows in (1, 30):
        weights, hessian = layer(rows, 64)
        first, again = (pruned(weights, hessian, ratio=0.5, threads=1) for _ in range(2))
        assert np.array_equal(first.values, again.values) and first.error == again.error


def test_what_is_asked_for_must_be_possible() -> None:
    weights, hessian = layer(8, 42)
    for method in METHODS:
        with pytest.raises(RecipeError, match="42 columns cannot be cut into groups of 4"):
            method(weights, hessian, pattern=(2, 4))
        with pytest.raises(RecipeError, match="nothing says how much"):
            method(weights, hessian)
        with pytest.raises(RecipeError, match="cannot both"):
            method(weights, hessian, ratio=0.5, pattern=(1, 2))
        for ratio in (-0.1, 1.0, float("nan")):
            with pytest.raises(RecipeError, match="cannot be pruned"):
                method(weights, hessian, ratio=ratio)
        for pattern in ((0, 4), (4, 4), (5, 4)):
            with pytest.raises(RecipeError, match="is no pattern"):
                method(weights, hessian, pattern=pattern)
        with pytest.raises(RecipeError, match="per 'head'"):
            method(weights, hessian, ratio=0.5, per="head")


def test_refit_is_least_squares() -> None:
    generator = np.random.default_rng(1)
    inputs = (generator.standard_normal((500, 10)) @ generator.standard_normal((10, 40))).astype(np.float32)
    inputs += 0.1 * generator.standard_normal(inputs.shape).astype(np.float32)
    weights = generator.standard_normal((6, 40)).astype(np.float32)
    hessian = (inputs.T @ inputs / 500).astype(np.float32)
    keep = [30, 2, 3, *range(10, 25)]
    result = least_squares_refit(weights, hessian, keep, damp=0)
    expected = np.linalg.lstsq(inputs[:, keep].astype(np.float64), inputs.astype(np.float64) @ weights.T, rcond=None)[0]
    assert np.allclose(result, expected.T, rtol=1e-2, atol=1e-3)
    cut, refitted = np.zeros_like(weights), np.zeros_like(weights)
    cut[:, keep], refitted[:, keep] = weights[:, keep], result
    assert error(weights, refitted, hessian) < 0.1 * error(weights, cut, hessian)
    mask = np.zeros(40, dtype=bool)
    mask[keep] = True
    assert np.allclose(
        least_squares_refit(weights, hessian, mask, damp=0), result[:, np.argsort(keep)], rtol=1e-4, atol=1e-5
    )


def test_refit_at_its_limits() -> None:
    weights, hessian = layer(6, 32)
    assert np.array_equal(least_squares_refit(weights, hessian, range(32)), weights)
    nothing = np.zeros_like(hessian)
    assert np.array_equal(least_squares_refit(weights, nothing, [1, 2]), weights[:, [1, 2]])
    low = layer(6, 32, tokens=3)[1]
    assert np.isfinite(least_squares_refit(weights, low, range(20), damp=0)).all()
    for keep in ([], [0, 0], [32], [-1], [0.5], [[1]]):
        with pytest.raises(RecipeError, match="columns to keep"):
            least_squares_refit(weights, hessian, keep)  # type: ignore[arg-type]
