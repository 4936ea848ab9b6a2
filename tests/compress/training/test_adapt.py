"""Adapters: they learn, are merged and taken off again, and are written as PEFT reads them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pressroom.compress.models import load
from pressroom.compress.numbers import number_format
from pressroom.compress.steps import step
from pressroom.compress.weights import Role, open_weights
from pressroom.kernel import MissingDependencyError, RecipeError, StoreError

from .conftest import Job, Run, figure, sentences, unread

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


@pytest.fixture
def other_text(tmp_path: Path) -> Path:
    """The same sentences, backwards: a language that the teacher has not seen."""
    path = tmp_path / "other.txt"
    path.write_text(sentences(150)[::-1])
    return path


@needs_peft
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own call, below
def test_a_model_is_adapted_to_a_text(run: Run, teacher: Path, tmp_path: Path, other_text: Path) -> None:
    from peft import PeftModel

    adapter = tmp_path / "adapter"
    report, path = run("adapt", text=str(other_text), steps=25, rate=5e-3, rank=8, adapter=str(adapter))
    assert figure(report, "held_loss") < 0.75 * figure(report, "held_loss_before")
    with open_weights(teacher) as source, open_weights(path) as found:
        linears = {one.name for one in source.linears}
        for name in source.tensors:
            same = bytes(source.raw(name)) == bytes(found.raw(name))
            assert same == (name not in linears), name
        name = "blk.1.attn_q.weight"
        added = found.rows(name) - source.rows(name)
        assert np.linalg.matrix_rank(added, tol=1e-3) <= 8
        assert figure(report, "adapter_weights") == 8 * (14 * 256 + 2 * (128 + 128) + 10 * 256)
        # The adapter by itself, put on the teacher, gives the same answers.
        model = load(source).model
        tokens = torch.arange(10, 50)[None]
        with torch.no_grad():
            plain = model(input_ids=tokens).logits
            merged = load(found).model(input_ids=tokens).logits
            adapted = PeftModel.from_pretrained(model, adapter).eval()(input_ids=tokens).logits
    assert torch.allclose(adapted, merged, atol=2e-3) and not torch.allclose(plain, merged, atol=0.1)
    assert sorted(one.name for one in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@needs_peft
def test_merging_can_be_undone(teacher: Path) -> None:
    from pressroom.compress.training._adapters import Adapters

    with open_weights(teacher) as source:
        bridge = load(source)
        names = tuple(one.name for one in source.linears)
        before = {name: bridge.values(name) for name in bridge.places}
    tokens = torch.arange(10, 50)[None]
    adapters = Adapters(bridge, names, rank=4, scale=8.0)
    with torch.no_grad():
        plain = adapters.model(input_ids=tokens).logits
        for parameter in adapters.parameters:
            parameter.normal_(std=0.05)
        apart = adapters.model(input_ids=tokens).logits
        adapters.model.merge_adapter()
        together = adapters.model(input_ids=tokens).logits
        adapters.model.unmerge_adapter()
        for name in names:
            layer: Any = bridge.module(name)
            weight = layer.base_layer.weight.detach().numpy()
            assert np.allclose(bridge.filed(name, weight), before[name], atol=1e-6)
        adapters.merge()
        merged = bridge.model(input_ids=tokens).logits
    assert torch.allclose(apart, together, atol=1e-4) and torch.allclose(apart, merged, atol=1e-4)
    assert not torch.allclose(plain, apart, atol=0.1)
    assert bridge.store().keys() == before.keys()


@needs_peft
@pytest.mark.parametrize("base", ["nf4", pytest.param("q4_0", marks=pytest.mark.slow)])
def test_adapters_on_weights_of_four_bits(run: Run, other_text: Path, base: str, teacher: Path) -> None:
    report, path = run("adapt", text=str(other_text), steps=20, rate=5e-3, rank=8, base=base)
    assert figure(report, "held_loss") < 0.8 * figure(report, "held_loss_before")
    with open_weights(teacher) as source, open_weights(path) as found:
        form, name = number_format(base), "blk.0.ffn_up.weight"
        bound = form.bound(source.rows(name))
        added = found.rows(name) - bound.decode(bound.encode(source.rows(name)))
        assert np.linalg.matrix_rank(added, tol=1e-3) <= 8


@needs_peft
@pytest.mark.slow
def test_a_pruned_model_recovers_and_keeps_its_zeros(run: Run, narrowed: Path, teacher: Path) -> None:
    report, path = run("adapt", source=narrowed, steps=25, rate=3e-3, alpha=0.9, rank=16)
    before, after = unread(narrowed, teacher).divergence, unread(path, teacher).divergence
    assert before is not None and after is not None and after < 0.8 * before
    with open_weights(narrowed) as pruned, open_weights(path) as found:
        for tensor in pruned.linears:
            assert (found.rows(tensor.name)[pruned.rows(tensor.name) == 0] == 0).all()
    assert "14 matrices had zeros, which were put back after merging" in report.notes


@needs_peft
@pytest.mark.slow
def test_the_same_bytes_again_and_after_a_kill(run: Run, teacher: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 6, "checkpoint": 3, "batch": 2, "rank": 4}
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    _, one = run("adapt", job=Job(teacher, folders[0]), **options)
    with pytest.raises(KeyboardInterrupt):
        run("adapt", job=Job(teacher, folders[1], stop_at=5), **options)
    job = Job(teacher, folders[1])
    _, two = run("adapt", job=job, **options)
    assert job.done[0] == 3 and one.read_bytes() == two.read_bytes()


@needs_peft
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "rank = 0 is not from 1"),
        ({"rank": 200}, "rank = 200 is not low for 4 matrices, such as blk.0.attn_k.weight"),
        ({"base": "nf5"}, "base: there is no number format called 'nf5'"),
        ({"train": r"token_embd\.weight"}, "means none of the linear layers"),
        ({"adapter": "."}, "adapter: . is there already"),
    ],
)
def test_bad_options(teacher: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as raised, open_weights(teacher) as source:
        step("adapt", options).check(source)
    assert said in raised.value.message


@needs_peft
def test_an_adapter_that_cannot_be_written(teacher: Path, tmp_path: Path) -> None:
    from pressroom.compress.training._adapters import Adapters

    with open_weights(teacher) as source:
        bridge = load(source)
    adapters = Adapters(bridge, tuple(bridge.named(Role.LINEAR))[:1], rank=2, scale=4.0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="the adapter cannot be written"):
        adapters.save(tmp_path / "file" / "adapter")


def test_a_library_that_is_missing(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else real(name, *more))
    with pytest.raises(MissingDependencyError) as raised, open_weights(teacher) as source:
        step("adapt", {}).check(source)
    assert "pip install 'pressroom[compress]'" in raised.value.hint
