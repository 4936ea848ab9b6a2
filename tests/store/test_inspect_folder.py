"""Folders as Hugging Face lays them out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from pressroom.kernel import MalformedWeightsError, NotFoundError, UnsafeWeightsError
from pressroom.store import WeightsInfo, inspect_folder

from .weights_files import Gguf, safetensors

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "rope_theta": 1e5,
    "tie_word_embeddings": True,
    "rope_scaling": None,
    "eos_token_id": [1, 2],
}
TOKENIZER = {"tokenizer_class": "GPT2Tokenizer", "chat_template": "{{ messages }}"}
CARD = b"---\nlanguage:\n- en\nlicense: apache-2.0\ntags: []\n---\n# A model\nlicense: not-this\n"


def one(name: str, size: int = 8) -> bytes:
    return safetensors({name: {"dtype": "F16", "shape": [size], "data_offsets": [0, 2 * size]}}, bytes(2 * size))


def index(**weight_map: object) -> bytes:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


WHOLE: dict[str, bytes] = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer_config.json": json.dumps(TOKENIZER).encode(),
    "tokenizer.json": b'{"version": "1.0"}',
    "README.md": CARD,
    "model.safetensors": safetensors(),
}
SHARDED: dict[str, bytes] = {
    "config.json": WHOLE["config.json"],
    "model-00001-of-00002.safetensors": one("a"),
    "model-00002-of-00002.safetensors": one("b", 4),
    "model.safetensors.index.json": index(a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors"),
}


def read(tmp_path: Path, files: dict[str, bytes]) -> WeightsInfo:
    """The files are kept under numbers, as the store would, so that only the mapping names them."""
    paths: dict[str, Path] = {}
    for number, (name, content) in enumerate(files.items()):
        paths[name] = tmp_path / str(number)
        paths[name].write_bytes(content)
    return inspect_folder(paths)


def test_an_honest_folder(tmp_path: Path) -> None:
    info = read(tmp_path, WHOLE)
    assert info.format == "safetensors"
    assert info.architecture == "LlamaForCausalLM"
    assert info.parameters == 14
    assert info.tokenizer == "GPT2Tokenizer"
    assert info.vocabulary == 49152
    assert info.context_length == 8192
    assert info.quantization == "BF16"
    assert info.license == "apache-2.0"
    assert info.metadata == {
        "format": "pt",
        "model_type": "llama",
        "max_position_embeddings": 8192,
        "vocab_size": 49152,
        "rope_theta": 1e5,
        "tie_word_embeddings": True,
        "chat_template": True,
        "tensor_types": "BF16 57.1%, F32 42.9%",
    }
    assert [(tensor.name, tensor.file) for tensor in info.tensors] == [
        ("a", "model.safetensors"),
        ("b", "model.safetensors"),
    ]


def test_shards(tmp_path: Path) -> None:
    info = read(tmp_path, SHARDED)
    assert info.parameters == 12
    assert [(tensor.name, tensor.file, tensor.nbytes) for tensor in info.tensors] == [
        ("a", "model-00001-of-00002.safetensors", 16),
        ("b", "model-00002-of-00002.safetensors", 8),
    ]


def test_copies_beside_the_model_are_checked_and_not_counted(tmp_path: Path) -> None:
    assert read(tmp_path, {**SHARDED, "consolidated.safetensors": safetensors()}).parameters == 12
    assert read(tmp_path, {**WHOLE, "model.fp16.safetensors": one("a")}).parameters == 14
    assert read(tmp_path, {**WHOLE, "onnx/model.safetensors": one("a")}).parameters == 14
    with pytest.raises(MalformedWeightsError, match=r"'consolidated.safetensors'"):
        read(tmp_path, {**SHARDED, "consolidated.safetensors": safetensors()[:-1]})


def test_a_single_file_by_another_name(tmp_path: Path) -> None:
    files = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": one("a")}
    info = read(tmp_path, files)
    assert info.parameters == 8
    assert info.metadata["peft_type"] == "LORA"
    assert info.architecture is info.tokenizer is info.vocabulary is info.context_length is info.license is None


def test_a_folder_with_one_gguf_is_that_file(tmp_path: Path) -> None:
    info = read(tmp_path, {"README.md": CARD, "x.gguf": bytes(Gguf())})
    assert info.format == "gguf"
    assert info.parameters == 192


def test_the_language_model_inside_a_larger_one(tmp_path: Path) -> None:
    config = {"model_type": "vlm", "text_config": {"vocab_size": 7, "max_position_embeddings": 9}}
    info = read(tmp_path, {**WHOLE, "config.json": json.dumps(config).encode()})
    assert (info.architecture, info.vocabulary, info.context_length) == ("vlm", 7, 9)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ 4-bit"),
        ({"quant_method": "fp8"}, "FP8"),
        ({}, "BF16"),
        (None, "BF16"),
    ],
)
def test_quantization_beside_the_types(tmp_path: Path, said: object, expected: str) -> None:
    config = json.dumps({**CONFIG, "quantization_config": said}).encode()
    assert read(tmp_path, {**WHOLE, "config.json": config}).quantization == expected


def test_pickles_are_named_and_refused(tmp_path: Path) -> None:
    files = {
        **WHOLE,
        "pytorch_model.bin": b"?",
        "notes.txt": pickle.dumps({"a": 1}, 4),
        **{f"optimizer_{n}.pt": b"?" for n in range(5)},
    }
    with pytest.raises(UnsafeWeightsError) as caught:
        read(tmp_path, files)
    assert caught.value.facts["files"] == sorted(
        [*(f"optimizer_{n}.pt" for n in range(5)), "notes.txt", "pytorch_model.bin"]
    )
    assert "'notes.txt'" in str(caught.value)
    assert "2 more" in str(caught.value)
    with pytest.raises(UnsafeWeightsError):
        read(tmp_path, {**WHOLE, "model.safetensors": pickle.dumps({"a": 1}, 2)})


def _config(**changes: Any) -> dict[str, bytes]:
    return {**WHOLE, "config.json": json.dumps({**CONFIG, **changes}).encode()}


LIES: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": ({}, "neither safetensors nor GGUF"),
    "no weights": ({"config.json": b"{}", "tokenizer.json": b"{}"}, "neither safetensors nor GGUF"),
    "several GGUF files": ({"a.gguf": bytes(Gguf()), "b.gguf": bytes(Gguf())}, "2 GGUF files"),
    "no config": ({"model.safetensors": safetensors()}, "no config.json"),
    "config a list": ({**WHOLE, "config.json": b"[]"}, "'config.json'.*not a JSON object"),
    "config cut short": ({**WHOLE, "config.json": b'{"a": '}, "'config.json'.*not JSON"),
    "config not UTF-8": ({**WHOLE, "config.json": b'{"\xff": 1}'}, "not JSON"),
    "config empty": ({**WHOLE, "config.json": b""}, "not JSON"),
    "config nested": ({**WHOLE, "config.json": b'{"a":' * 100_000}, "not JSON"),
    "config key twice": ({**WHOLE, "config.json": b'{"vocab_size": 1, "vocab_size": 2}'}, "twice"),
    "architectures as text": (_config(architectures="Llama"), "architectures is 'Llama'"),
    "architectures of numbers": (_config(architectures=[1]), "list of names"),
    "context as text": (_config(max_position_embeddings="8192"), "max_position_embeddings is '8192'"),
    "context as fraction": (_config(max_position_embeddings=8192.0), "max_position_embeddings"),
    "context below 0": (_config(max_position_embeddings=-1), "max_position_embeddings"),
    "vocabulary as truth": (_config(vocab_size=True), "vocab_size"),
    "quantization as text": (_config(quantization_config="4"), "quantization_config"),
    "tokenizer a list": ({**WHOLE, "tokenizer_config.json": b"[]"}, "'tokenizer_config.json'"),
    "tokenizer class a number": ({**WHOLE, "tokenizer_config.json": b'{"tokenizer_class": 1}'}, "tokenizer_class"),
    "weights cut short": ({**WHOLE, "model.safetensors": safetensors()[:-1]}, "cut short"),
    "weights that are text": ({**WHOLE, "model.safetensors": b"version https://git-lfs"}, "it is text"),
    "a shard missing": (
        {name: content for name, content in SHARDED.items() if "00002-of" not in name},
        "'model-00002-of-00002.safetensors', which the folder does not hold",
    ),
    "shards without an index": (
        {name: content for name, content in SHARDED.items() if "index" not in name},
        "2 safetensors files side by side",
    ),
    "index with a tensor more": (
        {
            **SHARDED,
            "model.safetensors.index.json": index(
                a="model-00001-of-00002.safetensors",
                b="model-00002-of-00002.safetensors",
                c="model-00002-of-00002.safetensors",
            ),
        },
        "'c' in 'model-00002-of-00002.safetensors', where it is not",
    ),
    "index with a tensor less": (
        {**SHARDED, "model-00001-of-00002.safetensors": safetensors()},
        "'b' not at all, and 'model-00001-of-00002.safetensors' holds it",
    ),
    "index that climbs out": ({**SHARDED, "model.safetensors.index.json": index(a="../../secret")}, "does not hold"),
    "index without a map": ({**SHARDED, "model.safetensors.index.json": b"{}"}, "weight_map"),
    "index with an empty map": ({**SHARDED, "model.safetensors.index.json": index()}, "no file"),
    "index with numbers": ({**SHARDED, "model.safetensors.index.json": index(a=1)}, "weight_map"),
    "index not JSON": ({**SHARDED, "model.safetensors.index.json": b"nonsense"}, "not JSON"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(tmp_path: Path, lie: str) -> None:
    files, said = LIES[lie]
    with pytest.raises(MalformedWeightsError, match=said) as caught:
        read(tmp_path, files)
    assert caught.value.hint


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        inspect_folder({"model.safetensors": tmp_path / "nothing"})


def test_values_that_json_has_no_room_for(tmp_path: Path) -> None:
    config = b'{"a": NaN, "b": Infinity, "c": ' + b"9" * 30 + b', "d": "' + b"x" * 3000 + b'"}'
    metadata = read(tmp_path, {**WHOLE, "config.json": config}).metadata
    assert (metadata["a"], metadata["b"], metadata["c"]) == ("nan", "inf", "9" * 30)
    assert len(str(metadata["d"])) == 2000


def test_what_a_configuration_says_can_be_shown_and_kept(tmp_path: Path) -> None:
    """Half a character and a number of hundreds of digits: valid JSON that no database or terminal takes."""
    (tmp_path / "model.safetensors").write_bytes(one("w"))
    text = '{"model_type": "a\\ud800b", "max_position_embeddings": ' + "9" * 400 + "}"
    (tmp_path / "config.json").write_text(text)
    info = inspect_folder({name: tmp_path / name for name in ("model.safetensors", "config.json")})
    for value in info.metadata.values():
        str(value).encode()
        assert not isinstance(value, int) or abs(value) < 1 << 63
