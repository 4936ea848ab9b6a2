"""Blocks taken out: those behind them move up, and the model misses as much as was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pressroom.compress.calibrate import least_blocks
from pressroom.compress.steps import step
from pressroom.compress.weights import open_weights
from pressroom.kernel import RecipeError
from tests.compress.weights.gguf_files import ARRAY, I32, U32, tiny

from .conftest import TEXT, Run
from .running import divergence, log_probabilities


def test_named_ones(run: Run, model: Path) -> None:
    report, path = run("drop-layers", layers=[2, 0])
    with open_weights(model) as before, open_weights(path) as after:
        assert after.value("llama.block_count") == 2
        assert list(after.tensors) == [name for name in before.tensors if not name.startswith(("blk.2", "blk.3"))]
        for mine, theirs in ((0, 1), (1, 3)):
            for part in ("attn_q", "ffn_down", "attn_norm"):
                assert bytes(after.raw(f"blk.{mine}.{part}.weight")) == bytes(before.raw(f"blk.{theirs}.{part}.weight"))
        assert bytes(after.raw("output.weight")) == bytes(before.raw("output.weight"))
    assert report.figures["layers_dropped"][0] == "0,2" and report.figures["layers"][0] == 2


def test_those_that_are_missed_least(run: Run, model: Path) -> None:
    """What is measured by skipping blocks is what the file without them does, and no other pair does better."""
    report, path = run("drop-layers", count=2)
    whole = log_probabilities(model)
    said = report.figures["dropping_kl"][0]
    assert abs(divergence(whole, log_probabilities(path)) - said) < 0.01 * said
    first = report.tensors[0]["layer"]
    for other in {0, 1, 2, 3} - {first}:
        _, candidate = run("drop-layers", layers=[other])
        assert divergence(whole, log_probabilities(candidate)) > report.tensors[0]["kl"]


def test_by_influence(run: Run, model: Path) -> None:
    found = least_blocks(model, TEXT, layers=4, count=2, by="influence", tokens=512, shortlist=4, threads=1)
    least = sorted(range(4), key=lambda layer: found.influence[layer])[:2]
    report, _ = run("drop-layers", count=2, by="influence")
    assert [line["layer"] for line in report.tensors] == least
    assert all(0 < one < 2 for one in found.influence)


def test_what_metadata_say_of_each_block_goes_along(run: Run, tmp_path: Path) -> None:
    file = tiny(layers=4)
    file.keys["llama.attention.head_count_kv"] = (ARRAY, (I32, [2, 2, 2, 2]))
    file.keys["llama.something"] = (ARRAY, (I32, [5, 6, 7, 8]))
    _, path = run("drop-layers", source=file.write(tmp_path / "lists.gguf"), layers=[1])
    with open_weights(path) as found:
        assert found.value("llama.something") == [5, 7, 8]
        assert found.value("llama.attention.head_count_kv") == [2, 2, 2]
    assert log_probabilities(path).shape == (512, 288)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "layers or count"),
        ({"layers": [1], "count": 1}, "layers or count"),
        ({"layers": [1, 1]}, "different numbers"),
        ({"layers": [-1]}, "different numbers"),
        ({"layers": ["1"]}, "is not a list of whole numbers"),
        ({"count": True}, "count = True is not a whole number"),
        ({"count": 1, "by": "feel", "shortlist": 0, "sample": 1}, "by = 'feel'.*shortlist = 0.*sample = 1"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        step("drop-layers", options)


def test_what_does_not_fit(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no layers 4, 9"):
        run("drop-layers", layers=[1, 4, 9])
    with pytest.raises(RecipeError, match=r"4 layers of .* cannot go: it has 4"):
        run("drop-layers", count=4)
    file = tiny()
    file.keys["llama.leading_dense_block_count"] = (U32, 1)
    with pytest.raises(RecipeError, match="leading_dense_block_count"):
        run("drop-layers", source=file.write(tmp_path / "odd.gguf"), layers=[0])
    file = tiny()
    file.keys["llama.block_count"] = (U32, 3)
    with pytest.raises(RecipeError, match="tensors of 2 blocks, and its metadata say 3"):
        run("drop-layers", source=file.write(tmp_path / "lies.gguf"), layers=[0])
