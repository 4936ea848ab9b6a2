"""Tucker and CP decompositions of matrices that have such a structure, and of some that have not."""

from __future__ import annotations

import sys
from typing import Literal

import numpy as np
import pytest

from pressroom.compress.lowrank import Keep, factor, stack_numbers, stack_ranks, stacked
from pressroom.compress.rounding import Curvature
from pressroom.kernel import MissingDependencyError, RecipeError


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def alike() -> list[np.ndarray]:
    """Matrices of 20 x 30 with the same 4 directions on either side."""
    rows, columns = random(20, 4), random(30, 4, seed=2)
    return [rows @ random(4, 4, seed=seed) @ columns.T for seed in (3, 4, 5)]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorly", None)
    with pytest.raises(MissingDependencyError, match="tensorly"):
        stacked(alike(), Keep(rank=4), "tucker")


@pytest.mark.parametrize("by", ["tucker", "cp"])
def test_shared_directions_are_found(by: Literal["tucker", "cp"]) -> None:
    pytest.importorskip("tensorly")
    # Three matrices of rank 4 are a sum of 12 outer products at most; 4 + 4 directions and a core are enough.
    rank = 4 if by == "tucker" else 12
    found = stacked(alike(), Keep(rank=rank), by, seed=3)
    # Alternating least squares come near, but not there, in the rounds that they have.
    assert max(found.errors) < (1e-9 if by == "tucker" else 0.02)
    assert found.numbers == stack_numbers((3, 20, 30), found.ranks) < found.whole
    assert found.numbers == (4 * 20 + 4 * 30 + 3 * 16 if by == "tucker" else 12 * 53)
    again = stacked(alike(), Keep(rank=rank), by, seed=3)
    np.testing.assert_array_equal(found.values, again.values)


def test_the_same_input_is_whitened() -> None:
    pytest.importorskip("tensorly")
    matrices = [random(20, 30, seed=seed) for seed in (1, 2)]
    inputs = random(400, 30, seed=3) * np.linspace(0.01, 3, 30, dtype=np.float32)
    curvature = Curvature(inputs.T @ inputs)
    weighted = stacked(matrices, Keep(rank=8), "tucker", [curvature, curvature])
    plain = stacked(matrices, Keep(rank=8), "tucker")
    lost = [curvature.losses(one - two).sum() for one, two in zip(matrices, plain.values, strict=True)]
    whole = [curvature.losses(one).sum() for one in matrices]
    assert sum(weighted.errors) < 0.8 * sum(np.divide(lost, whole))
    # Matrices that have nothing in common gain nothing from being taken together.
    share = weighted.numbers / weighted.whole
    assert np.mean([factor(one, Keep(share=share), curvature).error for one in matrices]) < np.mean(weighted.errors)


@pytest.mark.parametrize("shape", [(3, 20, 30), (2, 200, 10), (30, 16, 16), (2, 10, 200)])
@pytest.mark.parametrize("by", ["tucker", "cp"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_share_is_kept_to(shape: tuple[int, int, int], by: Literal["tucker", "cp"], share: float) -> None:
    found = stack_ranks(shape, Keep(share=share), by)
    whole = np.prod(shape)
    assert stack_numbers(shape, found) <= share * whole
    assert stack_numbers(shape, found) > 0.7 * share * whole  # and made use of


@pytest.mark.parametrize(
    ("keep", "by", "says"),
    [
        (Keep(energy=0.5), "tucker", "not an energy"),
        (Keep(share=0.001), "cp", "less than cp of rank 1"),
        (Keep(rank=4_000_000), "cp", "GB"),
    ],
)
def test_what_cannot_be_decomposed(keep: Keep, by: Literal["tucker", "cp"], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        stack_ranks((3, 20, 30), keep, by)


def test_matrices_of_two_shapes() -> None:
    pytest.importorskip("tensorly")
    with pytest.raises(RecipeError, match="one shape"):
        stacked([random(3, 4), random(4, 3)], Keep(rank=1), "tucker")
    with pytest.raises(RecipeError, match="finite"):
        stacked([random(3, 4), np.full((3, 4), np.inf, np.float32)], Keep(rank=1), "tucker")
