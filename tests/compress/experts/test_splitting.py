"""Feed-forwards split into experts, computed here with NumPy as llama.cpp computes them."""

from __future__ import annotations

import numpy as np
import pytest

from pressroom.compress.experts import Split, copies_router, split
from pressroom.compress.experts._grouping import by_use, in_turn
from pressroom.kernel import RecipeError

WIDTH, CHANNELS, POSITIONS = 24, 64, 800


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    inner = x @ gate.T
    return (inner / (1 + np.exp(-inner)) * (x @ up.T)) @ down.T


def experts(x: np.ndarray, found: Split, gate: np.ndarray, up: np.ndarray, used: int) -> np.ndarray:
    """Softmax over all, the best `used`, weights that sum to 1, the weighted sum of their outputs."""
    logits = (x @ found.router.T).astype(np.float64)
    soft = np.exp(logits - logits.max(axis=1, keepdims=True))
    best = np.argsort(-logits, axis=1)[:, :used]
    weights = np.take_along_axis(soft, best, axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    every = np.stack(
        [dense(x, gate[group], up[group], down) for group, down in zip(found.channels, found.down, strict=True)]
    )
    return np.einsum("tk,tkd->td", weights, every[best.T, np.arange(len(x))].transpose(1, 0, 2))


@pytest.fixture(scope="module")
def layer() -> tuple[np.ndarray, ...]:
    """Four kinds of inputs, each of which makes 16 of the channels active above all."""
    kinds = random(4, WIDTH, seed=5)
    x = kinds[np.random.default_rng(6).integers(0, 4, POSITIONS)] + 0.5 * random(POSITIONS, WIDTH)
    gate = np.repeat(kinds, CHANNELS // 4, axis=0) / 4 + 0.15 * random(CHANNELS, WIDTH, seed=7)
    order = np.random.default_rng(8).permutation(CHANNELS)
    return x, gate[order], random(CHANNELS, WIDTH, seed=9), random(WIDTH, CHANNELS, seed=10) / 8


@pytest.mark.parametrize("grouping", ["use", "turn"])
def test_with_all_experts_it_is_the_dense_one(layer: tuple[np.ndarray, ...], grouping: str) -> None:
    x, gate, up, down = layer
    found = split(x, gate, up, down, experts=4, used=4, grouping=grouping)
    assert sorted(found.channels.ravel().tolist()) == list(range(CHANNELS)) and not found.refitted
    wanted = dense(x, gate, up, down)
    # The weights are a quarter each but for a thousandth of the logits' spread.
    assert np.abs(experts(x, found, gate, up, 4) - wanted).max() < 2e-3 * np.abs(wanted).max()
    assert found.error < 1e-10 and found.loads.shares == (1.0,) * 4 and found.loads.variation == 0


def test_the_error_is_the_one_that_is_told(layer: tuple[np.ndarray, ...]) -> None:
    x, gate, up, down = layer
    found = split(x, gate, up, down, experts=4, used=2)
    left = x[int(POSITIONS * 0.75) :]
    wanted = dense(left, gate, up, down)
    lost = np.square(experts(left, found, gate, up, 2) - wanted).sum(axis=1) / np.square(wanted).sum(axis=1)
    assert found.error == pytest.approx(lost.mean(), rel=0.02)
    best = np.argsort(-(left @ found.router.T), axis=1)[:, :2]
    assert found.loads.shares == pytest.approx(np.bincount(best.ravel(), minlength=4) / len(left))
    assert sum(found.loads.shares) == pytest.approx(2)


def test_what_it_is_fitted_to_is_worth_it(layer: tuple[np.ndarray, ...]) -> None:
    x, gate, up, down = layer
    options = {"experts": 4, "used": 1}
    whole = split(x, gate, up, down, **options)  # type: ignore[arg-type]
    unfitted = split(x, gate, up, down, refit=False, **options)  # type: ignore[arg-type]
    in_turn = split(x, gate, up, down, refit=False, grouping="turn", **options)  # type: ignore[arg-type]
    assert whole.refitted and not unfitted.refitted
    assert whole.error < unfitted.error < in_turn.error < in_turn.even * 1.1
    assert whole.error < 0.7 * whole.even
    # Four kinds of inputs as often as each other: no expert has all the work.
    assert max(whole.loads.shares) < 0.5


def test_channels_that_are_active_together_come_together() -> None:
    active = np.repeat(np.eye(4, dtype=np.float32), 8, axis=1)[np.arange(100) % 4] + 0.01 * np.abs(random(100, 32))
    order = np.random.default_rng(3).permutation(32)
    groups = by_use(active[:, order], 4, 0, seed=0)
    assert sorted(sorted((order[group] // 8).tolist()) for group in groups) == [[kind] * 8 for kind in range(4)]
    # Channels 0 to 7 as strong as all others together are an expert of their own, the first one.
    active[:, :8] += 3
    first, *others = by_use(active[:, order], 4, 1, seed=0)
    assert sorted(order[first].tolist()) == list(range(8))
    assert sorted(sorted((order[group] // 8).tolist()) for group in others) == [[kind] * 8 for kind in (1, 2, 3)]
    assert in_turn(8, 2).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_what_is_always_active_is_always_taken() -> None:
    """Half of the channels do most of the work at every position: as an expert of their own less is lost."""
    x = random(POSITIONS, WIDTH) + 2
    gate, up, down = (
        random(CHANNELS, WIDTH, seed=7) / 4,
        random(CHANNELS, WIDTH, seed=9),
        random(WIDTH, CHANNELS, seed=10),
    )
    down[:, np.random.default_rng(1).permutation(CHANNELS)[:16]] *= 5
    own, none = (split(x, gate, up, down, experts=4, used=2, shared=shared, refit=False) for shared in (1, 0))
    assert own.error < 0.7 * none.error
    assert own.loads.shares[0] > 0.9


def test_the_same_seed_gives_the_same(layer: tuple[np.ndarray, ...]) -> None:
    first, again = (split(*layer, experts=4, used=2, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.down, again.down)
    np.testing.assert_array_equal(first.router, again.router)


def test_a_router_of_copies_shares_the_work(layer: tuple[np.ndarray, ...]) -> None:
    router, loads = copies_router(layer[0], 4, 2)
    assert router.shape == (4, WIDTH) and np.isfinite(router).all()
    assert sum(loads.shares) == pytest.approx(2) and loads.variation < 0.5 and min(loads.shares) > 0.1
    # Fewer positions than experts, and all of them alike: any router will do, but it is one.
    few, _ = copies_router(np.ones((2, WIDTH), np.float32), 4, 1)
    assert few.shape == (4, WIDTH) and np.isfinite(few).all()


@pytest.mark.parametrize(("count", "used"), [(5, 2), (4, 5), (4, 0), (1, 1)])
def test_what_cannot_be_split(layer: tuple[np.ndarray, ...], count: int, used: int) -> None:
    with pytest.raises(RecipeError, match="cannot be split"):
        split(*layer, experts=count, used=used)
    with pytest.raises(RecipeError, match="cannot be split"):
        split(layer[0][:10], *layer[1:], experts=4, used=2)
