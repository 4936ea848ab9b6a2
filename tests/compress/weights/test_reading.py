"""Reading: what a file's tensors are and hold, and what is said of files that lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from pressroom.compress.numbers import number_format
from pressroom.compress.weights import Role, Weights, open_weights
from pressroom.kernel import MalformedWeightsError, NotFoundError, RecipeError, WeightsError

from .gguf_files import ARRAY, BOOL, F32, F64, STRING, U8, U32, U64, VOCABULARY, Array, File, tiny


def test_every_tensor_has_its_role(source: Weights) -> None:
    roles = {role: [tensor.name for tensor in source.of_role(role)] for role in Role}
    assert len(roles[Role.LINEAR]) == 14 and roles[Role.LINEAR] == [tensor.name for tensor in source.linears]
    assert roles[Role.EMBEDDING] == ["token_embd.weight"] and roles[Role.HEAD] == ["output.weight"]
    assert len(roles[Role.NORM]) == 5 and not roles[Role.OTHER] and not roles[Role.BIAS]
    down = source.tensor("blk.1.ffn_down.weight")
    assert (down.layer, down.part, down.shape, down.rows, down.columns) == (1, "ffn_down", (64, 128), 64, 128)
    assert (source.tensor("output_norm.weight").layer, source.tensor("output_norm.weight").part) == (
        None,
        "output_norm",
    )
    assert source.architecture == "llama" and source.alignment == 32
    assert not source.tied and source.head is source.tensors["output.weight"]


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("blk.0.attn_q.weight", (64, 64), Role.LINEAR),
        ("blk.31.attn_qkv.weight", (192, 64), Role.LINEAR),
        ("blk.0.ffn_up_shexp.weight", (64, 64), Role.LINEAR),
        ("blk.0.ffn_down_exps.weight", (4, 64, 64), Role.EXPERTS),
        ("blk.0.ffn_gate_inp.weight", (4, 64), Role.OTHER),
        ("blk.0.attn_q.bias", (64,), Role.BIAS),
        ("blk.0.attn_q_norm.weight", (16,), Role.NORM),
        ("blk.0.post_attention_norm.weight", (64,), Role.NORM),
        ("blk.0.ssm_conv1d.weight", (64, 4), Role.OTHER),
        ("blk.00.attn_q.weight", (64, 64), Role.OTHER),
        ("attn_q.weight", (64, 64), Role.OTHER),
        ("rope_freqs.weight", (8,), Role.OTHER),
        ("position_embd.weight", (512, 64), Role.OTHER),
    ],
)
def test_roles_of_other_architectures(tmp_path: Path, name: str, shape: tuple[int, ...], role: Role) -> None:
    file = File({}, {name: Array.of(np.zeros(shape, np.float32))})
    with open_weights(file.write(tmp_path / "m.gguf")) as source:
        assert source.tensor(name).role is role
        assert not source.tied and source.embedding is source.head is None and source.architecture == ""


def test_a_tied_embedding(tmp_path: Path) -> None:
    with open_weights(tiny(tied=True).write(tmp_path / "m.gguf")) as source:
        assert source.tied and source.head is source.embedding is source.tensors["token_embd.weight"]
        with pytest.raises(RecipeError, match=r"no tensor output\.weight") as caught:
            source.tensor("output.weight")
    assert "tied" in caught.value.hint and "token_embd.weight" in caught.value.hint


def test_raw_bytes_are_not_copied(model: Path) -> None:
    expected = tiny().tensors
    source = open_weights(model)
    views = {name: source.raw(name) for name in source.tensors}
    source.close()
    for name, view in views.items():
        assert view.obj is source.data and view.readonly
        assert bytes(view) == expected[name].data


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_rows_are_the_numbers(tmp_path: Path, kind: str) -> None:
    file = tiny(kind=kind)
    dtype = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[kind]
    with open_weights(file.write(tmp_path / "m.gguf")) as source:
        for name in ("blk.0.attn_k.weight", "token_embd.weight"):
            array = file.tensors[name]
            numbers = np.frombuffer(array.data, dtype).reshape(array.shape)
            if kind == "BF16":
                numbers = (numbers.astype("<u4") << 16).view("<f4")
            rows = source.rows(name)
            assert rows.dtype == np.float32
            np.testing.assert_array_equal(rows, numbers.astype(np.float32))
            np.testing.assert_array_equal(source.rows(name, 5, 9), rows[5:9])
            np.testing.assert_array_equal(source.rows(name, 30), rows[30:])
        assert source.rows("output_norm.weight").shape == (1, 64)


def test_rows_of_packed_blocks_and_of_three_dimensions(tmp_path: Path) -> None:
    format = number_format("q8_0")
    numbers = np.random.default_rng(3).normal(size=(3, 2, 64)).astype(np.float32)
    packed = format.encode(numbers.reshape(6, 64))
    array = Array((3, 2, 64), 8, packed.tobytes())
    with open_weights(File({}, {"blk.0.ffn_up_exps.weight": array}).write(tmp_path / "m.gguf")) as source:
        assert source.tensor("blk.0.ffn_up_exps.weight").type == "Q8_0"
        np.testing.assert_array_equal(source.rows("blk.0.ffn_up_exps.weight"), format.decode(packed))
        np.testing.assert_array_equal(source.rows("blk.0.ffn_up_exps.weight", 4), format.decode(packed[4:]))


def test_a_type_that_cannot_be_read(tmp_path: Path) -> None:
    file = File({}, {"blk.0.attn_q.weight": Array.of(np.ones((4, 32)), "I32")})
    with open_weights(file.write(tmp_path / "m.gguf")) as source:
        assert len(source.raw("blk.0.attn_q.weight")) == 512
        with pytest.raises(RecipeError, match=r"blk\.0\.attn_q\.weight is I32") as caught:
            source.rows("blk.0.attn_q.weight")
    assert "f16" in caught.value.hint and "q4_0" in caught.value.hint


def test_a_name_that_is_not_there(source: Weights) -> None:
    for asked in (source.raw, source.rows, source.tensor):
        with pytest.raises(RecipeError, match=r"tiny\.gguf has no tensor blk\.0\.attn_w\.weight") as caught:
            asked("blk.0.attn_w.weight")
        assert "Did you mean blk.0.attn_" in caught.value.hint
    with pytest.raises(RecipeError) as caught:
        source.tensor("xyz")
    assert "token_embd.weight, blk.0.attn_norm.weight" in caught.value.hint


def test_values_of_keys_are_whole(tmp_path: Path) -> None:
    file = tiny()
    given = {
        "a.long": (STRING, "x" * 100_000),
        "a.byte": (U8, 200),
        "a.wide": (U64, 1 << 40),
        "a.double": (F64, 0.1),
        "a.flags": (ARRAY, (BOOL, [True, False])),
        "a.empty": (ARRAY, (STRING, [])),
        "a.none": (ARRAY, (F32, [])),
    }
    file.keys |= given
    with open_weights(file.write(tmp_path / "m.gguf")) as source:
        assert list(source.keys) == list(file.keys)
        for key, (kind, expected) in given.items():
            assert source.value(key) == (expected[1] if kind == ARRAY else expected)
        assert source.value("tokenizer.ggml.tokens")[259:262] == ["▁", "a", "b"]
        assert len(source.value("tokenizer.ggml.scores")) == VOCABULARY
        assert source.value("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
        assert source.value("no.such.key") is None and source.value("no.such.key", 7) == 7


def test_other_weights_than_gguf(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(RecipeError, match="is safetensors") as caught:
        open_weights(path)
    assert "convert_hf_to_gguf" in caught.value.hint


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_weights(tmp_path / "absent.gguf")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short(tmp_path: Path, share: float) -> None:
    whole = bytes(tiny())
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MalformedWeightsError, match=r"cut\.gguf"):
        open_weights(path)


def test_lies_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for offset, what in ((0, "overlaps"), (1 << 40, "hole"), (33, "not at a multiple")):
        file = tiny()
        file.offsets["blk.0.attn_q.weight"] = offset
        with pytest.raises(MalformedWeightsError, match=what):
            open_weights(file.write(path))
    file = tiny()
    file.names["blk.1.attn_q.weight"] = "blk.0.attn_q.weight"
    with pytest.raises(MalformedWeightsError, match=r"blk\.0\.attn_q\.weight' occurs twice"):
        open_weights(file.write(path))


def test_files_that_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    file = tiny()
    file.keys["split.count"] = (U32, 3)
    with pytest.raises(WeightsError, match="one of 3 parts") as caught:
        open_weights(file.write(path))
    assert "--merge" in caught.value.hint
    big = bytearray(bytes(tiny()))
    big[4:8] = struct.pack(">I", 3)
    path.write_bytes(big)
    with pytest.raises(WeightsError, match="big-endian"):
        open_weights(path)
    with pytest.raises(WeightsError, match="version 1"):
        file = tiny()
        file.version = 1
        open_weights(file.write(path))


def test_altered_bytes_are_refused_or_read(tmp_path: Path) -> None:
    """Whatever stands in a header, the answer is a file that can be read or one of the project's errors."""
    whole = bytes(tiny(layers=1))
    end = len(whole) - sum(len(array.data) + -len(array.data) % 32 for array in tiny(layers=1).tensors.values())
    generator = np.random.default_rng(11)
    path = tmp_path / "m.gguf"
    refused = 0
    for _ in range(300):
        altered = bytearray(whole)
        for place in generator.integers(0, end, size=2):
            altered[place] = generator.integers(0, 256)
        path.write_bytes(altered)
        try:
            with open_weights(path) as source:
                assert sum(len(source.raw(name)) for name in source.tensors) <= len(whole)
                for key in source.keys:
                    source.value(key)
        except WeightsError:
            refused += 1
    assert 0 < refused < 300
