"""KServe V2 over gRPC when somebody misbehaves, leaves, or is not there."""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from pressroom.gateway.grpc import inference_pb2 as messages
from pressroom.gateway.grpc import open_grpc
from pressroom.gateway.routes import RouteTable
from pressroom.kernel import DeployError, GatewaySettings, PortInUseError
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import STREAM, Echoes, route_to, until
from .test_grpc_service import SERVICE, Code, infer, request
from .test_v2_bad_days import MakeScript, frame, piece

Found = queue.Queue[Any]


def channel_to(gateway: GatewayThread, **options: int) -> grpc.Channel:
    return grpc.insecure_channel(
        f"127.0.0.1:{gateway.grpc_port}",
        options=[("grpc.use_local_subchannel_pool", 1), *[(f"grpc.{name}", value) for name, value in options.items()]],
    )


def streaming(channel: grpc.Channel, requests: Iterator[Any]) -> Any:
    call = channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer",
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelStreamInferResponse.FromString,
    )
    return call(requests, timeout=60)


def until_closed(requests: Found) -> Iterator[Any]:
    """The requests put into the queue, until None is."""
    while (found := requests.get()) is not None:
        yield found


def text(response: Any) -> str:
    return str(response.infer_response.outputs[0].contents.bytes_contents[0].decode())


# Clients that leave, and those that do not keep up.


@pytest.mark.parametrize("texts", [1, 3])
def test_a_call_that_is_cancelled_ends_the_work(echo: Echoes, texts: int) -> None:
    engine = echo(delay_s=0.05, tokens=10_000)
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(request(*[b"x"] * texts).SerializeToString())
        until(lambda: engine.active == texts)
        call.cancel()
        until(lambda: engine.cancelled == texts and engine.active == 0)
        assert gateway.gateway.metrics.of("m").requests == {("v2.grpc.infer", 499): texts}


def test_a_deadline_ends_the_work(echo: Echoes) -> None:
    engine = echo(delay_s=0.05, tokens=10_000)
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        with pytest.raises(grpc.RpcError) as found:
            channel.unary_unary(f"/{SERVICE}/ModelInfer")(request(b"x").SerializeToString(), timeout=0.5)
        assert found.value.code() is Code.DEADLINE_EXCEEDED
        until(lambda: engine.cancelled == 1 and engine.active == 0)


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_stream_whose_client_leaves_ends_the_work(echo: Echoes, how: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = echo(delay_s=0.002, tokens=100_000)
    with GatewayThread(route_to(engine.port), grpc=True) as gateway:
        channel = channel_to(gateway)
        requests: Found = queue.Queue()
        for number in range(3):
            requests.put(request(b"x", id=str(number)))
        call = streaming(channel, until_closed(requests))
        next(call)
        until(lambda: engine.active == 3)
        call.cancel() if how == "cancel" else channel.close()
        requests.put(None)
        until(lambda: engine.cancelled == 3 and engine.active == 0)
        channel.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_slow_reader_makes_the_engine_wait(script: MakeScript) -> None:
    sent = 0
    blocked = threading.Event()

    def pour(connected: socket.socket) -> None:
        nonlocal sent
        connected.settimeout(2)
        connected.sendall(STREAM)
        data = piece("x" * 4_000) * 16
        for _ in range(600):
            try:
                connected.sendall(data)
                sent += len(data)
            except TimeoutError:
                blocked.set()
                return

    engine = script(pour)
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        requests: Found = queue.Queue()
        requests.put(request(b"x"))
        call = streaming(channel, until_closed(requests))
        assert text(next(call)) == "x" * 4_000
        assert blocked.wait(60)  # nobody reads on
        assert sent < 24 << 20
        assert infer_live(channel)
        call.cancel()
        requests.put(None)


def infer_live(channel: grpc.Channel) -> bool:
    data = channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=30)
    return bool(messages.ServerLiveResponse.FromString(data).live)


def test_a_reader_that_pauses_gets_everything(echo: Echoes) -> None:
    engine = echo(tokens=20_000, text="word")
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        requests: Found = queue.Queue()
        requests.put(request(b"x"))
        requests.put(None)
        call = streaming(channel, until_closed(requests))
        pieces = []
        for number, response in enumerate(call):
            pieces.append(text(response))
            if number in (10, 500):
                time.sleep(0.3)  # behind, and then on
        assert "".join(pieces) == " ".join(["word"] * 20_000)


# Engines that fail.


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (piece("one") + piece(" two"), "The engine failed"),
        (piece("one") + frame(error={"message": "out of memory"}) + b"0\r\n\r\n", "out of memory"),
    ],
)
def test_an_engine_that_fails_within_a_stream(script: MakeScript, frames: bytes, says: str) -> None:
    engine = script(lambda connected: connected.sendall(STREAM + frames))
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        found = list(streaming(channel, iter([request(b"x", id="5")])))
        assert text(found[0]) == "one" and not found[0].error_message
        assert says in found[-1].error_message and found[-1].infer_response.id == "5"
        assert found[-1].infer_response.parameters["triton_final_response"].bool_param


def test_an_engine_that_answers_nonsense(script: MakeScript) -> None:
    body = b'{"choices": []}'
    engine = script(lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        with pytest.raises(grpc.RpcError) as found:
            infer(channel, request(b"x"))
        assert found.value.code() is Code.INTERNAL and "cannot be read" in found.value.details()


# Those who try things out.


def test_messages_over_the_limit(echo: Echoes) -> None:
    settings = GatewaySettings(grpc_max_message_bytes=4_096)
    with GatewayThread(route_to(echo().port), settings=settings, grpc=True) as gateway, channel_to(gateway) as channel:
        with pytest.raises(grpc.RpcError) as found:
            infer(channel, request(b"x" * 5_000))
        assert found.value.code() is Code.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as found:
            list(streaming(channel, iter([request(b"x" * 5_000)])))
        assert found.value.code() is Code.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as found:
            channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", metadata=[("x", "y" * 60_000)], timeout=30)
        assert found.value.code() is Code.RESOURCE_EXHAUSTED
        assert infer(channel, request(b"x")).outputs[0].contents.bytes_contents[0] == b"x"


def test_an_answer_may_be_longer_than_a_question_may_be(echo: Echoes) -> None:
    settings = GatewaySettings(grpc_max_message_bytes=4_096)
    engine = echo(text="word", tokens=400_000)
    with (
        GatewayThread(route_to(engine.port), settings=settings, grpc=True) as gateway,
        channel_to(gateway, max_receive_message_length=-1) as channel,
    ):
        assert len(infer(channel, request(b"x")).outputs[0].contents.bytes_contents[0]) == 400_000 * 5 - 1


def http2(kind: int, data: bytes, *, flags: int = 0, stream: int = 0) -> bytes:
    return len(data).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + data


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2(4, b"")


def all_there_is(connected: socket.socket) -> bytes:
    found = b""
    try:
        while data := connected.recv(65_536):
            found += data
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize(
    "sent",
    [
        PREFACE + http2(6, bytes(8)) * 500,  # pings without end
        PREFACE + http2(1, b"\xff" * 40, flags=4, stream=1),  # headers that do not decode
        b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        b"\x16\x03\x01" + bytes(500),
        bytes(range(256)) * 40,
    ],
)
def test_what_is_no_grpc_is_sent_away(echo: Echoes, sent: bytes) -> None:
    with GatewayThread(route_to(echo().port), grpc=True) as gateway, channel_to(gateway) as channel:
        assert infer_live(channel)
        with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
            connected.sendall(sent)
            assert len(all_there_is(connected)) < 20_000  # and it is closed
        assert infer_live(channel)


def test_connections_beyond_what_there_is_room_for(echo: Echoes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pressroom.gateway.grpc._server.connections_allowed", lambda: 160)
    with GatewayThread(route_to(echo().port), grpc=True) as gateway, channel_to(gateway) as channel:
        assert infer_live(channel)
        connections = [socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) for _ in range(60)]
        closed = 0
        for connected in connections[40:]:
            connected.settimeout(10)
            closed += all_there_is(connected) == b""  # a connection that is kept says nothing, and waits
        assert closed == 20
        assert infer_live(channel)
        for connected in connections:
            connected.close()


# Opening and closing.


def test_a_port_that_is_taken(echo: Echoes) -> None:
    with GatewayThread(route_to(echo().port), grpc=True) as gateway:

        async def again(host: str) -> None:
            await open_grpc(gateway.gateway, RouteTable(), GatewaySettings(), host=host, port=gateway.grpc_port)

        with pytest.raises(PortInUseError, match=str(gateway.grpc_port)) as found:
            asyncio.run(again("127.0.0.1"))
        assert "PRESSROOM_GATEWAY_GRPC_PORT" in found.value.hint
        with pytest.raises(DeployError):
            asyncio.run(again("203.0.113.1"))


def test_without_the_library() -> None:
    """The gateway does without; whoever opens the door is told what to install."""
    program = """
import asyncio, sys
sys.modules["grpc_health"] = None
import pressroom.gateway.grpc
from pressroom.gateway.routes import RouteTable
from pressroom.kernel import GatewaySettings, MissingDependencyError
async def main():
    try:
        await pressroom.gateway.grpc.open_grpc(None, RouteTable(), GatewaySettings(), port=0)
    except MissingDependencyError as error:
        print(error.message, error.hint)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "pip install 'pressroom[grpc]'" in done.stdout, done.stderr


def test_what_is_loaded_when() -> None:
    """Nothing before the door opens, and grpcio by whoever asks for reflection."""
    program = """
import asyncio, sys
import pressroom.gateway.app, pressroom.gateway.grpc
from pressroom.gateway.routes import RouteTable
from pressroom.kernel import GatewaySettings
async def main():
    opened = await pressroom.gateway.grpc.open_grpc(None, RouteTable(), GatewaySettings(), port=0)
    print("google.protobuf" in sys.modules, "grpc" in sys.modules)
    await opened.close(0)
print("google.protobuf" in sys.modules, "grpc" in sys.modules)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False", "True", "False"], done.stderr


def test_closing_lets_what_runs_end_and_waits_for_nobody_else(echo: Echoes) -> None:
    engine = echo(delay_s=0.1, tokens=8)
    with GatewayThread(route_to(engine.port), grpc=True) as gateway:
        channel = channel_to(gateway)
        requests: Found = queue.Queue()
        idle = streaming(channel, until_closed(requests))  # open, and asks for nothing
        running = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(request(b"x").SerializeToString(), timeout=30)
        until(lambda: engine.active == 1)
        began = time.monotonic()
        gateway.stop()
        assert time.monotonic() - began < 8  # drain_s is ten
        assert messages.ModelInferResponse.FromString(running.result()).model_name == "m"
        assert list(idle) == []
        requests.put(None)
        channel.close()


def test_closing_ends_what_takes_too_long(echo: Echoes) -> None:
    engine = echo(delay_s=0.1, tokens=10_000)
    settings = GatewaySettings(drain_s=0.2)
    with GatewayThread(route_to(engine.port), settings=settings, grpc=True) as gateway:
        channel = channel_to(gateway)
        running = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(request(b"x").SerializeToString(), timeout=30)
        stream = streaming(channel, iter([request(b"x")]))
        until(lambda: engine.active == 2)
        gateway.stop()
        assert running.code() in (Code.CANCELLED, Code.UNAVAILABLE)
        with pytest.raises(grpc.RpcError):
            list(stream)
        until(lambda: engine.cancelled == 2)
        channel.close()


def test_opened_and_closed_again_and_again(echo: Echoes) -> None:
    port = echo().port
    for _ in range(5):
        with GatewayThread(route_to(port), grpc=True) as gateway, channel_to(gateway) as channel:
            assert infer_live(channel)


def test_two_gateways_in_one_process(echo: Echoes) -> None:
    port = echo().port
    with (
        GatewayThread(route_to(port), grpc=True) as one,
        GatewayThread(route_to(port), grpc=True) as other,
        channel_to(one) as first,
        channel_to(other) as second,
    ):
        for _ in range(50):
            for channel in (first, second):
                assert infer(channel, request(b"x")).outputs[0].contents.bytes_contents[0] == b"x"
