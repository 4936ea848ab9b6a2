"""A client of HTTP/2 with another library at its end, for the tests of the gRPC door."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from pressroom.gateway.grpc import inference_pb2 as messages

from .test_grpc_service import SERVICE, request

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
        with contextlib.suppress(h2.exceptions.StreamClosedError):  # refused before all of it was sent
            self._send(stream, data, end=end)
        self.flush()
        return stream

    def _send(self, stream: int, data: bytes, *, end: bool) -> None:
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


def infer_bytes(text: bytes = b"hello") -> bytes:
    data: bytes = request(text).SerializeToString()
    return data


def text_of(data: bytes) -> bytes:
    assert data[0] == 0 and int.from_bytes(data[1:5], "big") == len(data) - 5
    found: bytes = messages.ModelInferResponse.FromString(data[5:]).outputs[0].contents.bytes_contents[0]
    return found


def with_header(name: str, value: str) -> list[tuple[str, str]]:
    return [each for each in HEADERS if each[0] != name] + [(name, value)]


def pseudo(name: str, value: str) -> list[tuple[str, str]]:
    return [(name, value) if each[0] == name else each for each in HEADERS]
