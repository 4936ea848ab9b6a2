"""A request's way to an engine and back: as the official client sees it, and when either side misbehaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import psutil
import pytest

from pressroom.engines import EngineSpec, create
from pressroom.kernel import GatewaySettings
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import HEAD, STREAM, Client, Echoes, Script, chat, chunk, post, route_to, until

MakeScript = Callable[..., Script]
MESSAGES: Any = [{"role": "user", "content": "hello big world"}]


def client_of(gateway: GatewayThread) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


def plain(body: bytes = b'{"usage":{"completion_tokens":3,"prompt_tokens":2}}') -> bytes:
    return HEAD % len(body) + body


def test_the_official_client(echo: Echoes) -> None:
    with GatewayThread(route_to(echo().port)) as gateway, client_of(gateway) as client:
        answer = client.chat.completions.create(model="m", messages=MESSAGES)
        assert answer.choices[0].message.content == "hello big world"
        assert answer.usage is not None and answer.usage.completion_tokens == 3
        assert answer._request_id is not None and answer._request_id.startswith("req_")
        assert client.completions.create(model="m", prompt="a b").choices[0].text == "a b"
        assert [model.id for model in client.models.list()] == ["m"]
        assert client.models.retrieve("m").owned_by == "pressroom"


def test_the_official_client_streaming(echo: Echoes) -> None:
    with GatewayThread(route_to(echo(delay_s=0.001).port)) as gateway, client_of(gateway) as client:
        with client.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello big world"
        assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 6
        with client.completions.create(model="m", prompt="a b", stream=True) as texts:
            assert "".join(c.choices[0].text for c in texts) == "a b"


def test_the_older_prefix(echo: Echoes) -> None:
    with (
        GatewayThread(route_to(echo().port)) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/openai/v1", api_key="none", max_retries=0) as client,
    ):
        assert client.chat.completions.create(model="m", messages=MESSAGES).choices[0].finish_reason == "stop"
        assert [model.id for model in client.models.list()] == ["m"]


def test_the_bytes_travel_untouched(script: MakeScript) -> None:
    answer = b'{ "odd" : "spacing \\u00e9", "n":1.50 }'
    frames = chunk(b'data: {"x": 1}\n') + chunk(b"\ndata: {}\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    engine = script(lambda c: c.sendall(plain(answer)), lambda c: c.sendall(STREAM + frames))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        asked = b'{ "messages":[{"role":"user","content":"\\u0041"}],  "model":"m", "top_k":3, "temperature": 1.0}'
        client.send(post(asked))
        status, headers, body = client.response()
        assert (status, body) == (200, answer)
        assert headers["pressroom-version"] == "sha256-0123abcd" and headers["x-request-id"].startswith("req_")
        assert engine.requests[0].endswith(b"\r\n\r\n" + asked)
        client.send(post(chat(stream=True)))
        status, headers, body = client.response()
        assert body == b'data: {"x": 1}\n\ndata: {}\n\ndata: [DONE]\n\n'
        assert headers["content-type"] == "text/event-stream" and headers["cache-control"] == "no-cache"


def test_pieces_of_a_stream_are_passed_on_as_they_come(script: MakeScript) -> None:
    go_on = threading.Event()

    def step(connected: socket.socket) -> None:
        connected.sendall(STREAM + chunk(b"data: 1\n\n"))
        assert go_on.wait(30)
        connected.sendall(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    with GatewayThread(route_to(script(step).port)) as gateway, Client(gateway.port) as client:
        client.send(post(chat(stream=True)))
        client.until(b"data: 1\n\n\r\n")  # the engine has not gone on yet
        go_on.set()
        client.until(b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_takes_its_generation_with_it(echo: Echoes, stream: bool) -> None:
    engine = echo(tokens=100_000, delay_s=0.01)
    route = route_to(engine.port)
    with GatewayThread(route) as gateway:
        client = Client(gateway.port)
        client.send(post(chat(stream=stream)))
        if stream:
            client.until(b"data: ")
        until(lambda: engine.active == 1)
        assert gateway.routes.in_flight(route) == 1
        client.close()
        until(lambda: engine.cancelled == 1 and engine.active == 0)
        until(lambda: gateway.routes.in_flight(route) == 0)
        series = gateway.gateway.metrics.of("m")
        assert series.disconnects == 1 and series.in_flight == 0
        assert series.requests == {("chat.completions", 499): 1}


def test_a_client_that_leaves_while_the_engine_is_being_reached() -> None:
    # A listener whose queue is full: connecting neither works nor fails.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        route = route_to(port)
        with GatewayThread(route) as gateway:
            client = Client(gateway.port)
            client.send(post(chat()))
            until(lambda: gateway.routes.in_flight(route) == 1)
            client.close()
            until(lambda: gateway.routes.in_flight(route) == 0)
        for one in held:
            one.close()


def test_a_slow_reader_costs_no_memory(script: MakeScript) -> None:
    """The engine is held back by TCP instead of the gateway's memory filling up."""
    sent = 0
    piece = chunk(b"data: " + b"x" * 60_000 + b"\n\n")
    limit = 64 * 2**20

    def flood(connected: socket.socket) -> None:
        nonlocal sent
        connected.sendall(STREAM)
        while sent < limit:
            connected.sendall(piece)
            sent += len(piece)

    with GatewayThread(route_to(script(flood).port)) as gateway:
        client = Client(gateway.port, receive_buffer=65_536)
        client.send(post(chat(stream=True)))
        client.until(b"data: ")
        before = -1
        while before != sent:  # until nothing moves any more
            before = sent
            time.sleep(0.3)
        assert 0 < sent < limit / 2  # what is under way is in the system's buffers
        # It goes on as soon as the client reads.
        for _ in range(200):
            client.buffer = b""
            assert client._more()
        until(lambda: sent > before)
        client.close()


def test_many_at_once(echo: Echoes) -> None:
    engine = echo(delay_s=0.001, tokens=20)
    route = route_to(engine.port)

    def ask(number: int) -> str:
        with Client(gateway.port) as client:
            for _ in range(3):
                client.send(post(chat(f"n{number}", stream=number % 2 == 0)))
                status, _, body = client.response()
                assert status == 200
            return body.decode()

    with GatewayThread(route) as gateway, ThreadPoolExecutor(64) as pool:
        for number, body in enumerate(pool.map(ask, range(64))):
            assert body.count(f"n{number}") == 20
        assert gateway.gateway.metrics.of("m").requests == {("chat.completions", 200): 192}
        assert gateway.routes.in_flight(route) == 0
    assert engine.requests == 192 and engine.cancelled == 0


# Connections to engines.


def test_connections_are_used_again(echo: Echoes) -> None:
    engine = echo()
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        for _ in range(20):
            assert client.ask(post(chat()))[0] == 200
    assert engine.opened == 1


def test_an_engine_that_ends_its_connections_after_some_requests(echo: Echoes) -> None:
    engine = echo(keep_alive_max=3)
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        for _ in range(20):
            assert client.ask(post(chat()))[0] == 200
        assert gateway.gateway.metrics.of("m").retries == 0
    assert engine.requests == 20 and engine.opened <= 10


def test_a_pooled_connection_that_was_closed_is_replaced_before_the_first_byte(script: MakeScript) -> None:
    """The engine promises five seconds and closes at once: the client must not notice."""
    closing = threading.Event()

    def answer_and_wait(connected: socket.socket) -> None:
        connected.sendall(plain())
        engine.read(connected)  # the next request arrives, and is dropped unanswered
        closing.set()

    engine = script(answer_and_wait, lambda c: c.sendall(plain()))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        assert client.ask(post(chat("one")))[0] == 200
        assert client.ask(post(chat("two")))[0] == 200
        assert closing.is_set()
        assert gateway.gateway.metrics.of("m").retries == 1
    assert engine.connections == 2 and b"two" in engine.requests[-1]


ONCE = GatewaySettings(retries=0)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_request_that_ends_every_engine_is_not_tried_for_ever(script: MakeScript, retries: int) -> None:
    engine = script(lambda c: None)
    settings = GatewaySettings(retries=retries)
    with GatewayThread(route_to(engine.port), settings=settings) as gateway, Client(gateway.port) as client:
        status, _, body = client.ask(post(chat()))
        assert status == 502 and body["error"]["code"] == "engine_error"
        assert gateway.routes.in_flight(route_to(engine.port)) == 0
    assert engine.connections == 1 + retries


@pytest.mark.parametrize("lost", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", STREAM])
def test_what_was_lost_before_its_first_byte_is_asked_again(script: MakeScript, lost: bytes) -> None:
    engine = script(lambda c: c.sendall(lost), lambda c: c.sendall(plain()))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        assert client.ask(post(chat()))[0] == 200
        assert gateway.gateway.metrics.of("m").retries == 1
    assert engine.connections == 2


def test_what_has_begun_is_not_asked_again(script: MakeScript) -> None:
    engine = script(lambda c: c.sendall(STREAM + chunk(b'data: {"choices":[]}\n\n')), lambda c: c.sendall(plain()))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        client.send(post(chat(stream=True)))
        _, _, body = client.response()
        assert b'"engine_error"' in body and b"[DONE]" not in body
    assert engine.connections == 1


def test_an_answer_that_has_begun_is_not_taken_for_a_closed_connection(script: MakeScript) -> None:
    def begin_and_end(connected: socket.socket) -> None:
        connected.sendall(plain())
        engine.read(connected)
        connected.sendall(b"HTTP/1.1 200")

    engine = script(begin_and_end)
    with GatewayThread(route_to(engine.port), settings=ONCE) as gateway, Client(gateway.port) as client:
        assert client.ask(post(chat()))[0] == 200
        assert client.ask(post(chat()))[0] == 502
    assert engine.connections == 1


# Engines that fail.


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"garbage" * 20,
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        STREAM + b"zz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    ],
)
def test_an_answer_that_is_not_one(script: MakeScript, answer: bytes) -> None:
    with GatewayThread(route_to(script(lambda c: c.sendall(answer)).port)) as gateway, Client(gateway.port) as client:
        status, headers, body = client.ask(post(chat()))
        assert status == 502 and headers["x-request-id"]
        assert body["error"]["type"] == "server_error" and body["error"]["code"] == "engine_error"
        assert client.ask(post(b"{"))[0] == 400  # the client's connection lives on


@pytest.mark.parametrize("end", [b"", b"5\r\nab", b"zz\r\n", b"0\r\n\r\n"])
def test_a_stream_that_breaks_ends_with_an_error_event(script: MakeScript, end: bytes) -> None:
    broken = STREAM + chunk(b'data: {"a":1}\n\n') + chunk(b'data: {"b":') + end
    engine = script(lambda c: c.sendall(broken))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        client.send(post(chat(stream=True)))
        status, _, body = client.response()
        assert status == 200 and b"[DONE]" not in body
        first, *_, last = [event for event in body.split(b"\n\n") if event]
        assert first == b'data: {"a":1}'
        assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"
        assert gateway.gateway.metrics.of("m").requests == {("chat.completions", 502): 1}


def test_the_official_client_sees_an_engine_die_in_the_middle() -> None:
    engine = create("echo", EngineSpec(name="m", options={"tokens": 100_000, "delay_s": 0.005}))
    endpoint = engine.start()
    try:
        with GatewayThread(route_to(endpoint.port), settings=ONCE) as gateway, client_of(gateway) as client:
            stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            with pytest.raises(openai.APIError, match="The engine failed"):
                for number, _ in enumerate(stream):
                    if number == 5:
                        os.kill(endpoint.pid, signal.SIGKILL)
            with pytest.raises(openai.InternalServerError) as failed:
                client.chat.completions.create(model="m", messages=MESSAGES)
            assert failed.value.status_code == 503 and failed.value.code == "engine_unavailable"
            assert failed.value.response.headers["retry-after"] == "1"
    finally:
        engine.stop()


@pytest.mark.parametrize(("begun", "status"), [(False, 504), (True, 502)])
def test_an_engine_that_falls_silent(script: MakeScript, begun: bool, status: int) -> None:
    released = threading.Event()

    def silent(connected: socket.socket) -> None:
        if begun:
            connected.sendall(HEAD % 10 + b"{")
        released.wait(30)

    settings = GatewaySettings(first_byte_timeout_s=0.2)
    with (
        GatewayThread(route_to(script(silent).port), settings=settings) as gateway,
        Client(gateway.port) as client,
    ):
        assert client.ask(post(chat()))[0] == status
        released.set()


@pytest.mark.parametrize("settings", [ONCE, GatewaySettings(wait_s=0.6)])
def test_an_engine_that_cannot_be_reached_in_time(settings: GatewaySettings) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        route = route_to(closed.getsockname()[1])
        with GatewayThread(route, settings=settings) as gateway, Client(gateway.port) as client:
            status, headers, body = client.ask(post(chat()))
            assert (status, headers["retry-after"], body["error"]["code"]) == (503, "1", "engine_unavailable")
            assert gateway.routes.in_flight(route) == 0


def error(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        (
            error(
                400, b'{"error":{"code":400,"message":"Prompt contains invalid tokens","type":"invalid_request_error"}}'
            ),
            400,
            {"type": "invalid_request_error", "code": None, "message": "Prompt contains invalid tokens"},
        ),
        (
            error(503, b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'),
            503,
            {"type": "server_error", "code": "engine_unavailable"},
        ),
        (
            error(500, b'{"error":{"code":500,"message":"boom","type":"server_error"}}'),
            502,
            {"type": "server_error", "message": "The engine failed: boom"},
        ),
        (error(501, b'{"error":{"code":501,"message":"no embeddings"}}'), 400, {"code": "unsupported_parameter"}),
        (error(429, b'{"error":{"message":"later","code":"queue_full"}}'), 429, {"code": "queue_full"}),
        (error(422, b'{"detail":"odd"}'), 422, {"type": "invalid_request_error"}),
        (error(404, b'{"error":{"message":"File Not Found","code":404}}'), 502, {"type": "server_error"}),
        (error(500, b"<html>oh"), 502, {"message": "The engine failed: <html>oh"}),
        (error(500, b""), 502, {"message": "The engine failed: The engine answered 500 and gave no reason."}),
        (error(400, b"[1]"), 400, {"message": "The engine answered 400 and gave no reason."}),
        (error(400, b'{"error":"text"}'), 400, {"message": "text"}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_errors_of_engines_have_openais_shape(
    script: MakeScript, answer: bytes, status: int, expected: dict[str, Any], stream: bool
) -> None:
    with GatewayThread(route_to(script(lambda c: c.sendall(answer)).port)) as gateway, Client(gateway.port) as client:
        found, headers, body = client.ask(post(chat(stream=stream)))
        assert found == status and headers["content-type"] == "application/json"
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert {**body["error"], **expected} == body["error"]


def test_a_context_too_long(echo: Echoes) -> None:
    with GatewayThread(route_to(echo(context=5).port)) as gateway, client_of(gateway) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "word " * 9}])
        assert refused.value.code == "context_length_exceeded" and refused.value.param == "messages"
        assert (
            "maximum context length is 5 tokens. However, your messages resulted in 9 tokens" in refused.value.message
        )
        with pytest.raises(openai.BadRequestError, match="your prompt resulted in 9 tokens"):
            client.completions.create(model="m", prompt="word " * 9, stream=True)


def test_a_long_stream_keeps_its_figures_and_no_memory(echo: Echoes) -> None:
    engine = echo(text="word " * 50, tokens=20_000)
    process = psutil.Process()
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        before = process.memory_info().rss
        client.send(post(chat(stream=True)))
        status, _, body = client.response()
        assert status == 200 and body.count(b"data: {") == 20_002
        series = gateway.gateway.metrics.of("m")
        until(lambda: series.generation_tokens == 20_000)
        assert series.prompt_tokens == 3 and sum(series.first_tokens.counts) == 1
        assert process.memory_info().rss - before < 200 * 2**20  # the test's own copies of 4 MB among it


@pytest.mark.parametrize(
    ("came", "goes"),
    [
        (b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n', b'{"role":"assistant","content":"x"}'),
        (b'data: {"choices":[{"delta":{}}]}\n\n', b'"delta":{"role":"assistant"}'),
        (
            b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n',
            b'{"role":"assistant","content":null}',
        ),
        (b'data: {"choices":[{"delta":{"content":"\\"role\\""}}]}\n\n', b'{"role":"assistant","content":"\\"role\\""}'),
    ],
)
def test_the_first_delta_has_the_role(script: MakeScript, came: bytes, goes: bytes) -> None:
    frames = chunk(came) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    engine = script(lambda c: c.sendall(STREAM + frames))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        client.send(post(chat(stream=True)))
        _, _, body = client.response()
        assert goes in body
        assert body.count(b'"role":"assistant"') == (b'"error"' not in came)
        assert body.endswith(b"data: [DONE]\n\n")
