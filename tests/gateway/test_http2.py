"""The gRPC door as HTTP/2: another library's client, and clients that do not keep to the protocol."""

from __future__ import annotations

import contextlib
import gzip
import logging
import random
import socket
import struct
import time
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
from .test_grpc_bad_days import PREFACE, all_there_is, channel_to, http2, infer_live, streaming
from .test_grpc_service import SERVICE, Code, infer, request

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", f"/{SERVICE}/ModelInfer"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
PROTOCOL, FLOW, CLOSED, SIZE, CALM = 1, 3, 5, 6, 11


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + struct.pack(">I", len(data)) + data


class Http2Client:
    """A connection with `h2` at its end. Windows are opened as `window` says, and no further."""

    def __init__(self, port: int, window: int = 65_535) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        initial = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values=initial)
        self.h2.initiate_connection()
        self.events: list[Any] = []
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def call(self, data: bytes, headers: list[tuple[str, str]] = HEADERS, *, end: bool = True) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers)
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.read()
                continue
            self.h2.send_data(stream, data[:room])
            data = data[room:]
            self.flush()
        if end:
            self.h2.end_stream(stream)
        self.flush()
        return stream

    def read(self) -> list[Any]:
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionError("closed")
        found = list(self.h2.receive_data(data))
        self.events += found
        self.flush()
        return found

    def answer(self, stream: int, *, open_windows: int = 0) -> tuple[bytes, dict[str, str]]:
        """The bytes of an answer, and its trailers. With `open_windows`, so many bytes more are allowed each time."""
        data, trailers = b"", {}
        while True:
            for event in [each for each in self.events if getattr(each, "stream_id", None) == stream]:
                self.events.remove(event)
                if isinstance(event, h2.events.DataReceived):
                    data += event.data
                elif isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived):
                    trailers |= dict(event.headers)
                elif isinstance(event, h2.events.StreamEnded):
                    return data, trailers
                elif isinstance(event, h2.events.StreamReset):
                    return data, {"reset": str(int(event.error_code))}
            if open_windows and self.h2.remote_flow_control_window(stream) == 0:
                self.h2.increment_flow_control_window(open_windows, stream)
                self.h2.increment_flow_control_window(open_windows)
                self.flush()
            self.read()

    def close(self) -> None:
        self.socket.close()


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


def infer_bytes(text: bytes = b"hello") -> bytes:
    data: bytes = request(text).SerializeToString()
    return data


def text_of(data: bytes) -> bytes:
    assert data[0] == 0 and int.from_bytes(data[1:5], "big") == len(data) - 5
    found: bytes = messages.ModelInferResponse.FromString(data[5:]).outputs[0].contents.bytes_contents[0]
    return found


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


def with_header(name: str, value: str) -> list[tuple[str, str]]:
    return [each for each in HEADERS if each[0] != name] + [(name, value)]


def pseudo(name: str, value: str) -> list[tuple[str, str]]:
    return [(name, value) if each[0] == name else each for each in HEADERS]


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
