"""Narrower blocks: which channels and heads stay, and that llama.cpp runs what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pressroom.compress.steps import step
from pressroom.compress.steps._choosing import least_loss
from pressroom.compress.steps.backends.prune_width import _channels
from pressroom.compress.weights import open_weights
from pressroom.kernel import RecipeError
from tests.compress.weights.gguf_files import F32, Array, tiny

from .conftest import Run
from .running import divergence, log_probabilities


def test_shapes_keys_and_a_run(run: Run, model: Path) -> None:
    report, path = run("prune-width", feed_forward=0.75, heads=0.5)
    with open_weights(path) as found:
        shapes = {name: tensor.shape for name, tensor in found.tensors.items() if name.startswith("blk.3")}
        assert shapes["blk.3.ffn_up.weight"] == shapes["blk.3.ffn_gate.weight"] == (96, 64)
        assert shapes["blk.3.ffn_down.weight"] == (64, 96)
        assert shapes["blk.3.attn_q.weight"] == (32, 64) and shapes["blk.3.attn_k.weight"] == (16, 64)
        assert shapes["blk.3.attn_output.weight"] == (64, 32) and shapes["blk.3.ffn_norm.weight"] == (64,)
        keys = ("feed_forward_length", "attention.head_count", "attention.head_count_kv", "attention.key_length")
        assert [found.value(f"llama.{key}") for key in keys] == [96, 2, 1, 16]
    lost = divergence(log_probabilities(model), log_probabilities(path))
    assert 0 < lost < 2
    assert report.figures["feed_forward_length"][0] == 96 and report.figures["heads"][0] == 2
    assert 0 < report.figures["narrowing_error"][0] < 0.5


def test_fitting_again_loses_less(run: Run, model: Path) -> None:
    whole = log_probabilities(model)
    lost = {}
    for refit in (True, False):
        report, path = run("prune-width", feed_forward=0.75, refit=refit)
        lost[refit] = report.figures["narrowing_error"][0], divergence(whole, log_probabilities(path))
    assert lost[True][0] < 0.8 * lost[False][0] and lost[True][1] < lost[False][1]


def test_what_nothing_enters_goes_for_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    """Channels and a group of heads that give nothing are those that go, and the model stays what it was."""
    file = tiny(layers=4)
    with open_weights(model) as source:
        for layer in range(4):
            up, value = source.rows(f"blk.{layer}.ffn_up.weight"), source.rows(f"blk.{layer}.attn_v.weight")
            up[5:125:4] = 0  # 30 of 128
            up[[0, 127]] = 0
            value[16:] = 0  # the second group
            file.tensors[f"blk.{layer}.ffn_up.weight"] = Array.of(up)
            file.tensors[f"blk.{layer}.attn_v.weight"] = Array.of(value)
    path = file.write(tmp_path / "idle.gguf")
    report, narrow = run("prune-width", source=path, feed_forward=0.75, heads=0.5)
    assert report.figures["narrowing_error"][0] < 1e-4
    assert divergence(log_probabilities(path), log_probabilities(narrow)) < 1e-3


def test_the_choice_is_the_best_on_what_can_be_tried() -> None:
    """Against trying all: with one group to go, its loss is the least of all after a refit."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((6, 12)).astype(np.float32)
    inputs = generator.standard_normal((200, 12)) @ (np.eye(12) + 0.2 * generator.standard_normal((12, 12)))
    hessian = (inputs.T @ inputs / 200).astype(np.float32)
    for groups in (12, 4):
        each = 12 // groups
        losses = []
        for group in range(groups):
            keep = np.delete(np.arange(12), np.arange(group * each, (group + 1) * each))
            refit = weights @ hessian[:, keep] @ np.linalg.inv(hessian[np.ix_(keep, keep)])
            change = weights.copy()
            change[:, keep] -= refit
            losses.append(np.trace(change @ hessian @ change.T))
        stay = least_loss(weights, hessian, groups, groups - 1)
        assert set(range(groups)) - set(stay.tolist()) == {int(np.argmin(losses))}
    assert least_loss(weights, np.zeros((12, 12), np.float32), 12, 5).shape == (5,)


def test_multiples() -> None:
    assert _channels(1536, 0.75, 0) == 1152 and _channels(1536, 0.75, 256) == 1024
    assert _channels(1536, 0.66, 0) == 1024 and _channels(1536, 1, 0) == 1536
    assert _channels(128, 0.01, 0) == 32 and _channels(96, 0.99, 64) == 64 and _channels(100, 0.5, 1) == 50


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "nothing would go"),
        ({"feed_forward": 0, "heads": 1.5, "multiple": -1}, "feed_forward = 0 .*heads = 1.5 .*multiple = -1"),
        ({"feed_forward": "half"}, "feed_forward = 'half' is not a number"),
        ({"feedforward": 0.5}, "Did you mean feed_forward"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        step("prune-width", options)


def test_what_does_not_fit(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing would go: 128 channels"):
        run("prune-width", feed_forward=0.99)
    file = tiny()
    file.tensors["blk.0.attn_gate.weight"] = Array.of(np.zeros((64, 64), np.float32))
    with pytest.raises(RecipeError, match=r"blk\.0\.attn_gate\.weight"):
        run("prune-width", source=file.write(tmp_path / "gate.gguf"), heads=0.5)
    file = tiny()
    file.keys["llama.feed_forward_length"] = (F32, 128.0)
    with pytest.raises(RecipeError, match="where one number is needed"):
        run("prune-width", source=file.write(tmp_path / "odd.gguf"), heads=0.5)
