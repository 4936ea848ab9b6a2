"""The low-rank step on a tiny model: what is in the file is the product, and what is told of it is true."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pressroom.compress.steps import step
from pressroom.compress.weights import open_weights
from pressroom.engines import perplexity
from pressroom.kernel import MissingDependencyError, RecipeError

from .conftest import TEXT, Run


def test_the_file_holds_the_products(run: Run, model: Path) -> None:
    report, path = run("low-rank", share=0.5, targets=r"blk\.[12]\..*")
    with open_weights(model) as before, open_weights(path) as after:
        assert list(after.tensors) == list(before.tensors)
        for tensor in before.linears:
            new = after.rows(tensor.name)
            if tensor.layer in (1, 2):
                told = next(one for one in report.tensors if one["name"] == tensor.name)
                assert np.linalg.matrix_rank(new, rtol=1e-4) == told["rank"] < min(tensor.shape)
                assert told["numbers"] == told["rank"] * sum(tensor.shape) <= 0.5 * tensor.elements
                assert 0 < told["error"] < 0.5
            else:
                assert bytes(before.raw(tensor.name)) == bytes(after.raw(tensor.name))
    value, _, how = report.figures["factor_numbers_share"]
    assert isinstance(value, float) and 0.4 < value <= 0.5 and "what the file holds" in how
    assert "neither bytes nor time are saved" in report.notes[0]
    found = perplexity(path, TEXT, windows=1, threads=1, reference=model)
    assert found.kl is not None and 0 < found.kl < 5


def test_what_enters_is_worth_knowing(run: Run, model: Path) -> None:
    kl = {}
    for by in ("whitened", "svd"):
        _, path = run("low-rank", share=0.6, by=by)
        kl[by] = perplexity(path, TEXT, windows=1, threads=1, reference=model).kl or 0.0
    assert kl["whitened"] < 0.7 * kl["svd"]
    assert step("low-rank", {"share": 0.5}).calibrates and not step("low-rank", {"share": 0.5, "by": "svd"}).calibrates


def test_energy_gives_each_layer_its_own_rank(run: Run) -> None:
    report, path = run("low-rank", energy=0.9)
    made = [one for one in report.tensors if "rank" in one]
    assert len({one["rank"] for one in made}) > 2 and all(one["error"] <= 0.1001 for one in made)
    with open_weights(path) as opened:
        assert step("low-rank", {"energy": 0.9}).outline(opened) is None


def test_layers_that_gain_nothing_stay(run: Run, model: Path) -> None:
    # k and v are 32 x 64: 30 of their values are 2,880 numbers; q is 64 x 64, and 30 of its are 3,840 of 4,096.
    report, path = run("low-rank", rank=30, targets=r".*attn_[qk]\.weight")
    with open_weights(model) as before, open_weights(path) as after:
        for layer in range(4):
            name = f"blk.{layer}.attn_k.weight"
            assert bytes(before.raw(name)) == bytes(after.raw(name))
        outline = step("low-rank", {"rank": 30, "targets": r".*attn_[qk]\.weight"}).outline(before)
        assert outline is not None
        assert outline.tensors["blk.0.attn_k.weight"] == "blk.0.attn_k.weight"
        assert outline.tensors["blk.0.attn_q.weight"] == ("f32", (64, 64))
    assert "4 layers stay as they are" in report.notes[1]


@pytest.mark.parametrize(("by", "stack"), [("tucker", 1), ("cp", 1), ("tucker", 2)])
def test_matrices_together(run: Run, model: Path, by: str, stack: int) -> None:
    pytest.importorskip("tensorly")
    report, path = run("low-rank", share=0.6, by=by, stack=stack, targets=r".*(ffn_gate|ffn_up|attn_v)\.weight")
    together = {tuple(one.get("together", ())) for one in report.tensors}
    if stack == 1:
        assert ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight") in together
    else:
        assert ("blk.2.attn_v.weight", "blk.3.attn_v.weight") in together
    value = report.figures["factor_numbers_share"][0]
    assert isinstance(value, float) and 0.5 < value <= 0.6
    assert all(0 < one["error"] < 0.6 for one in report.tensors)
    found = perplexity(path, TEXT, windows=1, threads=1, reference=model)
    assert found.kl is not None and 0 < found.kl < 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "exactly one of them"),
        ({"rank": 4, "share": 0.5}, "exactly one of them"),
        ({"share": 1.5}, "share = 1.5"),
        ({"share": 0.5, "by": "magic"}, "by = 'magic' is none of"),
        ({"energy": 0.9, "by": "cp"}, "takes a rank or a share"),
        ({"share": 0.5, "stack": 2}, "takes each matrix alone"),
        ({"share": 0.5, "targets": "("}, "not a regular expression"),
    ],
)
def test_options_that_are_wrong(options: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        step("low-rank", options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"share": 0.5, "targets": "blk.9.*"}, "no linear layer"),
        ({"rank": 40}, "its rank is 32 at most, not 40"),
        ({"rank": 62, "targets": ".*attn_q.*"}, "more numbers than the matrices"),
        ({"share": 0.01}, "rank 1 needs more than"),
        ({"share": 0.0001, "by": "cp"}, "less than cp of rank 1"),
    ],
)
def test_what_cannot_be_done_is_said_first(run: Run, options: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        run("low-rank", **options)


def test_without_tensorly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorly", None)
    with pytest.raises(MissingDependencyError, match="tensorly"):
        run("low-rank", share=0.5, by="tucker")
