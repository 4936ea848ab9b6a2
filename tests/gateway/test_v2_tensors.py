"""Tensors of KServe V2: what is read is what was written, and what lies is refused."""

from __future__ import annotations

import math
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.gateway import Route
from pressroom.gateway.protocols import v2
from pressroom.gateway.protocols._v2_answers import Answer, Embeddings, Stream, answer, embeddings
from pressroom.gateway.protocols._v2_models import Face
from pressroom.gateway.protocols._v2_tensors import (
    KINDS,
    MOST_ELEMENTS,
    Invalid,
    Tensor,
    packed_texts,
    shortest,
    text_of_one,
)
from pressroom.gateway.protocols._v2_writing import Binary, rendered, written

FACE = Face(Route(model="m", ref="m:2", engine="echo"))
NUMPY = {
    "BOOL": "?", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2",
    "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_bytes_in_binary_are_what_tritonclient_makes(elements: list[bytes]) -> None:
    from tritonclient.utils import serialize_byte_tensor

    made = serialize_byte_tensor(np.array(elements, dtype=object))
    data = made.item() if made.size else b""
    assert Tensor("x", "BYTES", [len(elements)], data).values() == elements
    if len(elements) == 1:
        try:
            assert text_of_one(data) == elements[0].decode()
        except UnicodeDecodeError:
            assert text_of_one(data) is None


@given(st.sampled_from(sorted(NUMPY)), st.integers(0, 9), st.randoms(use_true_random=False))
def test_numbers_in_binary_are_numpys(datatype: str, count: int, random: Any) -> None:
    raw = bytes(random.randrange(256) for _ in range(count * KINDS[datatype].size))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    found = Tensor("x", datatype, [count], raw).values()
    expected = np.frombuffer(raw, dtype=NUMPY[datatype])
    assert len(found) == count
    for mine, theirs in zip(found, expected, strict=True):
        if math.isnan(float(theirs)):
            assert math.isnan(mine)
        elif datatype in ("FP32", "FP16"):
            assert np.float32(mine) == np.float32(theirs)
        else:
            assert mine == theirs.item()


@given(st.floats(width=32, allow_nan=False))
def test_the_shortest_decimal_is_the_same_single(value: float) -> None:
    short = shortest(value)
    assert struct.pack("<f", short) == struct.pack("<f", value)
    assert len(_digits(short)) <= len(_digits(value))


def _digits(value: float) -> tuple[int, ...]:
    return Decimal(repr(value)).normalize().as_tuple().digits


def test_a_temperature_sent_as_a_single_is_the_one_that_was_meant() -> None:
    for value in (0.7, 0.1, 1e-3, 2.0, 0.95):
        for datatype, code in (("FP32", "<f"), ("FP64", "<d")):
            assert Tensor("x", datatype, [1], struct.pack(code, value)).values() == [value]
    assert Tensor("x", "BF16", [2], b"\x80\x3f\x00\x40").values() == [1.0, 2.0]


@given(st.lists(st.integers(0, 4), max_size=4), st.data())
def test_nested_and_flat_data_are_the_same(shape: list[int], data: st.DataObject) -> None:
    count = math.prod(shape)
    flat = [data.draw(st.text(max_size=3)) for _ in range(min(count, 64))]
    if len(flat) != count:
        return
    nested: Any = np.array(flat, dtype=object).reshape(shape).tolist()
    if shape:
        assert Tensor("x", "BYTES", shape, nested).values() == flat
    assert Tensor("x", "BYTES", shape, flat).values() == flat


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
_names = st.sampled_from(["text_input", "prompt", "max_tokens", "temperature", "stop", "chat", "stream", "x"])
_tensor = st.fixed_dictionaries(
    {
        "name": _names | _json,
        "datatype": st.sampled_from([*KINDS, "INT128"]) | _json,
        "shape": st.lists(st.integers(-1, 3) | st.sampled_from([2**63, True, 1.0, "1"]), max_size=4) | _json,
        "data": st.lists(_json, max_size=4) | _json,
    },
    optional={"parameters": st.dictionaries(st.sampled_from(["binary_data_size", "content_type", "x"]), _json)},
)
_body = st.fixed_dictionaries(
    {"inputs": st.lists(_tensor, max_size=3) | _json},
    optional={
        "outputs": st.lists(st.fixed_dictionaries({"name": _names | _json}, optional={"parameters": _json})) | _json,
        "parameters": st.dictionaries(_names | st.just("sampling_parameters"), _json) | _json,
        "id": _json,
    },
)


@settings(max_examples=400)
@given(_body, st.binary(max_size=32), st.none() | st.integers(0, 400))
def test_any_body_is_a_job_or_is_refused(body: Any, follows: bytes, length: int | None) -> None:
    import orjson

    data = orjson.dumps(body)
    header = None if length is None else str(length if length < 200 else len(data)).encode()
    try:
        found, binary = v2.read_infer(FACE, data + (follows if header is not None else b""), header)
    except Invalid as error:
        assert error.status == 400 and 0 < len(error.message) < 2_000
        return
    assert found.fields and all(type(fields.get("prompt", "")) is str for fields in found.fields)
    answers = [Answer("x", "stop", {})] * len(found.fields)
    head, _ = written(found, answers, binary)
    assert [output["name"] for output in head["outputs"]] == found.names


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    for datatype in KINDS:
        for shape in ([], [1], [3], [2, 2]):
            try:
                found = Tensor("x", datatype, shape, data).values()
            except Invalid:
                continue
            assert len(found) == math.prod(shape)
    for body in (data, b'{"text_input":' + data + b"}"):
        try:
            v2.read_generate(FACE, body)
        except Invalid as error:
            assert error.message


def test_a_small_body_cannot_ask_for_much() -> None:
    for shape in ([MOST_ELEMENTS + 1], [2**62, 4], [1] * 9):
        with pytest.raises(Invalid):
            Tensor("x", "UINT8", shape, b"").values()


_usages = st.fixed_dictionaries({"prompt_tokens": st.integers(0, 2**40), "completion_tokens": st.integers(0, 2**40)})


@given(st.text(max_size=30), st.sampled_from(["stop", "length", ""]), _usages | st.just({}), st.none() | st.text())
def test_the_short_way_to_write_an_answer_gives_what_the_long_one_does(
    text: str, reason: str, usage: dict[str, int], id: str | None
) -> None:
    import orjson

    job = v2.read_generate(FACE, orjson.dumps({"text_input": "x"}))
    assert job is not None
    job.id = id
    for every in (False, True):
        binary = Binary()
        binary.every = every
        found = Answer(text, reason, usage)
        head, follows = rendered(job, [found], binary)
        expected, expected_follows = written(job, [found], binary)
        assert orjson.loads(head) == expected and b"".join(follows) == b"".join(expected_follows)
        if every:
            assert follows[0] == packed_texts([text])


# What engines answer.


@given(st.binary(max_size=60) | _json.map(lambda value: __import__("orjson").dumps(value)))
def test_no_answer_of_an_engine_does_harm(body: bytes) -> None:
    assert answer(body) is not None and embeddings(body, 2) is not None
    stream = Stream()
    for piece in (b"data: " + body + b"\n\n", body):
        assert all(stream.feed(piece))


def test_embeddings_in_both_forms() -> None:
    import base64

    import orjson

    rows = [[1.0, -2.5], [0.25, 3.0]]
    coded = [base64.b64encode(struct.pack("<2f", *row)).decode() for row in rows]
    for given_rows in (rows, coded):
        data = [{"index": 1, "embedding": given_rows[1]}, {"index": 0, "embedding": given_rows[0]}]
        found = embeddings(orjson.dumps({"data": data, "usage": {"prompt_tokens": 4}}), 2)
        assert isinstance(found, Embeddings) and found.values() == [1.0, -2.5, 0.25, 3.0]
        assert (found.width, found.prompt_tokens) == (2, 4)
        assert not isinstance(embeddings(orjson.dumps({"data": data}), 3), Embeddings)
    for broken in ([1.0], [1.0, 2.0, "x"], "AAA", None):
        body = orjson.dumps({"data": [{"index": 0, "embedding": rows[0]}, {"index": 1, "embedding": broken}]})
        assert not isinstance(embeddings(body, 2), Embeddings)


@given(st.integers(1, 30))
def test_a_stream_is_the_same_wherever_it_is_cut(step: int) -> None:
    import orjson

    frames = [{"choices": [{"text": text, "finish_reason": None}]} for text in ("grü", "ße", "", " 世界")]
    frames += [{"choices": [{"text": "", "finish_reason": "stop"}]}, {"choices": [], "usage": {"prompt_tokens": 2}}]
    data = b"".join(b"data: " + orjson.dumps(frame) + b"\n\n" for frame in frames) + b"data: [DONE]\n\n"
    stream = Stream()
    found = [text for at in range(0, len(data), step) for text in stream.feed(data[at : at + step])]
    assert found == ["grü", "ße", " 世界"] and stream.error is None
    assert (stream.finish_reason, stream.usage) == ("stop", {"prompt_tokens": 2})
