"""Ten thousand wrong requests over each door: every answer has the shape its protocol defines, and nothing grows."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from pressroom.gateway.grpc import inference_pb2 as messages

from .clients import (
    CHAT,
    Answer,
    ask,
    chat,
    connected,
    generate,
    infer,
    is_openai_error,
    is_v2_error,
    post,
    stream_infer,
    tensors,
)
from .house import MB, SERVICE, House
from .malformed import bodies, garbled

_MANY = 10_000
_AT_ONCE = 40  # sent in one go over one connection
# What a Python process takes for itself without keeping any of what it was sent.
_MAY_GROW = 24 * MB

_CHATS = [
    chat("echo", stream=True, stream_options={"include_usage": True}),
    chat("echo", max_tokens=3, temperature=0.5, top_p=0.9, stop=["a"], n=2, seed=1, logit_bias={"5": 1}),
    chat("echo", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}], tool_choice="auto"),
    json.dumps(
        {"model": "echo", "messages": [{"role": "user", "content": [{"type": "text", "text": "a b"}]}]}
    ).encode(),
    chat("echo", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}),
]
_COMPLETIONS = [
    json.dumps({"model": "echo", "prompt": "a b c", "max_tokens": 2, "echo": False}).encode(),
    json.dumps({"model": "echo", "prompt": ["a", "b"], "stream": True}).encode(),
]
_EMBEDDINGS = [json.dumps({"model": "echo", "input": ["a", "b"], "encoding_format": "float"}).encode()]


def _infer(**more: Any) -> bytes:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [2], "data": ["a b", "c"]}
    return json.dumps({"id": "7", "inputs": [tensor], "outputs": [{"name": "text_output"}], **more}).encode()


_V2 = [_infer(), _infer(parameters={"temperature": 0.5, "stop": ["a"]}), generate("a b", max_tokens=2, stop=["c"])]

OPENAI = [(CHAT, _CHATS), ("/v1/completions", _COMPLETIONS), ("/v1/embeddings", _EMBEDDINGS)]
REST = [(f"/v2/models/echo/{verb}", _V2) for verb in ("infer", "generate", "generate_stream")]


@pytest.fixture
def watched(sturdy: House) -> Iterator[House]:
    """The server, which must answer afterwards as before, by the same processes, with nothing left running."""
    asyncio.run(ask(sturdy.port, CHAT, chat("echo")))
    engine, before, open_before = sturdy.engine("echo"), sturdy.rss(), sturdy.process.num_fds()
    yield sturdy
    found = asyncio.run(ask(sturdy.port, CHAT, chat("echo", "still here")))
    assert found.json()["choices"][0]["message"]["content"] == "still here"
    assert sturdy.calm("echo") and sturdy.engine("echo") == engine
    assert sturdy.rss() - before < _MAY_GROW, (before, sturdy.rss())
    assert sturdy.process.num_fds() < open_before + 50
    assert "Traceback" not in sturdy.log()


@pytest.mark.parametrize(
    ("paths", "is_error", "statuses"),
    [(OPENAI, is_openai_error, {200, 400, 404}), (REST, is_v2_error, {200, 400})],
    ids=["openai", "v2"],
)
def test_malformed_bodies(
    watched: House, paths: list[tuple[str, list[bytes]]], is_error: Callable[[Any], bool], statuses: set[int]
) -> None:
    chance = random.Random(11)
    requests = [
        (path, body)
        for number, (path, good) in enumerate(paths)
        for body in bodies(good, _MANY // len(paths) + 1, seed=number)
    ]
    chance.shuffle(requests)

    async def scene() -> Counter[int]:
        seen: Counter[int] = Counter()
        async with connected(watched.port) as connection:
            for at in range(0, len(requests), _AT_ONCE):
                some = requests[at : at + _AT_ONCE]
                sending = asyncio.ensure_future(connection.send(b"".join(post(path, body) for path, body in some)))
                for path, body in some:
                    found = await connection.answer()
                    check(found, path, body)
                    seen[found.status] += 1
                await sending
        return seen

    def check(found: Answer, path: str, body: bytes) -> None:
        assert found.status in statuses and not found.cut, (path, body, found)
        assert found.headers["x-request-id"].startswith("req_")
        if found.status != 200:
            assert found.headers["content-type"] == "application/json"
            assert is_error(found.json()) and len(found.body) < 4_000, (path, body, found)

    seen = asyncio.run(scene())
    assert seen.total() >= _MANY and seen[400] > _MANY // 2


def test_malformed_grpc(watched: House) -> None:
    """As unary calls a thousand, which cost the most, and the others in streams of calls."""
    chance = random.Random(3)
    good = [
        tensors("echo", "a b", "c", id="7").SerializeToString(),
        _raw(b"\x03\x00\x00\x00a b").SerializeToString(),
        _parametrised().SerializeToString(),
    ]
    allowed = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    with watched.channel() as channel:
        call = infer(channel, SERVICE)
        futures = [call.future(_wrong(chance, good), timeout=60) for _ in range(1_000)]
        codes = Counter(future.code() for future in futures)
        assert codes.keys() - {grpc.StatusCode.OK} <= allowed, codes
        assert all(future.details() for future in futures if future.code() is not grpc.StatusCode.OK)
        assert codes[grpc.StatusCode.INVALID_ARGUMENT] > 300

        sent = [_wrong(chance, good) for _ in range(_MANY - 1_000)]
        raw = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer", response_deserializer=messages.ModelStreamInferResponse.FromString
        )
        ended = refused = 0
        for response in raw(iter(sent), timeout=120):
            final = response.infer_response.parameters["triton_final_response"].bool_param
            refused += bool(response.error_message)
            ended += final
            assert final or not response.error_message
        assert ended == len(sent) and refused > len(sent) // 3
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary(f"/{SERVICE}/NoSuchMethod")(b"", timeout=30)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


def _wrong(chance: random.Random, good: list[bytes]) -> bytes:
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(60))
    return garbled(chance.choice(good), chance)


def _raw(data: bytes) -> Any:
    request = messages.ModelInferRequest(model_name="echo", raw_input_contents=[data])
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    return request


def _parametrised() -> Any:
    request = tensors("echo", "a b")
    request.parameters["temperature"].double_param = 0.5
    request.parameters["max_tokens"].int64_param = 2
    request.outputs.add(name="text_output")
    return request


# Tensors.


@pytest.mark.parametrize(
    ("shape", "data"),
    [([3], ["a", "b"]), ([1, 1], []), ([-1], ["a"]), ([2**62, 4], ["a"]), ([0], []), ([1] * 40, ["a"]), ([1], "a")],
)
def test_a_tensor_whose_shape_and_data_differ(sturdy: House, shape: list[int], data: Any) -> None:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": shape, "data": data}
    found = asyncio.run(ask(sturdy.port, "/v2/models/echo/infer", json.dumps({"inputs": [tensor]}).encode()))
    if found.status == 200:  # one value of any number of dimensions is one text
        assert shape == [1] * 40 and found.json()["outputs"][0]["data"] == ["a"]
    else:
        assert found.status == 400 and is_v2_error(found.json())
    if not isinstance(data, list):
        return
    request = messages.ModelInferRequest(model_name="echo")
    made = request.inputs.add(name="text_input", datatype="BYTES", shape=shape)
    made.contents.bytes_contents.extend(each.encode() for each in data)
    with sturdy.channel() as channel:
        call = infer(channel, SERVICE).future(request.SerializeToString(), timeout=60)
        assert (call.code() is grpc.StatusCode.OK) is (found.status == 200) and (call.details() or found.status == 200)


@pytest.mark.parametrize(
    ("size", "data"),
    [
        (8, b"\x09\x00\x00\x00abcd"),  # says nine, has four
        (4, b"\xff\xff\xff\xff"),
        (7, b"\x01\x00\x00\x00axx"),  # more than it says
        (3, b"\x01\x00\x00"),
        (100, b"\x01\x00\x00\x00a"),  # the sizes differ
        (-1, b"\x01\x00\x00\x00a"),
        (10**20, b"\x01\x00\x00\x00a"),
    ],
)
def test_binary_data_that_is_not_what_it_says(sturdy: House, size: int, data: bytes) -> None:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [tensor]}).encode()
    line = f"Inference-Header-Content-Length: {len(header)}"
    found = asyncio.run(ask(sturdy.port, "/v2/models/echo/infer", header + data, line))
    assert found.status == 400 and is_v2_error(found.json())
    with sturdy.channel() as channel, pytest.raises(grpc.RpcError) as refused:
        if size == len(data):
            infer(channel, SERVICE)(_raw(data).SerializeToString(), timeout=60)
        else:  # over gRPC the bytes have no second size: raw data beside typed is what contradicts itself
            both = tensors("echo", "a")
            both.raw_input_contents.append(data)
            infer(channel, SERVICE)(both.SerializeToString(), timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT and refused.value.details()


def test_grpc_messages_past_the_limit(watched: House) -> None:
    """The limit is 32 MB; what is over it is refused, and not kept."""
    huge = tensors("echo", "x" * (33 << 20)).SerializeToString()
    long = tensors("echo", "y").SerializeToString()
    with watched.channel(max_send_message_length=-1) as channel:
        for _ in range(4):
            with pytest.raises(grpc.RpcError) as found:
                infer(channel, SERVICE)(huge, timeout=60)
            assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as found:
            list(stream_infer(channel, SERVICE, [tensors("echo", "x" * (33 << 20))]))
        assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as found:
            infer(channel, SERVICE)(long, metadata=[("x", "y" * 60_000)], timeout=60)
        assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert infer(channel, SERVICE)(long, timeout=60).outputs[0].contents.bytes_contents[0] == b"y"
