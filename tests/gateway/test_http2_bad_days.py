"""The gRPC door as HTTP/2, when clients do not keep to the protocol, do nothing, or want too much."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import logging
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hpack import Encoder

from pressroom.gateway.grpc._door import Door
from pressroom.kernel import GatewaySettings
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import STREAM, Echoes, route_to, until
from .http2_client import (
    CALM,
    CLOSED,
    FLOW,
    HEADERS,
    PROTOCOL,
    SIZE,
    Http2Client,
    infer_bytes,
    message,
    pseudo,
    with_header,
)
from .test_grpc_bad_days import PREFACE, all_there_is, channel_to, http2, infer_live, streaming
from .test_grpc_service import SERVICE, Code, infer, request
from .test_v2_bad_days import MakeScript


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    echoes = Echoes()
    with GatewayThread(route_to(echoes().port), grpc=True) as running:
        yield running
    echoes.close()


@pytest.fixture
def client(gateway: GatewayThread) -> Iterator[Http2Client]:
    with contextlib.closing(Http2Client(gateway.grpc_port)) as opened:
        yield opened


# Clients that break the protocol.

BLOCK = Encoder().encode(HEADERS)
CALL = http2(1, BLOCK, flags=4, stream=1)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (PREFACE + http2(0, b"x", stream=1), PROTOCOL),  # data of nothing
        (PREFACE + http2(0, b"x", stream=0), PROTOCOL),
        (PREFACE + http2(1, BLOCK, flags=4, stream=2), PROTOCOL),  # a stream of the server's
        (PREFACE + http2(1, BLOCK, flags=4, stream=0), PROTOCOL),
        (PREFACE + http2(1, BLOCK[:5], stream=1) + http2(6, bytes(8)), PROTOCOL),  # headers that are not continued
        (PREFACE + http2(9, BLOCK, flags=4, stream=1), PROTOCOL),
        (PREFACE + CALL + CALL, PROTOCOL),
        (PREFACE + http2(1, b"\x09" + BLOCK, flags=4 | 8, stream=1)[:17], None),  # a frame that never ends
        (PREFACE + http2(1, b"\xff" + bytes(9), flags=4 | 8, stream=1), PROTOCOL),  # more padding than frame
        (PREFACE + http2(1, bytes(3), flags=4 | 32, stream=1), SIZE),
        (PREFACE + http2(5, bytes(8), flags=4, stream=1), PROTOCOL),  # a push
        (PREFACE + http2(6, bytes(7)), SIZE),
        (PREFACE + http2(6, bytes(8), stream=1), PROTOCOL),
        (PREFACE + http2(4, bytes(5)), SIZE),
        (PREFACE + http2(4, bytes(6), flags=1), SIZE),
        (PREFACE + http2(4, b"", stream=1), PROTOCOL),
        (PREFACE + http2(4, struct.pack(">HI", 4, 1 << 31)), FLOW),
        (PREFACE + http2(4, struct.pack(">HI", 5, 100)), PROTOCOL),
        (PREFACE + http2(4, struct.pack(">HI", 2, 2)), PROTOCOL),
        (PREFACE + http2(3, bytes(4), stream=1), PROTOCOL),  # a reset of nothing
        (PREFACE + http2(3, bytes(3), stream=1), SIZE),
        (PREFACE + http2(8, bytes(4)), PROTOCOL),  # a window of nothing
        (PREFACE + http2(8, struct.pack(">I", (1 << 31) - 1)), FLOW),
        (PREFACE + http2(8, bytes(3)), SIZE),
        (PREFACE + http2(8, struct.pack(">I", 1), stream=1), PROTOCOL),
        (PREFACE + http2(2, bytes(4), stream=1), SIZE),
        (PREFACE + http2(7, bytes(8), stream=1), PROTOCOL),
        (PREFACE + http2(0, bytes(16_385), stream=1)[:200], SIZE),  # larger than was offered
        (PREFACE[:24] + http2(6, bytes(8)), PROTOCOL),  # no settings
        (PREFACE + http2(1, BLOCK[:1], stream=1) + http2(9, b"", stream=1) * 500, CALM),
        (PREFACE + http2(1, b"", stream=1) + http2(9, bytes(16_000), stream=1) * 20, CALM),  # headers without end
        (PREFACE + CALL + http2(0, b"", stream=1) * 1_000, CALM),
        (PREFACE + http2(4, b"") * 1_000, CALM),
        (PREFACE + http2(2, bytes(5), stream=1) * 1_000, CALM),
    ],
)
def test_who_breaks_the_protocol_is_sent_away(gateway: GatewayThread, sent: bytes, reason: int | None) -> None:
    with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
        with contextlib.suppress(ConnectionError):
            connected.sendall(sent)
            if reason is None:
                connected.shutdown(socket.SHUT_WR)
        found = all_there_is(connected)
    if reason is not None:
        assert found[found.rindex(b"\x07\x00") + 10 :][:4] == struct.pack(">I", reason), found[-80:]
    with channel_to(gateway) as channel:
        assert infer_live(channel)


def test_more_than_the_windows_allow(gateway: GatewayThread) -> None:
    path = f"/{SERVICE}/ModelStreamInfer"
    block = Encoder().encode(pseudo(":path", path))
    sent = PREFACE + http2(1, block, flags=4, stream=1) + http2(0, b"\0\x01\xff\xff\xff" + bytes(16_000), stream=1)
    with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
        # A client that is told to wait, and does not.
        connected.sendall(sent + http2(0, bytes(16_384), stream=1) * 15)
        connected.sendall(http2(0, bytes(16_384), stream=1) * 1_200)
        with contextlib.suppress(ConnectionError):
            connected.shutdown(socket.SHUT_WR)
        assert all_there_is(connected)
    with channel_to(gateway) as channel:
        assert infer_live(channel)


def door_of(gateway: GatewayThread) -> Any:
    """What the door counts: calls under way, and bytes kept for them."""
    loop = gateway.on_loop(lambda: asyncio.get_running_loop())
    return next(each for each in gc.get_objects() if type(each) is Door and each._loop is loop)


def test_nothing_is_left_of_calls_that_broke_off(echo: Echoes) -> None:
    engine = echo(delay_s=0.01, tokens=50)
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        door = door_of(gateway)
        for cut in (0, 3, 30):
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
                    connected.sendall(PREFACE + CALL + http2(0, message(infer_bytes())[: cut or 5], stream=1))
                with contextlib.closing(Http2Client(gateway.grpc_port, 10)) as client:
                    client.call(message(infer_bytes(b"word " * 50)))
                    client.read()
        assert infer_live(channel)
        until(lambda: door.calls == 0 and door.held == 0 and engine.active == 0)


def test_whole_messages_that_wait_are_counted_too(echo: Echoes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that has come is kept until its call says that there is no other."""
    monkeypatch.setattr("pressroom.gateway.grpc._door._HELD_AT_LEAST", 1_000_000)
    settings = GatewaySettings(grpc_max_message_bytes=400_000)  # eight of them
    with (
        GatewayThread(route_to(echo().port), settings=settings, grpc=True) as gateway,
        contextlib.ExitStack() as opened,
    ):
        door = door_of(gateway)
        clients = [opened.enter_context(contextlib.closing(Http2Client(gateway.grpc_port))) for _ in range(12)]
        for number, client in enumerate(clients):
            stream = client.call(message(infer_bytes(b"x" * 300_000)), end=False)
            if number < 10:
                until(lambda expected=number + 1: door.held >= expected * 300_000)
            else:
                assert client.answer(stream)[1]["grpc-status"] == "14"
        for client in clients:
            client.close()
        until(lambda: door.calls == 0 and door.held == 0)


def test_large_requests_that_run_are_counted_until_they_have_ended(echo: Echoes) -> None:
    """The text lives on in what the engine is asked, whichever way the end of the call came."""
    engine = echo(delay_s=0.05, tokens=10_000)
    with GatewayThread(route_to(engine.port), grpc=True) as gateway:
        door = door_of(gateway)
        large = message(infer_bytes(b"x" * 200_000))
        with contextlib.closing(Http2Client(gateway.grpc_port)) as client:
            client.call(large)
            client.call(large, pseudo(":path", f"/{SERVICE}/ModelStreamInfer"), end=False)
            until(lambda: engine.active == 2)
            assert 400_000 < door.held < 401_000
        until(lambda: door.calls == 0 and door.held == 0)


def test_a_message_that_grows_too_much_when_it_is_opened(client: Http2Client) -> None:
    bomb = gzip.compress(bytes(31_000_000))
    _, trailers = client.answer(client.call(message(bomb, 1), with_header("grpc-encoding", "gzip")))
    assert trailers["grpc-status"] == "8" and "times its size" in trailers["grpc-message"]


def test_settings_by_the_thousand_hold_up_nobody(gateway: GatewayThread) -> None:
    """Windows of a thousand calls, changed back and forth three thousand times in a frame."""
    path = f"/{SERVICE}/ModelStreamInfer"
    block = Encoder().encode(pseudo(":path", path))
    calls = b"".join(http2(1, block, flags=4, stream=number) for number in range(1, 2_000, 2))
    many = b"".join(struct.pack(">HI", 4, 65_535 + (number & 1)) for number in range(2_730))
    with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=60) as connected:
        with contextlib.suppress(ConnectionError):
            connected.sendall(PREFACE + calls + http2(4, many) * 100)
        found = all_there_is(connected)
        assert struct.pack(">I", CALM) in found
    with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=60) as connected:
        wide = struct.pack(">I", (1 << 31) - 1 - 65_535)
        connected.sendall(PREFACE + http2(1, block, flags=4, stream=1) + http2(8, wide, stream=1))
        connected.sendall(http2(4, struct.pack(">HI", 4, 70_000)))  # what is allowed overflows
        assert struct.pack(">I", FLOW) in all_there_is(connected)


@pytest.mark.parametrize(
    "again", [http2(0, b"", flags=1, stream=1), http2(0, b"x", stream=1), http2(1, BLOCK, flags=5, stream=1)]
)
def test_a_stream_that_ends_twice(echo: Echoes, again: bytes) -> None:
    """The call is over for the client; its work is stopped, and not begun again."""
    engine = echo(delay_s=0.05, tokens=10_000)
    with (
        GatewayThread(route_to(engine.port), grpc=True) as gateway,
        socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected,
    ):
        connected.sendall(PREFACE + CALL + http2(0, message(infer_bytes()), flags=1, stream=1))
        until(lambda: engine.active == 1)
        connected.sendall(again)
        until(lambda: engine.active == 0 and engine.cancelled == 1)
        connected.shutdown(socket.SHUT_WR)
        assert http2(3, struct.pack(">I", CLOSED), stream=1) in all_there_is(connected)


def test_resets_that_the_server_is_made_to_send(gateway: GatewayThread) -> None:
    """Calls that are broken by the client's own mistakes are as many resets as its own."""
    flood = b"".join(
        http2(1, BLOCK, flags=4, stream=number)
        + http2(0, message(infer_bytes()), flags=1, stream=number)
        + http2(8, bytes(4), stream=number)
        for number in range(1, 80_000, 2)
    )
    with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
        with contextlib.suppress(ConnectionError):
            connected.sendall(PREFACE + flood)
        found = all_there_is(connected)
    assert found.count(b"\0\0\x04\x03\0") < 4_000  # of forty thousand
    with channel_to(gateway) as channel:
        assert infer_live(channel)


def test_others_are_answered_where_somebody_has_all_calls(
    gateway: GatewayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pressroom.gateway.grpc._door._MOST_CALLS", 200)
    path = f"/{SERVICE}/ModelStreamInfer"
    with contextlib.closing(Http2Client(gateway.grpc_port)) as greedy:
        for _ in range(200):
            last = greedy.call(b"", pseudo(":path", path), end=False)
        one_more = greedy.call(b"", pseudo(":path", path), end=False)
        assert greedy.answer(one_more)[1]["grpc-status"] == "8"
        with channel_to(gateway) as channel:
            assert infer(channel, request(b"x")).model_name == "m"
        assert last


@pytest.mark.parametrize("stuck", [False, True])
def test_a_deadline_frees_a_call_whatever_it_waits_for(gateway: GatewayThread, stuck: bool) -> None:
    headers = [*HEADERS, ("grpc-timeout", "200m")]
    with contextlib.closing(Http2Client(gateway.grpc_port, 0 if stuck else 65_535)) as client:
        body = message(infer_bytes()) if stuck else message(infer_bytes())[:9]
        _, trailers = client.answer(client.call(body, headers, end=stuck))
        assert trailers.get("reset", trailers["grpc-status"] if not stuck else "") == ("8" if stuck else "4")


def test_who_does_nothing_is_looked_after(echo: Echoes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that does not come, and an answer that nobody takes."""
    for name, seconds in (("_call._MESSAGE_S", 0.2), ("_call.STALL_S", 0.2), ("_door._CALLS_S", 0.1)):
        monkeypatch.setattr(f"pressroom.gateway.grpc.{name}", seconds)
    with GatewayThread(route_to(echo().port), grpc=True) as gateway:
        with contextlib.closing(Http2Client(gateway.grpc_port)) as client:
            assert client.answer(client.call(b"", end=False))[1]["grpc-status"] == "4"
        with contextlib.closing(Http2Client(gateway.grpc_port, 0)) as client:
            assert client.answer(client.call(message(infer_bytes())))[1]["reset"] == "8"


def test_a_block_that_adds_to_the_table_each_time(gateway: GatewayThread) -> None:
    """Equal bytes are not equal headers where they change what the next ones mean."""
    with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
        path = f"/{SERVICE}/ModelInfer".encode()
        block = b"\x83\x86\x44" + bytes((len(path),)) + path + b"\x5f\x10application/grpc"  # path, content-type kept
        sent = PREFACE
        for stream in (1, 3):
            sent += http2(1, block, flags=4, stream=stream) + http2(0, message(infer_bytes()), flags=1, stream=stream)
        # Content type and path of the first block: the third and fourth newest entries.
        sent += http2(1, b"\x83\x86\xc1\xc0", flags=4, stream=5) + http2(0, message(infer_bytes()), flags=1, stream=5)
        connected.sendall(sent)
        found = b""
        while found.count(b"grpc-status") < 3:
            data = connected.recv(65_536)
            assert data, found
            found += data


def test_calls_begun_and_cancelled_without_end(echo: Echoes) -> None:
    """What is known as rapid reset."""
    engine = echo(delay_s=0.05, tokens=100)
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
            flood = b"".join(
                http2(1, BLOCK, flags=5, stream=number) + http2(3, struct.pack(">I", 8), stream=number)
                for number in range(1, 20_000, 2)
            )
            with contextlib.suppress(ConnectionError):
                connected.sendall(PREFACE + flood)
            found = all_there_is(connected)
        assert len(found) < 1_000_000
        assert infer_live(channel)
        until(lambda: engine.active == 0)


def test_more_calls_than_one_connection_may_have(echo: Echoes) -> None:
    engine = echo(delay_s=0.5, tokens=10_000)
    with (
        GatewayThread(route_to(engine.port), grpc=True) as gateway,
        contextlib.closing(Http2Client(gateway.grpc_port)) as client,
    ):
        client.h2.remote_settings.max_concurrent_streams = 10_000  # as if it had not been told
        path = f"/{SERVICE}/ModelStreamInfer"
        streams = [client.call(b"", pseudo(":path", path), end=False) for _ in range(1_030)]
        for stream in streams[1_024:]:
            assert client.answer(stream)[1] == {"reset": "7"}  # refused: to be tried elsewhere
        with channel_to(gateway) as channel:
            assert infer_live(channel)


def test_a_client_that_asks_and_never_reads(echo: Echoes) -> None:
    """Acknowledgements of its pings would pile up."""
    with GatewayThread(route_to(echo().port), grpc=True) as gateway, channel_to(gateway) as channel:
        with socket.socket() as connected:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connected.settimeout(30)
            connected.connect(("127.0.0.1", gateway.grpc_port))
            connected.sendall(PREFACE)
            with pytest.raises(ConnectionError):
                for _ in range(20_000):
                    connected.sendall(http2(6, bytes(8)) * 150)
                    time.sleep(0.001)
        assert infer_live(channel)


def test_a_valid_call_with_bytes_changed(gateway: GatewayThread, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever comes, the next client is answered, and nothing is written to the log as a fault of ours."""
    chance = random.Random(7)
    valid = PREFACE + CALL + http2(0, message(infer_bytes()), flags=1, stream=1) + http2(8, bytes(3) + b"\x09")
    for _ in range(300):
        changed = bytearray(valid)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        cut = changed[: chance.randint(1, len(changed))] if chance.random() < 0.3 else changed
        with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
            connected.sendall(cut)
    with channel_to(gateway) as channel:
        assert infer_live(channel)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# Conversations.


def test_a_stream_takes_a_hundred_requests_in_one_packet(gateway: GatewayThread) -> None:
    with channel_to(gateway) as channel:
        requests = iter([request(b"a b c", id=str(number)) for number in range(300)])
        last = [
            each
            for each in streaming(channel, requests)
            if each.infer_response.parameters["triton_final_response"].bool_param
        ]
        assert {each.infer_response.id for each in last} == {str(number) for number in range(300)}


def test_a_deadline_passes_while_nothing_is_read(echo: Echoes) -> None:
    engine = echo(tokens=100_000, text="word", delay_s=0.001)
    with (
        GatewayThread(route_to(engine.port), grpc=True) as gateway,
        contextlib.closing(Http2Client(gateway.grpc_port, 1_000)) as client,
    ):
        headers = [*pseudo(":path", f"/{SERVICE}/ModelStreamInfer"), ("grpc-timeout", "300m")]
        stream = client.call(message(infer_bytes()), headers, end=False)
        until(lambda: engine.active == 1)
        until(lambda: engine.cancelled == 1)
        assert client.answer(stream)[1]["grpc-status"] == str(Code.DEADLINE_EXCEEDED.value[0])


@pytest.mark.parametrize("end", [True, False])
def test_what_was_sent_is_answered_when_the_server_stops(echo: Echoes, end: bool) -> None:
    """Also what waits for its turn within a call."""
    engine = echo(delay_s=0.02, tokens=10)
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        sent = threading.Event()

        def requests() -> Iterator[Any]:
            for number in range(150):
                yield request(b"a b c", id=str(number))
            sent.set()
            if not end:
                stopped.wait(30)

        stopped = threading.Event()
        call = streaming(channel, requests())
        first = next(call)
        assert sent.wait(30)
        time.sleep(0.2)  # what was sent is there
        stopping = threading.Thread(target=gateway.stop)
        stopping.start()
        answers = [first.infer_response, *[each.infer_response for each in call]]
        stopped.set()
        stopping.join()
        last = [each.id for each in answers if each.parameters["triton_final_response"].bool_param]
        assert sorted(last, key=int) == [str(number) for number in range(150)]


def test_who_watches_is_told_that_the_server_stops(echo: Echoes) -> None:
    with GatewayThread(route_to(echo().port), grpc=True) as gateway, channel_to(gateway) as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        began = time.monotonic()
        gateway.stop()
        assert time.monotonic() - began < 8  # drain_s is ten
        assert [each.status for each in watching] == [health_pb2.HealthCheckResponse.NOT_SERVING]


@pytest.mark.parametrize(
    "usage",
    ['{"prompt_tokens":"x"}', '{"prompt_tokens":-5}', "[1]", '{"prompt_tokens":1e300}', '{"prompt_tokens_details":5}'],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_figures_of_an_engine_that_are_none(script: MakeScript, usage: str, streamed: bool) -> None:
    """The answer is what counts; what cannot be read of its figures is 0."""
    body = b'{"choices":[{"text":"one","finish_reason":"stop"}],"usage":%b}' % usage.encode()
    if streamed:
        event = b"data: %b\n\ndata: [DONE]\n\n" % body
        sent = STREAM + b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
    else:
        sent = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    engine = script(lambda connected: connected.sendall(sent))
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        answers = list(streaming(channel, iter([request(b"x", id="5")])))
        assert answers[-1].infer_response.parameters["triton_final_response"].bool_param


def test_a_stream_where_none_was_asked_for(script: MakeScript, caplog: pytest.LogCaptureFixture) -> None:
    engine = script(lambda connected: connected.sendall(STREAM + b"7\r\ndata: x\r\n0\r\n\r\n"))
    with GatewayThread(route_to(engine.port), grpc=True) as gateway, channel_to(gateway) as channel:
        with pytest.raises(grpc.RpcError) as found:
            infer(channel, request(b"x"))
        assert "in one piece" in found.value.details()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
