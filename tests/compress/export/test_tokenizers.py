"""A tokenizer that is carried over gives the tokens that it gave: llama.cpp's against the library's, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pressroom.compress.export import _tokenizer_files
from pressroom.compress.export._llama_tokens import llama_tokens
from pressroom.compress.export._probes import PROBES
from pressroom.compress.export._same_tokens import check_same
from pressroom.compress.export._splits import SPLITS
from pressroom.compress.export._tokenizer_files import tokenizer_of
from pressroom.compress.export._vocabulary import tokenizer_keys
from pressroom.kernel import EngineError, RecipeError

from .vocabularies import MARKS, byte_pair_keys, byte_pairs, sentence_pieces


class Given:
    """What `tokenizer_keys` looks at of a folder."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config, self.called = path, config, path.name

    def json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return json.loads(path.read_text()) if path.is_file() else {}


def value_of(keys: dict[str, Any]) -> Any:
    return lambda key, default=None: keys.get(key, default)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe", "tekken", "gpt-4o", "deepseek-v3"])
def test_every_way_to_cut_is_llamacpps(pre: str) -> None:
    keys = byte_pair_keys(pre)
    found = check_same(keys, tokenizer_of(value_of(keys)))
    assert found.asked and bool(found.unlike) == (pre in ("tekken", "gpt-4o"))


def test_ways_to_cut_differ_on_the_probes() -> None:
    """What the tests here would not see if the probes were too easy."""
    keys = byte_pair_keys("llama-bpe")
    found = {
        pre: json.dumps(
            [tokenizer_of(value_of(keys | {"tokenizer.ggml.pre": pre})).encode(text).ids for text in PROBES]
        )
        for pre in ("gpt-2", "smollm", "qwen2", "llama-bpe", "tekken", "gpt-4o", "deepseek-v3")
    }
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe", "gpt-4o"])
def test_back_from_the_files(pre: str, tmp_path: Path) -> None:
    keys = byte_pair_keys(pre)
    ids = _tokenizer_files.write(value_of(keys), tmp_path, context=64)
    assert ids == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    size = len(keys["tokenizer.ggml.tokens"])
    found = tokenizer_keys(Given(tmp_path, ids), size + 5)  # type: ignore[arg-type]
    assert found["tokenizer.ggml.pre"] == pre
    assert found["tokenizer.ggml.tokens"] == [*keys["tokenizer.ggml.tokens"], *(f"[PAD{size + n}]" for n in range(5))]
    assert found["tokenizer.ggml.token_type"] == [*keys["tokenizer.ggml.token_type"], *[5] * 5]
    for key in ("merges", "bos_token_id", "eos_token_id", "padding_token_id", "add_bos_token"):
        assert found[f"tokenizer.ggml.{key}"] == keys[f"tokenizer.ggml.{key}"]
    assert found["tokenizer.chat_template"] == keys["tokenizer.chat_template"]


def test_sentence_pieces_there_and_back(tmp_path: Path) -> None:
    sentence_pieces().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}')
    size = sentence_pieces().get_vocab_size()
    keys = tokenizer_keys(Given(tmp_path, {}), size)  # type: ignore[arg-type]
    assert keys["tokenizer.ggml.model"] == "llama" and keys["tokenizer.ggml.add_space_prefix"] is True
    assert keys["tokenizer.ggml.bos_token_id"] == 1 and keys["tokenizer.ggml.token_type"][3] == 6
    assert not check_same(keys, sentence_pieces()).unlike
    back = tokenizer_of(value_of(keys))
    assert [back.encode(text).ids for text in PROBES] == [sentence_pieces().encode(text).ids for text in PROBES]
    assert all(back.decode(back.encode(text).ids) == text for text in PROBES[:8])


def test_what_a_text_begins_with(tmp_path: Path) -> None:
    keys = byte_pair_keys("gpt-2") | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = tokenizer_of(value_of(keys))
    assert check_same(keys, tokenizer).note == ""
    ids = tokenizer.encode("a").ids
    assert (ids[0], ids[-1], len(ids)) == (0, 1, 3)
    _tokenizer_files.write(value_of(keys), tmp_path, context=64)
    found = tokenizer_keys(Given(tmp_path, {}), len(keys["tokenizer.ggml.tokens"]))  # type: ignore[arg-type]
    assert found["tokenizer.ggml.add_bos_token"] is found["tokenizer.ggml.add_eos_token"] is True


def test_tokens_that_differ_are_an_error() -> None:
    keys = byte_pair_keys("gpt-2")
    other = tokenizer_of(value_of(keys | {"tokenizer.ggml.pre": "smollm"}))
    with pytest.raises(RecipeError, match="does not give the same tokens") as raised:
        check_same(keys, other)
    assert raised.value.facts["llamacpp"] != raised.value.facts["transformers"]


def test_markers_are_one_token() -> None:
    keys = byte_pair_keys("qwen2")
    found = llama_tokens(keys, [f"{MARKS[0]}a{MARKS[1]}"])
    assert found is not None and found[0][0] == 0 and found[0][-1] == 1
    assert byte_pairs("qwen2").encode(f"{MARKS[0]}a{MARKS[1]}").ids == found[0]


def test_what_llamacpp_does_not_take() -> None:
    with pytest.raises(EngineError, match="pre-tokenizer"):
        llama_tokens(byte_pair_keys("gpt-2") | {"tokenizer.ggml.pre": "nobody"}, ["a"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.ggml.model": None}, "has no tokenizer"),
        ({"tokenizer.ggml.tokens": []}, "has no tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.pre": "qwen22"}, "Did you mean qwen2"),
        ({"tokenizer.ggml.merges": []}, "no merges"),
        ({"tokenizer.ggml.tokens": ["a\udc80"]}, "no Unicode text"),
    ],
)
def test_what_cannot_be_carried_over(change: dict[str, Any], says: str) -> None:
    keys = {key: value for key, value in (byte_pair_keys("gpt-2") | change).items() if value is not None}
    with pytest.raises(RecipeError) as raised:
        _tokenizer_files.check(value_of(keys))
    assert says in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "'Unigram'"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts texts as none"),
    ],
)
def test_tokenizers_that_llamacpp_has_not(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    described = json.loads(byte_pairs("gpt-2").to_str()) | change
    if "model" in change:
        described["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]], "byte_fallback": False}
        described["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(RecipeError) as raised:
        tokenizer_keys(Given(tmp_path, {}), 1000)  # type: ignore[arg-type]
    assert says in raised.value.message


def test_no_tokenizer_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(RecipeError, match=r"no tokenizer.json, but tokenizer.model") as raised:
        tokenizer_keys(Given(tmp_path, {}), 10)  # type: ignore[arg-type]
    assert "save_pretrained" in raised.value.hint


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    byte_pairs("gpt-2").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(RecipeError, match="the embedding has 10"):
        tokenizer_keys(Given(tmp_path, {}), 10)  # type: ignore[arg-type]


def test_every_name_is_one_that_llamacpp_knows() -> None:
    tried = ["gpt-2", "falcon3", "command-r", "modern-bert", "llama4", "megrez", "stablelm2", "dbrx"]
    assert set(tried) <= set(SPLITS)
    for pre in tried:
        assert llama_tokens(byte_pair_keys("gpt-2") | {"tokenizer.ggml.pre": pre}, ["a b"]) is not None
