"""Factors against what NumPy's decomposition says is the least loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.compress.lowrank import Keep, even_rank, factor, numbers_needed, wrong_keep
from pressroom.compress.rounding import Curvature
from pressroom.kernel import RecipeError


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def least(weights: np.ndarray, inputs: np.ndarray, rank: int) -> float:
    """The share of the output, squared, that no matrix of that rank can keep: of the singular values of W Xᵀ."""
    squares = np.linalg.svd(weights.astype(np.float64) @ inputs.T.astype(np.float64), compute_uv=False) ** 2
    return float(squares[rank:].sum() / squares.sum())


def test_the_example_of_rank_one() -> None:
    """The matrix of 1 to 16: 4 + 4 + 1 numbers instead of 16, and nearly all of it."""
    weights = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    found = factor(weights, 1)
    assert found.sigma[0] == pytest.approx(38.62266, abs=1e-5)
    assert numbers_needed(4, 4, 1, apart=True) == 4 + 4 + 1 and found.whole == 16
    assert found.numbers == 8  # the singular value in one of the factors
    # The other singular value is 2.0713: (2.0713 / 38.6784)^2 of the squares are lost.
    assert found.error == pytest.approx((2.07132 / np.linalg.norm(weights)) ** 2, rel=1e-4)
    np.testing.assert_allclose(found.values, weights, atol=1.6)
    np.testing.assert_allclose(factor(weights, 2).values, weights, atol=1e-5)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
@pytest.mark.parametrize("positions", [500, 30])  # 30: fewer than columns, so that the hessian is singular
def test_no_matrix_of_that_rank_loses_less(shape: tuple[int, int], positions: int) -> None:
    weights = random(*shape)
    inputs = random(positions, shape[1], seed=2) * np.linspace(0.01, 3, shape[1], dtype=np.float32)
    hessian = inputs.T @ inputs
    for rank in (1, 10, 25):
        found = factor(weights, rank, hessian)
        plain = factor(weights, rank)
        output = weights @ inputs.T
        lost = np.square(output - found.values @ inputs.T).sum() / np.square(output).sum()
        # 1e-4: of float32 products, of both the weights' and the hessian's.
        assert found.error == pytest.approx(lost, rel=1e-3, abs=1e-6)
        assert found.error == pytest.approx(least(weights, inputs, rank), rel=1e-3, abs=1e-6)
        assert (
            Curvature(hessian).losses(weights - plain.values).sum()
            > Curvature(hessian).losses(weights - found.values).sum()
        )
        assert plain.error == pytest.approx(least(weights, np.eye(shape[1]), rank), rel=1e-4)
        assert np.linalg.matrix_rank(found.values) == found.rank == rank
        np.testing.assert_allclose(found.left.T @ found.left, np.eye(rank), atol=1e-5)
        assert found.numbers == rank * sum(shape)


def test_energy_keeps_what_it_says_and_no_more() -> None:
    weights, inputs = random(30, 40), random(200, 40, seed=2)
    hessian = inputs.T @ inputs
    for energy in (0.3, 0.9, 0.999):
        found = factor(weights, Keep(energy=energy), hessian)
        assert found.error <= 1 - energy + 1e-6
        assert factor(weights, found.rank - 1, hessian).error > 1 - energy


def test_a_share_is_the_largest_rank_that_fits() -> None:
    found = factor(random(30, 60), Keep(share=0.5))
    assert found.numbers <= 900 < numbers_needed(30, 60, found.rank + 1)
    assert even_rank(30, 60) == 20 and numbers_needed(30, 60, 20) == 1800
    with pytest.raises(RecipeError, match="less than rank 1 needs"):
        factor(random(30, 60), Keep(share=0.01))


def test_nothing_entered_or_nothing_is_there() -> None:
    weights = random(5, 6)
    found = factor(weights, 2, np.zeros((6, 6), np.float32))
    assert found.fallback and found.error == pytest.approx(factor(weights, 2).error)
    nothing = factor(np.zeros((5, 6), np.float32), Keep(energy=0.9))
    assert nothing.error == 0 and not nothing.values.any() and np.isfinite(nothing.left).all()


@given(rank=st.integers(-2, 3), share=st.floats(-0.5, 1.5), energy=st.floats(-0.5, 1.5))
def test_one_choice_of_a_rank(rank: int, share: float, energy: float) -> None:
    good = (rank > 0) + (0 < share < 1) + (0 < energy < 1) == 1 and sum(map(bool, (rank, share, energy))) == 1
    assert (wrong_keep(rank, share, energy) == []) == good
    if not good:
        with pytest.raises(RecipeError):
            Keep(rank=rank, share=share, energy=energy)


@pytest.mark.parametrize(
    ("weights", "rank", "says"),
    [
        (random(4, 6), 5, "rank 5 was asked for"),
        (np.full((4, 6), np.nan, np.float32), 2, "nan"),
        (random(4), 1, "a matrix"),
    ],
)
def test_what_cannot_be_factored(weights: np.ndarray, rank: int, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        factor(weights, rank)
    with pytest.raises(RecipeError, match="columns"):
        factor(random(4, 6), 2, np.eye(5, dtype=np.float32))
