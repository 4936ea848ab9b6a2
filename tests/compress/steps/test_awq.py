"""Scaled columns: the file that is written computes the same, and loses less when it is rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pressroom.compress.steps import Report, step
from pressroom.compress.weights import open_weights
from pressroom.kernel import RecipeError
from tests.compress.weights.gguf_files import Array, File, tiny

from .conftest import Carry, PathOf, Run
from .running import divergence, log_probabilities


def uneven(**more: object) -> File:
    """With norms whose entries differ in size, as those of real models do."""
    file = tiny(layers=2, **more)  # type: ignore[arg-type]
    for layer in range(2):
        for norm in ("attn_norm", "ffn_norm"):
            size = np.exp(np.random.default_rng(layer).standard_normal(64)).astype(np.float32)
            file.tensors[f"blk.{layer}.{norm}.weight"] = Array.of(size)
    return file


def test_the_model_stays_the_same(run: Run, tmp_path: Path) -> None:
    """Bit for bit it cannot: sums are rounded otherwise, and the values of attention, which llama.cpp keeps in f16."""
    before = uneven().write(tmp_path / "uneven.gguf")
    report, path = run("awq", source=before)
    assert isinstance(report, Report) and len(report.tensors) == 8
    assert sum(line["power"] > 0 for line in report.tensors) >= 4
    with open_weights(before) as source, open_weights(path) as made:
        changed = [name for name in source.tensors if bytes(source.raw(name)) != bytes(made.raw(name))]
        assert {tensor.type for tensor in made.tensors.values()} == {"F32"}
    assert "blk.0.ffn_norm.weight" in changed and "token_embd.weight" not in changed
    one, other = log_probabilities(before, window=128), log_probabilities(path, window=128)
    assert np.abs(one - other).max() < 0.05 and divergence(one, other) < 1e-5


def test_rounding_behind_it_loses_less(run: Run, tmp_path: Path) -> None:
    before = uneven().write(tmp_path / "uneven.gguf")
    report, _ = run("awq", source=before, hessians=True, to="int4")
    assert report.figures["scaled_error"][0] < 0.95 * report.figures["unscaled_error"][0]
    assert all(line["error"] <= line["before"] for line in report.tensors)


def test_in_a_recipe(carry: Carry, path_of: PathOf) -> None:
    made = carry({"method": "awq"}, {"to": "q4_0", "targets": r"blk\..*", "rounding": "nearest"})
    assert made.version.kind == "quantised" and made.version.figure("scaled_error") is not None
    with open_weights(path_of(made)) as found:
        assert {tensor.type for tensor in found.linears} == {"Q4_0"}


def test_half_precision_is_written_as_it_was(run: Run, tmp_path: Path) -> None:
    before = uneven(kind="F16").write(tmp_path / "half.gguf")
    _, path = run("awq", source=before, steps=4)
    with open_weights(path) as made:
        assert {tensor.type for tensor in made.linears} == {"F16"}
        assert made.tensors["blk.0.attn_norm.weight"].type == "F32"
    assert divergence(log_probabilities(before, window=128), log_probabilities(path, window=128)) < 1e-3


def test_refused(run: Run, tmp_path: Path) -> None:
    for options, wrong in (
        ({"to": "q9"}, "q9"),
        ({"to": "f16"}, "weight alone"),
        ({"steps": 0}, "steps"),
        ({"targets": "("}, "regular expression"),
    ):
        with pytest.raises(RecipeError, match=wrong):
            step("awq", options)
    with pytest.raises(RecipeError, match="is meant by"):
        run("awq", targets=r"blk\.0\.attn_q\.weight")
    with pytest.raises(RecipeError, match=r"q4_k does not take have .*ffn_down"):
        run("awq", to="q4_k")
