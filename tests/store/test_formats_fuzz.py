"""Whatever the bytes are: an answer or a WeightsError, and an answer only about bytes that are in the file."""

from __future__ import annotations

import json
import random
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pressroom.kernel import WeightsError
from pressroom.store import inspect, inspect_folder, sniff

from .weights_files import Gguf, safetensors

WHOLE = {"gguf": bytes(Gguf()), "safetensors": safetensors()}
# Numbers where arithmetic goes wrong: around 0, around a sign, around the ends of 32 and 64 bits.
EDGES = st.sampled_from([0, 1, 2, 7, 8, 31, 32, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 60, 1 << 63, (1 << 64) - 1])

_fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A true file with some places overwritten by edge numbers or noise, cut, or with bytes put in between."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["u32", "u64", "byte", "cut", "insert", "remove"]))
        if kind == "u32":
            content[at : at + 4] = struct.pack("<I", draw(EDGES) & 0xFFFFFFFF)
        elif kind == "u64":
            content[at : at + 8] = struct.pack("<Q", draw(EDGES))
        elif kind == "byte":
            content[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=40))
        else:
            del content[at : at + draw(st.integers(1, 40))]
    return bytes(content)


def check(path: Path, content: bytes) -> bool:
    """Whether the bytes were taken as weights; fails where the answer does not hold."""
    path.write_bytes(content)
    try:
        info = inspect(path)
    except WeightsError as error:
        assert error.hint
        assert len(str(error)) < 2000
        return False
    assert info.parameters == sum(tensor.elements for tensor in info.tensors)
    spans = sorted((tensor.offset, tensor.offset + tensor.nbytes) for tensor in info.tensors)
    assert spans[0][0] > 0
    assert spans[-1][1] <= len(content)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    return True


@_fuzz
@given(content=mutated(WHOLE["gguf"]))
def test_mutations_of_gguf(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "model.gguf", content)


@_fuzz
@given(content=mutated(WHOLE["safetensors"]))
def test_mutations_of_safetensors(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "model.safetensors", content)


@_fuzz
@given(
    content=st.binary(max_size=600),
    start=st.sampled_from([b"", b"GGUF\3\0\0\0", b"PK\3\4", b"\x1f\x8b\x08", b"\x80\4"]),
)
@example(content=b"", start=b"")
def test_noise(tmp_path: Path, content: bytes, start: bytes) -> None:
    path = tmp_path / "model"
    path.write_bytes(start + content)
    assert sniff(path)
    assert not check(path, start + content)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(
    [
        "architectures",
        "model_type",
        "max_position_embeddings",
        "vocab_size",
        "text_config",
        "quantization_config",
        "tokenizer_class",
        "chat_template",
        "weight_map",
    ]
)


@_fuzz
@given(
    config=_values | st.dictionaries(_keys, _values),
    other=_values | st.dictionaries(_keys, _values),
    sharded=st.booleans(),
)
def test_configs(tmp_path: Path, config: object, other: object, sharded: bool) -> None:
    files = {
        "config.json": tmp_path / "c",
        "model.safetensors": tmp_path / "m",
        "tokenizer_config.json": tmp_path / "t",
    }
    if sharded:
        files["model.safetensors.index.json"] = tmp_path / "t"
    (tmp_path / "c").write_text(json.dumps(config))
    (tmp_path / "t").write_text(json.dumps(other))
    (tmp_path / "m").write_bytes(WHOLE["safetensors"])
    try:
        info = inspect_folder(files)
    except WeightsError as error:
        assert error.hint
    else:
        assert info.parameters == 14


@pytest.mark.parametrize("form", WHOLE)
def test_every_single_byte_changed(tmp_path: Path, form: str) -> None:
    """All places, three values each: some changes are harmless (a letter of a name), none is a surprise."""
    whole = WHOLE[form]
    rng = random.Random(form)
    taken = 0
    for at in range(len(whole)):
        for value in {whole[at] ^ 0xFF, whole[at] ^ 1, rng.randrange(256)} - {whole[at]}:
            taken += check(tmp_path / "model", whole[:at] + bytes([value]) + whole[at + 1 :])
    assert 0 < taken < 3 * len(whole)
