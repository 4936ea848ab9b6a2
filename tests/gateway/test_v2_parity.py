"""The same answer and the same usage, whichever door a model is asked through, streamed and not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pressroom.gateway.grpc import inference_pb2 as messages
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Echoes, post, route_to
from .v2_doors import ask, events, generate

grpc = pytest.importorskip("grpc")
CASES: list[tuple[str, dict[str, Any]]] = [
    ("hello big world", {}),
    ("grüße 世界 and more words than are let through", {"max_tokens": 4, "temperature": 0.7, "seed": 11}),
    ("one", {"stop": ["two"], "top_p": 0.5, "presence_penalty": 0.25, "frequency_penalty": -1.5}),
]


def openai(client: Client, text: str, parameters: dict[str, Any], *, chats: bool, stream: bool) -> tuple[Any, ...]:
    said = {"messages": [{"role": "user", "content": text}]} if chats else {"prompt": text}
    fields = {"model": "m", **said, **parameters, "stream": stream}
    path = "/v1/chat/completions" if chats else "/v1/completions"
    if not stream:
        _, found = ask(client, path, json.dumps(fields).encode())
        choice = found["choices"][0]
        return choice["message"]["content"] if chats else choice["text"], choice["finish_reason"], found["usage"]
    fields["stream_options"] = {"include_usage": True}
    client.send(post(json.dumps(fields).encode(), path))
    _, _, data = client.response()
    frames = [json.loads(each[6:]) for each in data.split(b"\n\n") if each and each != b"data: [DONE]"]
    choices = [choice for frame in frames for choice in frame["choices"]]
    pieces = [(choice["delta"].get("content") if chats else choice["text"]) or "" for choice in choices]
    reason = next(choice["finish_reason"] for choice in choices if choice["finish_reason"])
    return "".join(pieces), reason, frames[-1]["usage"]


def rest(client: Client, text: str, parameters: dict[str, Any], *, chats: bool, stream: bool) -> tuple[Any, ...]:
    body = generate(text, **parameters, chat=chats)
    if not stream:
        _, found = ask(client, "/v2/models/m/generate", body)
        return found["text_output"], found["finish_reason"], found["usage"]
    found = events(client, "/v2/models/m/generate_stream", body)
    return "".join(each["text_output"] for each in found), found[-1]["finish_reason"], found[-1]["usage"]


def over_grpc(channel: Any, text: str, parameters: dict[str, Any], *, chats: bool, stream: bool) -> tuple[Any, ...]:
    request = messages.ModelInferRequest(model_name="m")
    given = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    given.contents.bytes_contents.append(text.encode())
    request.parameters["chat"].bool_param = chats
    for name, value in parameters.items():
        if name == "stop":
            request.inputs.add(name="stop", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"two")
        elif type(value) is int:
            request.parameters[name].int64_param = value
        else:
            request.parameters[name].double_param = value
    service = f"/{messages.DESCRIPTOR.package}.GRPCInferenceService/"
    if stream:
        call = channel.stream_stream(service + "ModelStreamInfer")
        read = messages.ModelStreamInferResponse.FromString
        found = [read(data).infer_response for data in call(iter([request.SerializeToString()]), timeout=30)]
    else:
        call = channel.unary_unary(service + "ModelInfer")
        found = [messages.ModelInferResponse.FromString(call(request.SerializeToString(), timeout=30))]
    pieces = "".join(response.outputs[0].contents.bytes_contents[0].decode() for response in found)
    last = {output.name: output.contents for output in found[-1].outputs}
    prompt, said, cached = (
        last[name].int64_contents[0] for name in ("prompt_tokens", "completion_tokens", "cached_tokens")
    )
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return pieces, last["finish_reason"].bytes_contents[0].decode(), usage


@pytest.mark.parametrize("chats", [False, True])
@pytest.mark.parametrize(("text", "parameters"), CASES)
def test_every_door_says_the_same(echo: Echoes, text: str, parameters: dict[str, Any], chats: bool) -> None:
    engine = echo()
    with (
        GatewayThread(route_to(engine.port), grpc=True) as gateway,
        Client(gateway.port) as client,
        grpc.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel,
    ):
        ways: list[tuple[Callable[..., Any], Any]] = [(openai, client), (rest, client), (over_grpc, channel)]
        found = [
            way(through, text, parameters, chats=chats, stream=stream)
            for way, through in ways
            for stream in (False, True)
        ]
        words = len(text.split())
        assert found[0][2]["prompt_tokens"] == words
        assert found[0][2]["completion_tokens"] == min(words, parameters.get("max_tokens", words))
        assert all(each == found[0] for each in found), found
        assert engine.requests == 6


@pytest.mark.parametrize("chats", [False, True])
def test_every_door_asks_the_engine_for_the_same(script: Any, chats: bool) -> None:
    """The fields that arrive at the engine, number for number."""
    engine = script(lambda connected: None)  # it never answers: only what it was asked counts
    parameters = {"max_tokens": 7, "temperature": 0.7, "top_p": 0.95, "seed": 2**40, "top_k": 5}
    with (
        GatewayThread(route_to(engine.port), grpc=True) as gateway,
        Client(gateway.port) as client,
        grpc.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel,
    ):
        said = {"messages": [{"role": "user", "content": "x"}]} if chats else {"prompt": "x"}
        path = "/v1/chat/completions" if chats else "/v1/completions"
        ask(client, path, json.dumps({"model": "m", **said, **parameters}).encode())
        ask(client, "/v2/models/m/generate", generate("x", **parameters, chat=chats))
        with pytest.raises(grpc.RpcError):
            over_grpc(channel, "x", parameters, chats=chats, stream=False)
    asked = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in engine.requests]
    expected = {"model": "m", **said, **parameters}
    assert all(fields == expected for fields in asked), asked
    assert {request.split()[1].decode() for request in engine.requests} == {path}
    assert len(asked) % 3 == 0  # as often as each is tried
