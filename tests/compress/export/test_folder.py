"""GGUF to transformers and back: the same weights, tokens and figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pressroom.compress.export._folder import write_folder
from pressroom.compress.export._from_folder import write_from_folder
from pressroom.compress.export._safetensors import Folder
from pressroom.compress.models import names
from pressroom.compress.weights import open_weights
from pressroom.engines import perplexity
from pressroom.kernel import RecipeError, StoreFullError, WeightsError
from tests.compress.weights.gguf_files import File, tiny

from .models import keyed, model

TEXT = "the quick brown fox, and it's 1234 things that aren't here: Élève, 人工智能. " * 30


def made(path: Path, file: File, dtype: str = "f32") -> Path:
    """The folder of a file."""
    folder = path / "folder"
    folder.mkdir(exist_ok=True)
    with open_weights(file.write(path / "given.gguf")) as source:
        write_folder(source, folder, dtype=dtype)
    return folder


def changed(folder: Path, **values: Any) -> None:
    """Write config.json again with these, None: without."""
    path = folder / "config.json"
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


@pytest.mark.parametrize(
    "file",
    [model("llama"), model("llama", tied=False), model("qwen2", tied=False), model("qwen3"), tiny()],
    ids=["llama", "untied", "qwen2", "qwen3", "sentence pieces"],
)
def test_there_and_back(file: File, tmp_path: Path) -> None:
    folder = made(tmp_path, file)
    with Folder(folder) as opened:
        write_from_folder(opened, tmp_path / "back.gguf")
    with open_weights(tmp_path / "given.gguf") as before, open_weights(tmp_path / "back.gguf") as after:
        assert set(before.tensors) == set(after.tensors)
        for name, tensor in before.tensors.items():
            assert after.tensor(name).shape == tensor.shape
            np.testing.assert_array_equal(after.rows(name), before.rows(name))
        for key in before.keys:
            if not key.startswith("general.") and "scores" not in key:
                assert after.value(key) == before.value(key), key
    # llama.cpp cuts the text alike (or would say so), and predicts the same.
    found = perplexity(tmp_path / "back.gguf", TEXT, windows=1, threads=1, reference=tmp_path / "given.gguf")
    assert found.unlike == "" and found.top1 == 1.0
    assert found.kl is not None and abs(found.kl) < 1e-7


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_transformers_says_what_llamacpp_says(architecture: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = made(tmp_path, model(architecture))
    theirs = perplexity(tmp_path / "given.gguf", TEXT, windows=1, threads=1)
    tokens = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"][:512]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32 and loaded.config.tie_word_embeddings
    with torch.no_grad():
        logits = loaded(torch.tensor([tokens])).logits[0].log_softmax(-1)
    picked = logits[torch.arange(256, 511), torch.tensor(tokens[257:512])]
    assert math.exp(-float(picked.mean())) == pytest.approx(theirs.value, rel=1e-3)


def test_the_chat_template_and_what_ends_an_answer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    file = model("qwen2")
    file.keys["tokenizer.ggml.eot_token_id"] = keyed("", 2)
    folder = made(tmp_path, file, "bf16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert said == "<|begin|>ab<|end|>" and tokenizer.eos_token == "<|end|>"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [1, 2]
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_shards(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = made(tmp_path, model("llama"))
    every = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = sorted(every)[::2]
    parts = {"a.safetensors": half, "b.safetensors": sorted(set(every) - set(half))}
    for name, listed in parts.items():
        save_file({each: every[each] for each in listed}, folder / name)
    index = {"weight_map": {each: name for name, listed in parts.items() for each in listed}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with Folder(folder) as opened:
        write_from_folder(opened, tmp_path / "back.gguf")
    with open_weights(tmp_path / "given.gguf") as before, open_weights(tmp_path / "back.gguf") as after:
        assert all(np.array_equal(before.rows(name), after.rows(name)) for name in before.tensors)
    (folder / "b.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"b\.safetensors"), Folder(folder):
        pass


def test_damaged_safetensors(tmp_path: Path) -> None:
    folder = made(tmp_path, model("llama"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(WeightsError), Folder(folder):
        pass


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"general.architecture": "gemma"}, "llama, qwen2, qwen3"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.expert_count": 4}, "mixture of experts"),
        ({"llama.rope.dimension_count": 8}, "a part of each head"),
        ({"llama.feed_forward_length": [128, 64]}, "from layer to layer"),
        ({"llama.attention.head_count": None}, "head_count is missing"),
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "2 tokens"),
    ],
)
def test_files_that_cannot_be_carried_over(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = model("llama")
    for key, value in change.items():
        if value is None:
            del file.keys[key]
        else:
            file.keys[key] = keyed(key, value)
    with pytest.raises(RecipeError) as raised:
        made(tmp_path, file)
    assert says in f"{raised.value.message} {raised.value.hint}"
    assert list((tmp_path / "folder").iterdir()) == []


def test_tensors_that_are_missing_or_strange(tmp_path: Path) -> None:
    file = model("llama")
    file.tensors["blk.1.attn_sinks.weight"] = file.tensors.pop("blk.1.attn_q.weight")
    with pytest.raises(RecipeError, match=r"attn_q.weight is missing; blk.1.attn_sinks.weight is not of a llama"):
        made(tmp_path, file)


def test_weights_that_f16_does_not_hold(tmp_path: Path) -> None:
    from tests.compress.weights.gguf_files import Array

    file = model("llama")
    file.tensors["blk.0.ffn_up.weight"] = Array.of(np.full((128, 64), 1e5, np.float32))
    with pytest.raises(RecipeError, match=r"blk.0.ffn_up.weight reaches 100,000"):
        made(tmp_path, file, "f16")
    assert not (tmp_path / "folder" / "model.safetensors").exists()
    made(tmp_path, file, "bf16")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "gemma3", "architectures": None}, "llama, mistral, qwen2, qwen3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised already"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"intermediate_size": 96}, "config.json makes it [96, 64]"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"num_attention_heads": "x"}, "num_attention_heads = 'x'"),
    ],
)
def test_folders_that_cannot_become_gguf(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = made(tmp_path, model("llama"))
    changed(folder, **change)
    with pytest.raises(RecipeError) as raised, Folder(folder) as opened:
        write_from_folder(opened, tmp_path / "back.gguf")
    assert says in f"{raised.value.message} {raised.value.hint}"
    assert not (tmp_path / "back.gguf").exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pressroom.compress.export import _whole

    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(_whole.os, "statvfs", lambda _: Full)
    with pytest.raises(StoreFullError):
        made(tmp_path, model("llama"))
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_positions_of_llama_3(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    folder = made(tmp_path, model("llama", pre="llama-bpe"))
    changed(folder, rope_scaling=scaling, rope_theta=500000.0)
    with Folder(folder) as opened:
        write_from_folder(opened, tmp_path / "back.gguf")
    (tmp_path / "again").mkdir()
    with open_weights(tmp_path / "back.gguf") as source:
        assert names.ROPE_FREQS in source.tensors
        write_folder(source, tmp_path / "again", dtype="f32")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["rope_scaling"] == scaling
    import torch
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs = LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder)).inv_freq
    with open_weights(tmp_path / "back.gguf") as source:
        factors = source.rows(names.ROPE_FREQS).reshape(-1)
    plain = 500000.0 ** (-np.arange(0, 16, 2) / 16)
    torch.testing.assert_close(theirs, torch.from_numpy((plain / factors).astype(np.float32)), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_the_real_model(smollm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with open_weights(smollm2) as source:
        write_folder(source, folder, dtype="bf16")
    with Folder(folder) as opened:
        write_from_folder(opened, tmp_path / "back.gguf")
    text = "It was the best of times, it was the worst of times, it was the age of wisdom; Élève, 人工智能 1234. " * 40
    found = perplexity(tmp_path / "back.gguf", text, windows=2, reference=smollm2)
    # What bf16 rounds, and what llama.cpp rounds of the inputs of layers of 4 bits.
    assert found.unlike == "" and found.kl is not None and found.kl < 0.01
