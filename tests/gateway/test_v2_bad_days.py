"""KServe V2 over REST when somebody misbehaves: clients, engines, and those who try things out."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from pressroom.engines.base import Capabilities
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import HEAD, STREAM, Client, Echoes, Script, chunk, post, route_to, until
from .v2_doors import ask, events, generate, infer, tensor

MakeScript = Callable[..., Script]
INFER, GENERATE, GENERATE_STREAM = (f"/v2/models/m/{verb}" for verb in ("infer", "generate", "generate_stream"))
TEXT = tensor("text_input", ["x"])
EMBEDS = Capabilities(chat=False, completions=False, streaming=False, embeddings=True)


def whole(body: bytes) -> Callable[[socket.socket], None]:
    return lambda connected: connected.sendall(HEAD % len(body) + body)


def frame(**record: object) -> bytes:
    return chunk(b"data: " + json.dumps(record).encode() + b"\n\n")


def piece(text: str) -> bytes:
    return frame(choices=[{"text": text, "index": 0, "finish_reason": None}])


@pytest.fixture
def gateway(echo: Echoes) -> Iterator[GatewayThread]:
    with GatewayThread(route_to(echo().port)) as running:
        yield running


def test_ten_thousand_malformed_bodies(gateway: GatewayThread) -> None:
    chance = random.Random(7)
    good = [
        infer(TEXT, tensor("max_tokens", [1], "INT32"), outputs=[{"name": "text_output"}]),
        infer(TEXT, parameters={"temperature": 0.5, "stop": ["a"]}),
        generate("x", temperature=0.5, stop=["a", "b"], sampling_parameters={"top_k": 3}),
    ]
    paths = [INFER, GENERATE, GENERATE_STREAM, "/v2/repository/index", "/v2/repository/models/m/load"]
    sent = 0
    with Client(gateway.port) as client:
        while sent < 10_000:
            requests = []
            for _ in range(50):
                body = bytearray(chance.choice(good))
                for _ in range(chance.randint(1, 4)):
                    at = chance.randrange(len(body))
                    kind = chance.randrange(3)
                    if kind == 0:
                        body[at] = chance.randrange(256)
                    elif kind == 1:
                        del body[at : at + chance.randrange(1, 9)]
                    else:
                        body[at:at] = bytes(body[:at][-chance.randrange(1, 30) :])
                    body = body or bytearray(b"x")
                lines = (f"Inference-Header-Content-Length: {chance.randrange(len(body) + 9)}",)
                requests.append(post(bytes(body), chance.choice(paths), *(lines if chance.random() < 0.3 else ())))
            client.send(b"".join(requests))
            for _ in requests:
                status, _, answer = client.response()
                assert status in (200, 400, 404), answer
                if status != 200:
                    assert type(json.loads(answer)["error"]) is str and len(answer) < 2_500
            sent += len(requests)
        assert ask(client, GENERATE, generate("still here"))[1]["text_output"] == "still here"


@pytest.mark.parametrize("path", [GENERATE, GENERATE_STREAM, INFER])
def test_a_client_that_leaves_ends_the_work(echo: Echoes, path: str) -> None:
    engine = echo(delay_s=0.05, tokens=10_000)
    with GatewayThread(route_to(engine.port)) as gateway:
        client = Client(gateway.port)
        client.send(post(infer(tensor("text_input", ["a", "b", "c"])) if path == INFER else generate(), path))
        until(lambda: engine.active == (3 if path == INFER else 1))
        client.close()
        until(lambda: engine.cancelled == (3 if path == INFER else 1) and engine.active == 0)
        assert set(gateway.gateway.metrics.of("m").requests) == {(f"v2.{path.rpartition('/')[2]}", 499)}


def test_a_long_request_asks_for_a_few_answers_at_a_time(echo: Echoes) -> None:
    engine = echo(delay_s=0.02)
    most = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, engine.active)

    watching = threading.Thread(target=watch)
    watching.start()
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        status, _ = ask(client, INFER, infer(tensor("text_input", [f"text {n}" for n in range(100)])))
    over.set()
    watching.join()
    assert status == 200 and engine.requests == 100 and 2 <= most <= 16


def test_one_answer_that_fails_fails_the_request(echo: Echoes) -> None:
    engine = echo(context=4, delay_s=0.02)
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        texts = ["a b", "a b c d e f", *["a b"] * 30]
        status, found = ask(client, INFER, infer(tensor("text_input", texts)))
        assert status == 400 and "maximum context length is 4 tokens" in found["error"]
        until(lambda: engine.active == 0)
        assert engine.requests < 32
        status, found = ask(client, GENERATE, generate("a b c d e f"))
        assert status == 400 and "maximum context length" in found["error"]


def test_a_slow_reader_makes_the_engine_wait(script: MakeScript) -> None:
    sent = 0
    blocked = threading.Event()

    def pour(connected: socket.socket) -> None:
        nonlocal sent
        connected.settimeout(2)
        connected.sendall(STREAM)
        data = piece("x" * 4_000) * 16
        try:
            for _ in range(4_000):  # 256 MB, if somebody took them
                connected.sendall(data)
                sent += len(data)
        except TimeoutError:
            blocked.set()

    engine = script(pour)
    with GatewayThread(route_to(engine.port)) as gateway:
        with Client(gateway.port, receive_buffer=65_536) as client:
            client.send(post(generate(), GENERATE_STREAM))
            assert blocked.wait(60)
            assert sent < 32 << 20
        with Client(gateway.port) as other:
            assert other.ask(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (piece("one") + piece(" two"), "The engine failed"),  # and it is gone
        (piece("one") + frame(error={"message": "out of memory", "code": 500}) + b"0\r\n\r\n", "out of memory"),
        (piece("one") + chunk(b"data: {]\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n", "cannot be read"),
        (piece("one") + frame(choices=[5]) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n", "cannot be read"),
    ],
)
def test_an_engine_that_fails_within_a_stream(script: MakeScript, frames: bytes, says: str) -> None:
    engine = script(lambda connected: connected.sendall(STREAM + frames))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        found = events(client, GENERATE_STREAM, generate())
        assert found[0]["text_output"] == "one" and says in found[-1]["error"]
        assert not any(each.get("done") for each in found)
        # Its connection goes on.
        assert client.ask(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200


@pytest.mark.parametrize("answer", [b"{}", b"[]", b'{"choices": []}', b'{"choices": [{}]}', b"\xff", b'{"choices": 5}'])
def test_an_engine_that_answers_nonsense(script: MakeScript, answer: bytes) -> None:
    engine = script(whole(answer))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        for path, body in ((GENERATE, generate()), (INFER, infer(tensor("text_input", ["a", "b"])))):
            status, found = ask(client, path, body)
            assert status == 502 and "cannot be read" in found["error"]


def test_an_engine_that_does_not_stream_after_all(script: MakeScript) -> None:
    body = {"choices": [{"text": "all at once", "finish_reason": "stop"}]}
    engine = script(whole(json.dumps(body).encode()))
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        found = events(client, GENERATE_STREAM, generate())
        assert [each["text_output"] for each in found] == ["all at once", ""]
        assert (found[-1]["finish_reason"], found[-1]["done"]) == ("stop", True)


def test_a_gateway_that_stops_says_so(echo: Echoes) -> None:
    from pressroom.kernel import GatewaySettings

    engine = echo(delay_s=0.05, tokens=10_000)
    with GatewayThread(route_to(engine.port), settings=GatewaySettings(drain_s=0.1)) as gateway:
        with Client(gateway.port) as stream, Client(gateway.port) as answer:
            stream.send(post(generate(), GENERATE_STREAM))
            answer.send(post(generate(), GENERATE))
            until(lambda: engine.active == 2)
            stream.until(b'"done":false')
            gateway.stop(wait=False)
            assert b"The gateway is stopping." in stream.rest()
            status, _, body = answer.response()
            assert status == 503 and b"The gateway is stopping." in body
        until(lambda: engine.cancelled == 2)


# Models that embed.


def embedded(*rows: list[float]) -> bytes:
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    return json.dumps({"object": "list", "data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}}).encode()


def test_a_model_that_embeds(script: MakeScript) -> None:
    engine = script(whole(embedded([0.5, -1.25, 3.0], [1.0, 2.0, 4.0])))
    with GatewayThread(route_to(engine.port, capabilities=EMBEDS)) as gateway, Client(gateway.port) as client:
        text = tensor("text", ["a b", "c"])
        status, found = ask(client, INFER, infer(text))
        assert status == 200 and found["outputs"] == [
            {"name": "embedding", "datatype": "FP32", "shape": [2, 3], "data": [0.5, -1.25, 3.0, 1.0, 2.0, 4.0]},
            {"name": "prompt_tokens", "datatype": "INT64", "shape": [1], "data": [5]},
        ]
        asked = json.loads(engine.requests[0].partition(b"\r\n\r\n")[2])
        assert asked["input"] == ["a b", "c"] and engine.requests[0].startswith(b"POST /v1/embeddings ")
        body = infer(text, outputs=[{"name": "embedding", "parameters": {"binary_data": True}}])
        client.send(post(body, INFER))
        _, headers, answer = client.response()
        data = answer[int(headers["inference-header-content-length"]) :]
        assert struct.unpack("<6f", data) == (0.5, -1.25, 3.0, 1.0, 2.0, 4.0)
        metadata = client.ask(b"GET /v2/models/m HTTP/1.1\r\nHost: localhost\r\n\r\n")[2]
        assert metadata["outputs"][0] == {"name": "embedding", "datatype": "FP32", "shape": [-1, -1]}
        for path, refused, says in (
            (GENERATE, generate(), "embeds and generates nothing"),
            (GENERATE_STREAM, infer(text), "nothing to stream"),
            (INFER, infer(text, parameters={"chat": True}), "no conversation"),
            (INFER, infer(text, parameters={"temperature": 1}), "no parameter 'temperature' for a model that embeds"),
            (INFER, infer(text, outputs=[{"name": "text_output"}]), "no output 'text_output'"),
        ):
            status, found = ask(client, path, refused)
            assert status == 400 and says in found["error"], found


@pytest.mark.parametrize("answer", [b"{}", embedded([1.0]), embedded([1.0], [1.0, 2.0]), b'{"data": [5, 6]}'])
def test_embeddings_that_do_not_fit(script: MakeScript, answer: bytes) -> None:
    engine = script(whole(answer))
    with GatewayThread(route_to(engine.port, capabilities=EMBEDS)) as gateway, Client(gateway.port) as client:
        status, found = ask(client, INFER, infer(tensor("text", ["a", "b"])))
        assert status == 502 and "cannot be read" in found["error"]
