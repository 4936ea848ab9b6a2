"""The gRPC door as HTTP/2: another library's client, and calls that are refused."""

from __future__ import annotations

import contextlib
import gzip
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hpack import Encoder

from pressroom.gateway.grpc import inference_pb2 as messages
from pressroom.kernel import GatewaySettings
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Echoes, route_to, until
from .http2_client import (
    HEADERS,
    PROTOCOL,
    Http2Client,
    infer_bytes,
    message,
    pseudo,
    text_of,
    with_header,
)
from .test_grpc_bad_days import PREFACE, http2
from .test_grpc_service import SERVICE, infer, request


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


# Another library's client.


def test_calls_one_after_another_and_side_by_side(client: Http2Client) -> None:
    for number in range(3):
        data, trailers = client.answer(client.call(message(infer_bytes(b"%d" % number))))
        assert text_of(data) == b"%d" % number and trailers["grpc-status"] == "0"
    streams = {client.call(message(infer_bytes(b"s%d" % number))): number for number in range(50)}
    for stream, number in streams.items():
        assert text_of(client.answer(stream)[0]) == b"s%d" % number


@pytest.mark.parametrize("window", [1, 7, 1_000])
def test_an_answer_goes_out_as_the_window_opens(gateway: GatewayThread, window: int) -> None:
    text = b"word " * (20 * window if window > 1 else 10)
    with contextlib.closing(Http2Client(gateway.grpc_port, window)) as client:
        data, trailers = client.answer(client.call(message(infer_bytes(text))), open_windows=window)
        assert text_of(data).split() == text.split() and trailers["grpc-status"] == "0"


def test_a_window_that_shrinks_while_an_answer_waits(gateway: GatewayThread) -> None:
    with contextlib.closing(Http2Client(gateway.grpc_port, 100)) as client:
        stream = client.call(message(infer_bytes(b"word " * 100)))
        until(lambda: any(isinstance(each, h2.events.DataReceived) for each in client.read()))
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
        client.flush()
        until(lambda: any(isinstance(each, h2.events.SettingsAcknowledged) for each in client.read()))
        client.h2.increment_flow_control_window(5_000, stream)
        client.flush()
        data, _ = client.answer(stream)
        assert len(text_of(data).split()) == 100


def test_one_that_does_not_read_does_not_hold_up_the_others(gateway: GatewayThread) -> None:
    with contextlib.closing(Http2Client(gateway.grpc_port, 100)) as client:
        stuck = client.call(message(infer_bytes(b"word " * 200)))
        for number in range(5):
            assert text_of(client.answer(client.call(message(infer_bytes(b"%d" % number))), open_windows=50)[0])
        assert len(text_of(client.answer(stuck, open_windows=500)[0]).split()) == 200


def test_a_message_in_many_frames_and_bytes_one_by_one(gateway: GatewayThread) -> None:
    text = b"long " * 60_000  # over the window of a stream
    with contextlib.closing(Http2Client(gateway.grpc_port)) as client:
        data, _ = client.answer(client.call(message(infer_bytes(text))), open_windows=200_000)
        assert len(text_of(data).split()) == 60_000
    block = Encoder().encode(HEADERS)
    sent = (
        PREFACE
        + http2(1, block[:3], stream=1)
        + http2(9, block[3:9], stream=1)
        + http2(9, block[9:], flags=4, stream=1)
    )
    body = message(infer_bytes())
    sent += b"".join(http2(0, body[at : at + 1], flags=at + 1 == len(body), stream=1) for at in range(len(body)))
    with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in sent:
            connected.sendall(bytes((byte,)))
        found = b""
        while b"grpc-status" not in found:
            found += connected.recv(65_536)
        assert b"hello" in found


def test_padding_priorities_and_frames_of_the_future(gateway: GatewayThread) -> None:
    block = Encoder().encode(HEADERS)
    body = message(infer_bytes())
    sent = (
        PREFACE
        + http2(2, bytes(5), stream=1)
        + http2(200, b"what is this?", flags=255, stream=9)
        + http2(1, b"\x04" + bytes(5) + block + bytes(4), flags=4 | 8 | 32, stream=1)
        + http2(0, b"\x03" + body + bytes(3), flags=1 | 8, stream=1)
    )
    with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
        connected.sendall(sent)
        found = b""
        while b"grpc-status" not in found:
            found += connected.recv(65_536)
        assert b"hello" in found


def test_trailers_of_a_request_end_it(client: Http2Client) -> None:
    stream = client.call(message(infer_bytes()), end=False)
    client.h2.send_headers(stream, [("x-checksum", "1")], end_stream=True)
    client.flush()
    assert text_of(client.answer(stream)[0]) == b"hello"


# Calls that are refused.


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        (pseudo(":path", "/no.Service/Method"), 12, "no method /no.Service/Method"),
        (pseudo(":path", "/no.Service/\u00ff%00"), 12, "no method"),
        (pseudo(":method", "GET"), 13, "POST"),
        (with_header("content-type", "application/json"), 13, "application/grpc"),
        (with_header("grpc-timeout", "soon"), 13, "grpc-timeout"),
        (with_header("grpc-timeout", "123456789S"), 13, "grpc-timeout"),
        (with_header("grpc-encoding", "snappy"), 12, "snappy"),
        (with_header("x-large", "y" * 17_000), 8, "metadata"),
        (with_header("grpc-timeout", "0n"), 4, "deadline"),
    ],
)
def test_a_head_that_is_refused(client: Http2Client, headers: list[tuple[str, str]], status: int, says: str) -> None:
    _, trailers = client.answer(client.call(message(infer_bytes()), headers))
    assert int(trailers["grpc-status"]) == status and says in trailers["grpc-message"]
    assert client.answer(client.call(message(infer_bytes())))[1]["grpc-status"] == "0"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "got none"),
        (message(infer_bytes()) * 2, "got another"),
        (message(infer_bytes())[:-1], "middle of a message"),
        (b"\x00", "middle of a message"),
        (message(infer_bytes(), 1), "does not say how"),
        (message(b"no message at all"), "not a ModelInferRequest"),
    ],
)
def test_a_body_that_is_refused(client: Http2Client, body: bytes, says: str) -> None:
    _, trailers = client.answer(client.call(body))
    assert int(trailers["grpc-status"]) in (3, 13) and says in trailers["grpc-message"]
    assert client.answer(client.call(message(infer_bytes())))[1]["grpc-status"] == "0"


@pytest.mark.parametrize(
    "headers",
    [
        [("x-first", "1"), *HEADERS],  # a pseudo-header after others
        [*HEADERS, ("Upper", "x")],
        [*HEADERS, ("connection", "close")],
        [each for each in HEADERS if each[0] != ":path"],
        [*HEADERS[:4], (":method", "POST"), *HEADERS[4:]],
    ],
)
def test_headers_that_are_malformed(gateway: GatewayThread, headers: list[tuple[str, str]]) -> None:
    encoder = Encoder()
    with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=30) as connected:
        connected.sendall(PREFACE + http2(1, encoder.encode(headers), flags=4, stream=1))
        connected.sendall(http2(1, encoder.encode(HEADERS), flags=4, stream=3))
        connected.sendall(http2(0, message(infer_bytes()), flags=1, stream=3))
        found = b""
        while b"grpc-status" not in found:
            found += connected.recv(65_536)
        assert http2(3, struct.pack(">I", PROTOCOL), stream=1) in found and b"hello" in found


def test_the_reason_is_cut_to_what_a_client_takes(client: Http2Client) -> None:
    """A client that puts twenty megabytes into the name of a tensor is told so in a few bytes."""
    for name in ("a" * (20 << 20), "印" * 3_000, "a" * 20_000):
        asked = messages.ModelInferRequest(model_name="m")
        asked.inputs.add(name=name, datatype="INT32", shape=[1]).contents.int_contents.extend([1, 2])
        _, trailers = client.answer(client.call(message(asked.SerializeToString())), open_windows=1 << 20)
        assert trailers["grpc-status"] == "3" and "1 elements" in trailers["grpc-message"]
        asked = messages.ModelInferRequest(model_name=name)
        _, trailers = client.answer(client.call(message(asked.SerializeToString())))
        assert trailers["grpc-status"] == "5" and len(trailers["grpc-message"]) < 3_000
    assert text_of(client.answer(client.call(message(infer_bytes())))[0]) == b"hello"


@pytest.mark.parametrize(
    "method", ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch", f"{SERVICE}/ModelMetadata"]
)
def test_garbage_and_too_much_for_methods_that_ask_no_model(
    client: Http2Client, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, trailers = client.answer(client.call(message(b"\xff\xff"), pseudo(":path", f"/{method}")))
    assert trailers["grpc-status"] == "3", trailers
    _, trailers = client.answer(client.call(message(bytes(100_000)), pseudo(":path", f"/{method}")))
    assert trailers["grpc-status"] == "8" and "what this method takes" in trailers["grpc-message"]
    assert not caplog.records


# Compression.


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", None)]
)
def test_compressed_requests(client: Http2Client, encoding: str, compress: Any) -> None:
    body = message(compress(infer_bytes()), 1) if compress else message(infer_bytes())
    data, _ = client.answer(client.call(body, with_header("grpc-encoding", encoding)))
    assert text_of(data) == b"hello"


def test_a_small_message_that_is_a_large_one(echo: Echoes) -> None:
    settings = GatewaySettings(grpc_max_message_bytes=100_000)
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    with (
        GatewayThread(route_to(echo().port), settings=settings, grpc=True) as gateway,
        contextlib.closing(Http2Client(gateway.grpc_port)) as client,
    ):
        for body, status in ((bomb, "8"), (bomb[:-9], "8"), (b"no gzip", "13"), (gzip.compress(b"x")[:-9], "13")):
            _, trailers = client.answer(client.call(message(body, 1), with_header("grpc-encoding", "gzip")))
            assert trailers["grpc-status"] == status


@pytest.mark.parametrize("how", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_the_usual_client_compresses(gateway: GatewayThread, how: Any) -> None:
    address = f"127.0.0.1:{gateway.grpc_port}"
    with grpc.insecure_channel(address, compression=how) as channel:
        found = infer(channel, request(b"word " * 1_000))
        assert len(found.outputs[0].contents.bytes_contents[0].split()) == 1_000
