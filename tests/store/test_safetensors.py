"""safetensors headers: what an honest one says, the library's own opinion, and each lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pressroom.kernel import MalformedWeightsError
from pressroom.store import TensorInfo, WeightsInfo, inspect
from pressroom.store.formats.safetensors import BITS, MOST_HEADER

from .weights_files import default_header, safetensors


def read(tmp_path: Path, content: bytes) -> WeightsInfo:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return inspect(path)


def test_an_honest_file(tmp_path: Path) -> None:
    content = safetensors()
    start = len(content) - 40
    assert read(tmp_path, content) == WeightsInfo(
        format="safetensors",
        parameters=14,
        quantization="BF16",
        metadata={"format": "pt", "tensor_types": "BF16 57.1%, F32 42.9%"},
        tensors=(
            TensorInfo(name="a", dtype="F32", shape=(2, 3), offset=start, nbytes=24),
            TensorInfo(name="b", dtype="BF16", shape=(8,), offset=start + 24, nbytes=16),
        ),
    )


def test_what_the_library_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "layer.0.weight": rng.standard_normal((7, 5)).astype(np.float32),
        "layer.1.weight": rng.standard_normal((3,)).astype(np.float16),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 4), dtype=np.int8),
        "mask": np.array([[True, False]]),
        "ünïcode": np.arange(4, dtype=np.uint64),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"made": "by a test"})
    info = inspect(path)
    raw = path.read_bytes()
    assert info.parameters == sum(array.size for array in arrays.values())
    assert info.metadata["made"] == "by a test"
    assert {tensor.name for tensor in info.tensors} == set(arrays)
    for tensor in info.tensors:
        array = arrays[tensor.name]
        assert tensor.shape == array.shape
        assert tensor.elements == array.size
        assert raw[tensor.offset : tensor.offset + tensor.nbytes] == array.tobytes()


def _library_takes(path: Path) -> bool:
    try:
        with safe_open(path, framework="np") as file:
            list(file.keys())
    except SafetensorError:
        return False
    return True


@pytest.mark.parametrize("dtype", [*BITS, "F128", "f32", ""])
def test_sizes_are_those_of_the_library(tmp_path: Path, dtype: str) -> None:
    """Eight elements take as many bytes as one has bits: the library takes exactly the files that are read here."""
    path = tmp_path / "model.safetensors"
    for bits in range(1, 66):
        path.write_bytes(safetensors({"t": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}, bytes(bits)))
        assert _library_takes(path) == (BITS.get(dtype) == bits)
        if BITS.get(dtype) == bits:
            assert inspect(path).tensors[0].dtype == dtype
        else:
            with pytest.raises(MalformedWeightsError):
                inspect(path)


def test_more_types_than_the_library_has_are_not_claimed(tmp_path: Path) -> None:
    """The library lists what it knows when it meets what it does not."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({"t": {"dtype": "X", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)))
    with pytest.raises(SafetensorError) as caught, safe_open(path, framework="np"):
        pass
    listed = str(caught.value)
    assert "expected one of" in listed
    assert {name for name in BITS if f"`{name}`" in listed} == set(BITS)
    assert listed.count("`") // 2 - 1 == len(BITS)  # one pair around the X


def _tensor(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


def _pair(first: list[int], second: list[int]) -> dict[str, Any]:
    return {
        "a": {"dtype": "U8", "shape": [first[1] - first[0]], "data_offsets": first},
        "b": {"dtype": "U8", "shape": [second[1] - second[0]], "data_offsets": second},
    }


LIES: dict[str, tuple[bytes, str]] = {
    "header past the file": (safetensors(length=10_000), "file ends"),
    "header over the bound": (safetensors(length=MOST_HEADER + 1), "at most 100000000"),
    "header far over the bound": (safetensors(length=1 << 39), "at most 100000000"),
    "header too short": (safetensors(length=20), "not JSON"),
    "header of 1 byte": (safetensors(length=1), "not JSON"),
    "header not JSON": (safetensors(b'{"a": nonsense}'), "not JSON"),
    "header not UTF-8": (safetensors(b'{"\xff": 1}'), "not JSON"),
    "header of braces": (safetensors(b'{"a":' * 100_000 + b"}" * 100_000), "not JSON"),
    "header of lists": (safetensors(b'{"a":' + b"[" * 1_000_000), "not JSON"),
    "header of very many values": (safetensors(b'{"a":[' + b"0," * 4_000_001 + b"0]}"), "more than 4000000 values"),
    "number of many digits": (safetensors(b'{"a":' + b"9" * 10_000 + b"}"), "not JSON"),
    "no tensors": (safetensors({"__metadata__": {}}, b""), "no tensors"),
    "tensor twice": (
        safetensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"."),
        "'a' twice",
    ),
    "offsets twice": (
        safetensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1]}}', b"."),
        "'data_offsets' twice",
    ),
    "metadata not text": (safetensors({**default_header(), "__metadata__": {"n": 1}}), "must hold text"),
    "metadata a list": (safetensors({**default_header(), "__metadata__": []}), "must hold text"),
    "tensor not an object": (safetensors({"a": 3}), "must be dtype, shape and data_offsets"),
    "tensor without a type": (safetensors({"a": {"shape": [], "data_offsets": [0, 4]}}), "must be dtype"),
    "tensor with more": (safetensors(_tensor(more=1), bytes(24)), "must be dtype"),
    "unknown type": (safetensors(_tensor(dtype="F31"), bytes(24)), "'F31'"),
    "type a number": (safetensors(_tensor(dtype=32), bytes(24)), "type 32"),
    "type a list": (safetensors(_tensor(dtype=["F32"]), bytes(24)), "does not know"),
    "shape not a list": (safetensors(_tensor(shape=6), bytes(24)), "shape"),
    "shape with a fraction": (safetensors(_tensor(shape=[2, 3.0]), bytes(24)), "shape"),
    "shape with truth": (safetensors(_tensor(shape=[True, 6]), bytes(24)), "shape"),
    "shape below 0": (safetensors(_tensor(shape=[-2, -3]), bytes(24)), "shape"),
    "shape that overflows": (safetensors(_tensor(shape=[1 << 40, 1 << 40]), bytes(24)), "impossible shape"),
    "shape that overflows before a 0": (safetensors(_tensor(shape=[1 << 63, 0]), bytes(24)), "impossible shape"),
    "long shape": (safetensors(_tensor(shape=[1 << 32] * 100_000), bytes(24)), "impossible shape"),
    "one offset": (safetensors(_tensor(data_offsets=[24]), bytes(24)), "data_offsets"),
    "offsets below 0": (safetensors(_tensor(data_offsets=[-24, 0]), bytes(24)), "data_offsets"),
    "offsets that fall": (safetensors(_tensor(data_offsets=[24, 0]), bytes(24)), "rising"),
    "offsets as text": (safetensors(_tensor(data_offsets="01"), bytes(24)), "data_offsets"),
    "fewer bytes than the shape": (safetensors(_tensor(data_offsets=[0, 20]), bytes(20)), "takes 24 bytes"),
    "more bytes than the shape": (safetensors(_tensor(data_offsets=[0, 28]), bytes(28)), "takes 24 bytes"),
    "half a byte": (
        safetensors({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, bytes(2)),
        "whole byte",
    ),
    "overlap": (safetensors(_pair([0, 20], [10, 30]), bytes(30)), "overlaps"),
    "the same place": (safetensors(_pair([0, 20], [0, 20]), bytes(20)), "overlaps"),
    "hole": (safetensors(_pair([0, 20], [21, 30]), bytes(30)), "hole"),
    "hole at the start": (safetensors(_pair([1, 20], [20, 30]), bytes(30)), "hole"),
    "file cut short": (safetensors()[:-1], "cut short"),
    "bytes after the last tensor": (safetensors() + b".", "belong to no tensor"),
    "name not Unicode": (
        safetensors(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"."),
        "not Unicode",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(tmp_path: Path, lie: str) -> None:
    content, said = LIES[lie]
    with pytest.raises(MalformedWeightsError, match=said) as caught:
        read(tmp_path, content)
    assert "'model.safetensors'" in str(caught.value)
    assert caught.value.hint


def test_every_shorter_file_is_refused(tmp_path: Path) -> None:
    whole = safetensors()
    for length in range(len(whole)):
        with pytest.raises(MalformedWeightsError):
            read(tmp_path, whole[:length])


def test_text_of_the_header_is_tamed(tmp_path: Path) -> None:
    header = {**default_header(), "__metadata__": {"a\x1b[2J": "\x07b" * 3000, "c": "\ud800"}}
    metadata = read(tmp_path, safetensors(json.dumps(header).encode())).metadata
    assert metadata["a[2J"] == "b" * 1999 + "…"
    assert "c" not in metadata


def test_a_padded_header(tmp_path: Path) -> None:
    raw = json.dumps(default_header()).encode() + b"   "
    assert read(tmp_path, struct.pack("<Q", len(raw)) + raw + bytes(40)).parameters == 14
