"""Several answers to one request from engines that give one at a time."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Echoes, chat, post, route_to, until

MESSAGES: Any = [{"role": "user", "content": "one two three"}]


def client_of(gateway: GatewayThread) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


def test_n_answers(echo: Echoes) -> None:
    engine = echo()
    with GatewayThread(route_to(engine.port)) as gateway, client_of(gateway) as client:
        answer = client.chat.completions.create(model="m", messages=MESSAGES, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert {choice.message.content for choice in answer.choices} == {"one two three"}
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 9, 12)
    assert engine.requests == 3


def test_several_prompts_times_n(echo: Echoes) -> None:
    with GatewayThread(route_to(echo().port)) as gateway, client_of(gateway) as client:
        answer = client.completions.create(model="m", prompt=["a b", "c"], n=2)
        assert [(choice.index, choice.text) for choice in answer.choices] == [
            (0, "a b"),
            (1, "a b"),
            (2, "c"),
            (3, "c"),
        ]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)
        assert client.completions.create(model="m", prompt=["a b"]).choices[0].text == "a b"


@pytest.mark.parametrize("usage", [True, False])
def test_several_streams_as_one(echo: Echoes, usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}
    with GatewayThread(route_to(echo(delay_s=0.001).port)) as gateway, client_of(gateway) as client:
        chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, n=2, stream=True, **options))
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "one two three", 1: "one two three"}
    assert len({chunk.id for chunk in chunks}) == 1
    finished = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(finished) == [0, 1]
    assert [chunk.usage for chunk in chunks if chunk.usage is not None] == ([chunks[-1].usage] if usage else [])
    if usage:
        assert chunks[-1].usage is not None and chunks[-1].choices == []
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 6)


def test_each_answer_has_a_seed_of_its_own(script: Any) -> None:
    body = b'{"choices":[{"index":0,"text":"x"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    engine = script(lambda connected: connected.sendall(answer))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        sent = json.dumps({"model": "m", "prompt": "p", "n": 3, "seed": 7, "top_k": 2}).encode()
        assert client.ask(post(sent, "/v1/completions"))[0] == 200
    asked = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in engine.requests]
    assert sorted(each["seed"] for each in asked) == [7, 8, 9]
    assert all("n" not in each and each["top_k"] == 2 for each in asked)


def test_one_that_fails_fails_all(script: Any) -> None:
    def refuse(connected: Any) -> None:
        error = b'{"error":{"code":400,"message":"no","type":"invalid_request_error"}}'
        connected.sendall(
            b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(error), error)
        )

    engine = script(refuse)
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        status, _, body = client.ask(post(chat(n=4)))
        assert status == 400 and body["error"]["message"] == "no"
        until(lambda: gateway.routes.in_flight(route_to(engine.port)) == 0)
        assert client.ask(post(b"{"))[0] == 400  # the connection lives on, and was answered once


def test_a_client_that_leaves_ends_all_of_them(echo: Echoes) -> None:
    engine = echo(tokens=100_000, delay_s=0.002)
    with GatewayThread(route_to(engine.port)) as gateway:
        with Client(gateway.port) as client:
            client.send(post(chat(n=3, stream=True)))
            client.until(b'"index":2')
        until(lambda: engine.cancelled == 3)
        assert gateway.routes.in_flight(route_to(engine.port)) == 0


def test_an_engine_that_can_is_asked_once(echo: Echoes) -> None:
    from pressroom.engines.base import Capabilities

    engine = echo()
    route = route_to(engine.port, capabilities=Capabilities(several=True))
    with GatewayThread(route) as gateway, Client(gateway.port) as client:
        assert client.ask(post(chat(n=3)))[0] == 200
    assert engine.requests == 1


def test_streams_that_come_in_one_piece_are_streams_all_the_same(script: Any) -> None:
    message = {"role": "assistant", "content": "whole"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    answer = {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
    body = json.dumps(answer).encode()
    reply = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    engine = script(lambda connected: connected.sendall(reply))
    with GatewayThread(route_to(engine.port)) as gateway, client_of(gateway) as client:
        chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, n=2, stream=True))
    texts = {choice.index: choice.delta.content for chunk in chunks for choice in chunk.choices}
    assert texts == {0: "whole", 1: "whole"}


@pytest.mark.parametrize("body", [b"[]", b'{"choices": 7}', b'{"choices": [], "usage": [1]}', b"nothing"])
def test_an_answer_in_another_shape_is_an_error_and_no_silence(script: Any, body: bytes) -> None:
    reply = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    engine = script(lambda connected: connected.sendall(reply))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        status, _, found = client.ask(post(chat(n=2)))
        assert status == 502 and found["error"]["code"] == "engine_error"
