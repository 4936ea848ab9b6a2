"""Files with tensors of other shapes, fewer and more of them, and other metadata."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pressroom.compress.numbers import number_format
from pressroom.compress.weights import New, Role, Weights, float_format, open_weights, rebuild, same
from pressroom.kernel import RecipeError, StoreFullError

from .gguf_files import ARRAY, I32, Array, tiny


def every(source: Weights) -> dict[str, str | New]:
    return {name: name for name in source.tensors}


def test_the_same_again(source: Weights, model: Path, tmp_path: Path) -> None:
    size = rebuild(tmp_path / "new.gguf", source, every(source))
    with open_weights(tmp_path / "new.gguf") as found:
        assert same(source, found) == ("key general.quantization_version is new: 2",)
        assert found.size == size


def test_other_shapes_names_and_keys(source: Weights, tmp_path: Path) -> None:
    """The second of two layers goes, the first gets a narrower feed-forward, experts come."""
    wanted: dict[str, str | New] = {
        name: name for name in source.tensors if not name.startswith("blk.1.") and "ffn" not in name
    }
    narrow = source.rows("blk.0.ffn_up.weight")[:96]
    wanted["blk.0.ffn_up.weight"] = New.of(narrow, source.tensor("blk.0.ffn_up.weight"))
    wanted["blk.0.ffn_norm.weight"] = "blk.1.ffn_norm.weight"
    experts = np.stack([narrow, -narrow])
    half = number_format("f16")
    wanted["blk.0.ffn_up_exps.weight"] = New(half, experts.shape, lambda: (half.encode(one) for one in experts))
    keys = {"llama.block_count": 1, "llama.attention.head_count": [4], "llama.feed_forward_length": [96]}
    more = {"llama.vocab_size": None, "quantize.note": "é", "x.share": 0.1, "general.architecture": "other"}
    rebuild(tmp_path / "new.gguf", source, wanted, metadata=keys | more)
    with open_weights(tmp_path / "new.gguf") as found:
        assert list(found.tensors) == list(wanted)
        assert found.tensors["blk.0.ffn_up_exps.weight"].role is Role.EXPERTS
        assert np.allclose(found.rows("blk.0.ffn_up_exps.weight"), experts.reshape(-1, 64), atol=1e-3)
        assert np.array_equal(found.rows("blk.0.ffn_up.weight"), narrow)
        assert bytes(found.raw("blk.0.ffn_norm.weight")) == bytes(source.raw("blk.1.ffn_norm.weight"))
        assert {key: found.value(key) for key in keys} == keys
        assert found.value("llama.vocab_size") is None and "llama.vocab_size" not in found.keys
        assert (found.value("quantize.note"), found.architecture) == ("é", "other")
        assert found.value("tokenizer.ggml.tokens") == source.value("tokenizer.ggml.tokens")
        assert found.header.entries["llama.block_count"].kind == source.header.entries["llama.block_count"].kind


def test_a_list_becomes_a_number_and_keeps_its_type(tmp_path: Path) -> None:
    file = tiny()
    file.keys["llama.attention.head_count"] = (ARRAY, (I32, [4, 4]))
    file.keys["llama.attention.head_count_kv"] = (ARRAY, (I32, [2, 2]))
    with open_weights(file.write(tmp_path / "a.gguf")) as source:
        keys = {"llama.attention.head_count": 4, "llama.attention.head_count_kv": [1, 2]}
        rebuild(tmp_path / "b.gguf", source, every(source), metadata=keys)
    with open_weights(tmp_path / "b.gguf") as found:
        assert {key: found.value(key) for key in keys} == keys


def test_the_format_of_changed_floats(tmp_path: Path) -> None:
    for kind, expected in (("F32", "f32"), ("F16", "f16"), ("BF16", "bf16")):
        file = tiny(kind=kind)
        with open_weights(file.write(tmp_path / f"{kind}.gguf")) as source:
            name = "blk.0.attn_q.weight"
            assert float_format(source, name).name == expected
            values = source.rows(name) * 0.5
            assert New.of(values, source.tensor(name)).format.name == expected
            assert New.of(values).format.name == "f16"
            assert New.of(values * 1e6, source.tensor(name)).format.name == ("bf16" if kind == "BF16" else "f32")
            assert New.of(values[0]).format.name == "f32" and New.of(values[0]).shape == (64,)
            with pytest.raises(RecipeError, match=r"not finite|not a number|nan"):
                New.of(values * np.float32("nan"))
    file.tensors["blk.0.attn_q.weight"] = Array.of(np.full((64, 64), 9000, np.float32), "F16")
    with open_weights(file.write(tmp_path / "large.gguf")) as source:
        assert float_format(source, "blk.0.attn_q.weight").name == "f32"


@pytest.mark.parametrize(
    ("wanted", "keys", "says"),
    [
        ({}, {}, "without tensors"),
        ({"a": "blk.9.attn_q.weight"}, {}, "no tensor blk.9.attn_q.weight"),
        ({"a": New(number_format("q4_0"), (2, 48), b"")}, {}, "rows of 48"),
        ({"a": New(number_format("f32"), (2, 0), b"")}, {}, "1 to 4 dimensions"),
        ({"a" * 64: New(number_format("f32"), (2,), bytes(8))}, {}, "no name of a tensor"),
        ({"a": New(number_format("f32"), (2,), bytes(7))}, {}, "are 7 bytes"),
        ({"a": New(number_format("f32"), (2,), bytes(9))}, {}, "are 9 bytes or more"),
        (None, {"general.alignment": 64}, "cannot be set"),
        (None, {"split.count": 2}, "cannot be set"),
        (None, {"llama.block_count": [1, "2"]}, "only one of these"),
        (None, {"x.y": 1 << 70}, "does not fit"),
    ],
)
def test_what_cannot_be_written(
    source: Weights, tmp_path: Path, wanted: dict[str, Any] | None, keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        rebuild(tmp_path / "new.gguf", source, every(source) if wanted is None else wanted, metadata=keys)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_what_fails_on_the_way_leaves_nothing(source: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Iterator[bytes]:
        yield bytes(4)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rebuild(tmp_path / "new.gguf", source, {"a": New(number_format("f32"), (2,), fails)})

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreFullError):
            rebuild(tmp_path / "new.gguf", source, every(source))
    with pytest.raises(RecipeError, match="the file that is read"):
        rebuild(tmp_path / "tiny.gguf", source, every(source))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_what_is_not_read_back_is_an_error(source: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses a bit: the file does not get its name."""
    real = os.write

    def wrong(fd: int, data: Any) -> int:
        if len(data) == 64 * 64 * 4:
            data = bytearray(data)
            data[77] ^= 1
        return real(fd, data)

    monkeypatch.setattr(os, "write", wrong)
    with pytest.raises(RecipeError, match=r"does not hold what was made: blk\.0\.attn_q\.weight"):
        rebuild(tmp_path / "new.gguf", source, every(source))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
