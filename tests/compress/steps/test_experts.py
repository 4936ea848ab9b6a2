"""The experts step on a tiny model, which llama.cpp runs as it runs any model of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pressroom.compress.steps import Report, step
from pressroom.compress.weights import Role, open_weights, rebuild
from pressroom.engines import perplexity
from pressroom.kernel import RecipeError
from tests.compress.weights.gguf_files import tiny

from .conftest import TEXT, Carry, Job, PathOf, Run

SPLIT = {"experts": 4, "used": 2}
COPY = {**SPLIT, "how": "copy"}

Made = tuple[Report, Path]


def make(source: Path, folder: Path, options: dict[str, Any]) -> Made:
    found = step("experts", options)
    with open_weights(source) as opened:
        found.check(opened)
        return found.run(opened, folder / "made.gguf", Job(source, folder, folder)), folder / "made.gguf"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(layers=2, kind="F16").write(tmp_path_factory.mktemp("dense") / "tiny.gguf")


@pytest.fixture(scope="module")
def divided(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(dense, tmp_path_factory.mktemp("split"), SPLIT)


@pytest.fixture(scope="module")
def copied(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(dense, tmp_path_factory.mktemp("copy"), COPY)


def kl(path: Path, reference: Path) -> float:
    found = perplexity(path, TEXT, windows=1, threads=1, reference=reference)
    assert found.kl is not None and found.unlike == ""
    return found.kl


def test_copies_answer_as_the_dense_model(dense: Path, copied: Made) -> None:
    report, path = copied
    # The same sums in another order, of float32: 1e-6 of a distribution.
    assert kl(path, dense) < 1e-6
    with open_weights(dense) as before, open_weights(path) as after:
        for part in ("gate", "up", "down"):
            raw = bytes(before.raw(f"blk.1.ffn_{part}.weight"))
            assert bytes(after.raw(f"blk.1.ffn_{part}_exps.weight")) == 4 * raw
            assert after.tensors[f"blk.1.ffn_{part}_exps.weight"].role == Role.EXPERTS
        assert [
            after.value(f"llama.{key}") for key in ("expert_count", "expert_used_count", "feed_forward_length")
        ] == [
            4,
            2,
            128,
        ]
        total = sum(tensor.elements for tensor in after.tensors.values())
        feeds = sum(tensor.elements for tensor in after.of_role(Role.EXPERTS))
    assert report.figures["parameters"][0] == total
    assert report.figures["active_parameters"][0] == total - feeds // 2
    most, variation = report.figures["load_most"][0], report.figures["load_variation"][0]
    assert isinstance(most, float) and isinstance(variation, float) and most >= 1 and variation >= 0
    assert len(report.tensors) == 2 and all(sum(one["loads"]) == pytest.approx(2, abs=1e-4) for one in report.tensors)


def test_all_experts_are_the_dense_model(dense: Path, tmp_path: Path) -> None:
    _, path = make(dense, tmp_path, {"experts": 4, "used": 4})
    # The router's weights are a quarter each to a thousandth.
    assert kl(path, dense) < 1e-4
    with open_weights(dense) as before, open_weights(path) as after:
        rows = np.sort(before.rows("blk.0.ffn_gate.weight"), axis=0)
        np.testing.assert_array_equal(np.sort(after.rows("blk.0.ffn_gate_exps.weight"), axis=0), rows)
        assert after.tensors["blk.0.ffn_down_exps.weight"].shape == (4, 64, 32)
        assert after.value("llama.feed_forward_length") == after.value("llama.expert_feed_forward_length") == 32
        assert not [name for name in after.tensors if name.startswith("blk.0.ffn_up.")]


def test_fewer_experts_lose_what_is_told(dense: Path, divided: Made, tmp_path: Path) -> None:
    report, path = divided
    careless, _ = make(dense, tmp_path, {**SPLIT, "grouping": "turn", "refit": False})
    errors = [each.figures["experts_error"][0] for each in (report, careless)]
    assert isinstance(errors[0], float) and isinstance(errors[1], float)
    assert 0 < errors[0] < 0.5 * errors[1]
    assert 0 < kl(path, dense) < 0.5
    total, active = (report.figures[name][0] for name in ("parameters", "active_parameters"))
    assert isinstance(total, int) and isinstance(active, int)
    assert total - active == 2 * 3 * 64 * 128 // 2
    with open_weights(path) as after:
        assert {tensor.type for tensor in after.of_role(Role.EXPERTS)} == {"F16"}


def test_what_comes_before_and_behind(carry: Carry, path_of: PathOf, model: Path) -> None:
    """The experts are rounded by the steps behind, and what the file will be is known before the work."""
    made = carry(
        {"method": "experts", "experts": 4, "used": 2},
        {"to": "q8_0", "targets": r"blk\..*"},
    )
    with open_weights(path_of(made)) as small:
        types = {tensor.type for tensor in small.of_role(Role.EXPERTS)}
        assert types == {"Q8_0"} and small.tensors["blk.0.ffn_gate_inp.weight"].type == "F32"
    assert made.version.figure("active_parameters") is not None
    assert kl(path_of(made), model) < 1


def test_the_outline_is_what_is_written(dense: Path, divided: Made, copied: Made) -> None:
    for options, (_, path) in ((SPLIT, divided), (COPY, copied)):
        with open_weights(dense) as before, open_weights(path) as after:
            outline = step("experts", options).outline(before)
            assert outline is not None and list(outline.tensors) == list(after.tensors)
            for name, one in outline.tensors.items():
                tensor = after.tensors[name]
                old = before.tensors[one] if isinstance(one, str) else None
                said = (old.type.lower(), old.shape) if old is not None else one
                assert said == (tensor.type.lower(), tensor.shape), name


def test_the_same_seed_gives_the_same_bytes(dense: Path, divided: Made, tmp_path: Path) -> None:
    (tmp_path / ".inputs-old").write_bytes(b"of one that was killed")
    _, again = make(dense, tmp_path, SPLIT)
    assert again.read_bytes() == divided[1].read_bytes()
    assert not list(tmp_path.glob(".inputs-*"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "experts is missing"),
        ({"experts": 1, "used": 1}, "experts = 1 is not"),
        ({"experts": 4, "used": 5}, "used = 5 is not"),
        ({"experts": 4, "used": 2, "shared": 3}, "shared = 3 is not"),
        ({"experts": 4, "used": 2, "how": "melt"}, "how = 'melt'"),
        ({"experts": 4, "used": 2, "grouping": "luck"}, "grouping = 'luck'"),
    ],
)
def test_options_that_are_wrong(options: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        step("experts", options)


def test_what_cannot_be_done_is_said_first(run: Run, model: Path, copied: Made, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"128 channels do not divide into 5 experts; 2, 4 would"):
        run("experts", experts=5, used=2)
    with pytest.raises(RecipeError, match="made of experts already"):
        run("experts", source=copied[1], experts=4, used=2)
    with open_weights(model) as source:
        names = {name: name for name in source.tensors}
        other = tmp_path / "other.gguf"
        rebuild(other, source, names, metadata={"general.architecture": "bert"})
        del names["blk.1.ffn_up.weight"]
        lacking = tmp_path / "lacking.gguf"
        rebuild(lacking, source, names)
    with pytest.raises(RecipeError, match="architecture is bert"):
        run("experts", source=other, experts=4, used=2)
    with pytest.raises(RecipeError, match=r"has no blk\.1\.ffn_up\.weight"):
        run("experts", source=lacking, experts=4, used=2)


@pytest.mark.parametrize("text", ["", "too short"])
def test_a_text_that_shows_nothing(model: Path, tmp_path: Path, text: str) -> None:
    job = Job(model, tmp_path, tmp_path)
    job.text = text
    with open_weights(model) as source, pytest.raises(RecipeError, match="calibration text"):
        step("experts", {"experts": 4, "used": 2}).run(source, tmp_path / "made.gguf", job)
    assert not (tmp_path / "made.gguf").exists() and not list(tmp_path.glob(".inputs-*"))


@pytest.mark.slow
def test_the_real_model(smollm2: Path, tmp_path: Path) -> None:
    """Copies of SmolLM2's feed-forwards answer as it does; they are 4-bit, so only the order of sums differs."""
    found = step("experts", {"experts": 2, "used": 1, "how": "copy"})
    job = Job(smollm2, tmp_path, tmp_path)
    job.text = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 40
    with open_weights(smollm2) as source:
        found.check(source)
        report = found.run(source, tmp_path / "made.gguf", job)
    assert report.figures["parameters"][0] == 134_515_008 + 30 * (3 * 576 * 1536 + 2 * 576)
    measured = perplexity(tmp_path / "made.gguf", job.text, windows=1, threads=2, reference=smollm2)
    assert measured.kl is not None and measured.kl < 1e-3 and measured.top1 is not None and measured.top1 > 0.98
