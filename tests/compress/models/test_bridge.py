"""A file in transformers: the same answers as llama.cpp's, and the same numbers back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pressroom.compress.models import Bridge, Sizes, check, load, save, scratch
from pressroom.compress.weights import New, open_weights, rebuild
from pressroom.kernel import RecipeError
from tests.compress.calibrate.tiny_llama import TinyLlama
from tests.compress.weights.conftest import smollm2
from tests.compress.weights.gguf_files import F32, STRING, tiny

from .llamacpp import logits

__all__ = ["smollm2"]

TOKENS = np.random.default_rng(5).integers(3, 288, 24).tolist()


def answers(bridge: Bridge, tokens: list[int] = TOKENS) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return bridge.model(input_ids=torch.tensor([tokens])).logits[0].numpy()


def off(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """The largest difference of two tables of logits, where 1 is how much the logits of a position spread."""
    return float(np.abs(one - other).max() / other.std())


def made(path: Path, kind: str) -> Path:
    """A tiny model of a kind."""
    if kind == "experts":
        return TinyLlama(experts=4).write(path)
    if kind in ("qwen2", "qwen3"):
        with open_weights(tiny().write(path.with_suffix(".base"))) as base:
            scratch(path.with_suffix(".scratch"), base, Sizes(architecture=kind, layers=3), seed=2)
        random = np.random.default_rng(3)
        with open_weights(path.with_suffix(".scratch")) as plain:
            # Biases and norms that are not all alike, and weights large enough for attention to matter.
            grown = {
                name: New.of(plain.rows(name).reshape(tensor.shape) + random.normal(size=tensor.shape, scale=0.2))
                for name, tensor in plain.tensors.items()
            }
            rebuild(path, plain, grown)
        return path
    file = tiny(tied=kind == "tied", layers=3)
    if kind == "stretched":
        file.keys["llama.rope.scaling.type"] = (STRING, "linear")
        file.keys["llama.rope.scaling.factor"] = (F32, 4.0)
    file.write(path.with_suffix(".plain"))
    with open_weights(path.with_suffix(".plain")) as source:
        tensors: dict[str, str | New] = {name: name for name in source.tensors}
        metadata: dict[str, Any] = {}
        if kind == "frequencies":
            tensors["rope_freqs.weight"] = New.of(np.linspace(1, 8, 8, dtype=np.float32))
        if kind == "pruned":
            # Three heads of 16, and 64 columns: no number of heads that a whole model could have.
            metadata = {
                "llama.feed_forward_length": 96,
                "llama.attention.head_count": 3,
                "llama.attention.head_count_kv": 1,
                "llama.attention.key_length": 16,
                "llama.attention.value_length": 16,
            }
            for name, tensor in source.tensors.items():
                keep = {"attn_q": 48, "attn_k": 16, "attn_v": 16, "ffn_gate": 96, "ffn_up": 96}.get(tensor.part)
                if keep:
                    tensors[name] = New.of(source.rows(name)[:keep])
                if tensor.part in ("attn_output", "ffn_down"):
                    tensors[name] = New.of(source.rows(name)[:, : 48 if tensor.part == "attn_output" else 96])
        rebuild(path, source, tensors, metadata=metadata)
    return path


@pytest.mark.parametrize("kind", ["plain", "tied", "experts", "qwen2", "qwen3", "stretched", "frequencies", "pruned"])
def test_the_answers_are_llamacpps(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path / "a.gguf", kind)
    with open_weights(path) as source:
        bridge = load(source)
        stored = bridge.store()
        for name, values in stored.items():
            tensor = source.tensor(name)
            assert values.shape == tensor.shape and values.dtype == np.float32
            assert np.array_equal(values.reshape(tensor.rows, -1), source.rows(name)), name
        assert stored.keys() | {"rope_freqs.weight"} == source.tensors.keys() | {"rope_freqs.weight"}
    # llama.cpp keeps keys and values as float16.
    assert off(answers(bridge), logits(path, TOKENS)) < 0.02


def test_what_the_test_above_would_see(tmp_path: Path) -> None:
    """Rows of q in another order, and positions that are not stretched."""
    path = made(tmp_path / "a.gguf", "stretched")
    with open_weights(path) as source:
        bridge = load(source)
    right = logits(path, TOKENS)
    rotary: Any = bridge.model.get_submodule("model.rotary_emb")
    rotary.inv_freq *= 4
    assert off(answers(bridge), right) > 0.1
    rotary.inv_freq /= 4
    q = bridge.values("blk.1.attn_q.weight")
    bridge.put("blk.1.attn_q.weight", q.reshape(4, 8, 2, -1).swapaxes(1, 2).reshape(q.shape))
    assert off(answers(bridge), right) > 0.1


def test_what_changed_is_written_and_nothing_else(tmp_path: Path) -> None:
    path = tiny(kind="F16", tied=True).write(tmp_path / "a.gguf")
    with open_weights(path) as source:
        bridge = load(source)
        q = bridge.values("blk.0.attn_q.weight")
        bridge.put("blk.0.attn_q.weight", q + 1)
        bridge.put("blk.0.ffn_norm.weight", np.full(64, 2, np.float32))
        changed = save(tmp_path / "b.gguf", source, bridge.store())
        assert set(changed) == {"blk.0.attn_q.weight", "blk.0.ffn_norm.weight"}
        with open_weights(tmp_path / "b.gguf") as found:
            assert {one.type for one in found.tensors.values()} == {"F32", "F16"}
            assert np.array_equal(found.rows("blk.0.attn_q.weight"), (q + 1).astype(np.float16))
            assert (found.rows("blk.0.ffn_norm.weight") == 2).all()
            for name in set(source.tensors) - set(changed):
                assert bytes(found.raw(name)) == bytes(source.raw(name))
        bridge.put("blk.0.attn_q.weight", q * np.float32(np.nan))
        with pytest.raises(RecipeError, match=r"no finite numbers: blk\.0\.attn_q\.weight"):
            save(tmp_path / "c.gguf", source, bridge.store())
    assert not (tmp_path / "c.gguf").exists()


def test_experts_are_written_where_they_belong(tmp_path: Path) -> None:
    path = TinyLlama(experts=4).write(tmp_path / "a.gguf")
    with open_weights(path) as source:
        bridge = load(source)
        for part in ("gate", "up", "down"):
            name = f"blk.1.ffn_{part}_exps.weight"
            values = bridge.values(name)
            values[2] *= -0.5
            bridge.put(name, values)
            assert np.array_equal(bridge.values(name), values)
        save(tmp_path / "b.gguf", source, bridge.store())
    assert off(answers(bridge), logits(tmp_path / "b.gguf", TOKENS)) < 0.02
    assert off(answers(bridge), logits(path, TOKENS)) > 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "mamba"}, "Known are llama, qwen2, qwen3, qwen3moe"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "by yarn"),
        ({"llama.rope.dimension_count": 8}, "turn 8 of a head's 16"),
        ({"llama.block_count": 3}, "lacks 9 tensors of a llama: blk.2.attn_norm.weight"),
        ({"tensor": "blk.0.attn_sub_norm.weight"}, "no place for: blk.0.attn_sub_norm.weight"),
        ({"tensor": "blk.0.attn_q_norm.weight"}, "no place for: blk.0.attn_q_norm.weight"),
    ],
)
def test_what_cannot_be_trained_is_said(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with open_weights(tiny().write(tmp_path / "a.gguf")) as source:
        tensors: dict[str, str | New] = {name: name for name in source.tensors}
        if name := change.pop("tensor", ""):
            tensors[name] = New.of(np.ones(64, np.float32))
        rebuild(tmp_path / "b.gguf", source, tensors, metadata=change)
    with open_weights(tmp_path / "b.gguf") as found, pytest.raises(RecipeError) as raised:
        check(found)
    assert said in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.slow
def test_the_real_model(smollm2: Path) -> None:
    tokens = np.random.default_rng(5).integers(20, 40_000, 64).tolist()
    with open_weights(smollm2) as source:
        bridge = load(source)
        for name, values in bridge.store().items():
            assert np.array_equal(values.reshape(source.tensor(name).rows, -1), source.rows(name))
    found, right = answers(bridge, tokens), logits(smollm2, tokens)
    # llama.cpp rounds what enters a layer to 8 bits where the weights are of 4.
    assert (found.argmax(axis=1) == right.argmax(axis=1)).mean() > 0.85
    assert np.abs(found - right).mean() / right.std() < 0.1
