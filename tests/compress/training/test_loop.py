"""The loop by itself, on a problem of a few numbers."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pressroom.compress.training import Course, Trained, Windows, settled, train
from pressroom.kernel import RecipeError, StoreError, StoreFullError

WINDOWS = Windows(np.arange(40, dtype=np.int64).reshape(10, 4), np.zeros((1, 4), np.int64))


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(3)
    return [nn.Parameter(torch.randn(40, 3)), nn.Parameter(torch.randn(3))]


def trained(given: list[nn.Parameter], course: Course, **more: Any) -> Trained:
    def loss(rows: torch.Tensor) -> torch.Tensor:
        return (given[0][rows] * given[1]).sum(dim=-1).sub(1).square().mean()

    with settled(1, 1):
        return train(given, loss, WINDOWS, course, **more)


def test_it_learns_and_says_how(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = trained(
        parameters(), Course(steps=60, batch=5, rate=0.05), progress=lambda done, total: seen.append((done, total))
    )
    assert found.losses[-1] < 0.2 * found.losses[0] and len(found.losses) == 60
    assert found.tokens == 60 * 5 * 4 and found.resumed == 0
    assert seen == [(step, 60) for step in range(61)]


def test_what_is_computed_together_makes_no_difference() -> None:
    one, other = parameters(), parameters()
    trained(one, Course(steps=5, batch=5, together=1))
    trained(other, Course(steps=5, batch=5, together=3))
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_rate_rises_and_falls() -> None:
    course = Course(steps=100, rate=1.0, warmup=0.1)
    rates = [course.rate_at(step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0.1 <= rates[-1] < 0.11
    assert Course(steps=1, rate=1.0).rate_at(0) == 1.0


@pytest.mark.parametrize(("killed_at", "resumed"), [(3, 0), (4, 4), (9, 8)])
def test_a_killed_run_is_taken_up(tmp_path: Path, killed_at: int, resumed: int) -> None:
    course = Course(steps=10, batch=3, checkpoint=4)
    whole = parameters()
    expected = trained(whole, course)

    def killed(done: int, total: int) -> None:
        if done == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(parameters(), course, folder=tmp_path, key="k", progress=killed)
    again = parameters()
    found = trained(again, course, folder=tmp_path, key="k")
    assert found.resumed == resumed
    assert found.losses == expected.losses
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


@pytest.mark.parametrize("what", ["another key", "damaged", "half"])
def test_a_checkpoint_that_is_not_taken(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    trained(parameters(), Course(steps=5, checkpoint=2), folder=tmp_path, key="k")
    path = tmp_path / "training.safetensors"
    if what == "damaged":
        path.write_bytes(b"\xff" * 100)
    if what == "half":
        (tmp_path / "training.part").write_bytes(path.read_bytes()[:100])
        path.unlink()
    found = trained(parameters(), Course(steps=5, checkpoint=0 if what == "half" else 2), folder=tmp_path, key="other")
    assert found.resumed == 0 and len(found.losses) == 5


def test_a_loss_that_is_no_number_is_an_error() -> None:
    given = parameters()

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return given[0].sum() * (float("nan") if 7 in rows[:, 0] // 4 else 1.0)

    with pytest.raises(RecipeError, match=r"the loss of step \d+ is nan") as raised, settled(1, 1):
        train(given, loss, WINDOWS, Course(steps=20, batch=1))
    assert raised.value.facts["step"] <= 10 and raised.value.facts["loss"] == "nan"


def test_a_gradient_that_is_no_number_is_an_error() -> None:
    given = [nn.Parameter(torch.zeros(3))]
    with pytest.raises(RecipeError, match=r"the norm of the gradients of step 1 is (nan|inf)"), settled(1, 1):
        train(given, lambda rows: given[0].sqrt().sum(), WINDOWS, Course(steps=2, batch=1))


@pytest.mark.parametrize(("number", "raised"), [(errno.ENOSPC, StoreFullError), (errno.EACCES, StoreError)])
def test_a_checkpoint_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[Exception]
) -> None:
    trained(parameters(), Course(steps=3, checkpoint=2), folder=tmp_path, key="k")
    before = (tmp_path / "training.safetensors").read_bytes()

    def failing(*_: Any) -> None:
        raise OSError(number, "no")

    with monkeypatch.context() as patch, pytest.raises(raised):
        patch.setattr("pressroom.compress.training._checkpoint.sync", failing)
        trained(parameters(), Course(steps=4, checkpoint=3), folder=tmp_path, key="other")
    assert (tmp_path / "training.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"]


def test_nothing_of_the_settings_stays() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with settled(5, 1):
        torch.randn(3)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_every_window_comes_once_in_an_epoch() -> None:
    orders = [WINDOWS.batch(step, 5, seed=1)[:, 0].tolist() for step in range(6)]
    epochs = [orders[0] + orders[1], orders[2] + orders[3], orders[4] + orders[5]]
    assert all(sorted(epoch) == list(range(0, 40, 4)) for epoch in epochs)
    assert epochs[0] != epochs[1] and WINDOWS.batch(3, 5, seed=1)[:, 0].tolist() == orders[3]
    assert len(WINDOWS.batch(0, 25, seed=1)) == 25
