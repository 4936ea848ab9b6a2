"""Bodies that are taken as they come, answers of a known length, and connections beyond what there is room for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pressroom.gateway import Gateway, _http_server
from pressroom.kernel import GatewaySettings, PressroomError
from pressroom.registry.hub import Answer, HubRequest, Later, Sink
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, until

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Counted(Sink):
    """Answers with what it was sent, and keeps how it came."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.data = b""
        self.ended = ""
        service.sinks.append(self)

    def write(self, data: bytes) -> None:
        self.service.gate.wait(60)
        self.data += data
        if b"refuse" in data:
            raise PressroomError("this is refused")

    def finish(self) -> Answer:
        self.ended = "finished"
        return Answer(body=b"%d" % len(self.data), headers={"content-type": "text/plain"})

    def abort(self) -> None:
        self.ended = self.ended or "aborted"


class Service:
    """A small service behind the hub's door: /api/echo takes a body, /api/later answers late, the rest at once."""

    def __init__(self) -> None:
        self.sinks: list[Counted] = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def begin(self, request: HubRequest) -> Answer | Sink | Later:
        match request.path:
            case "/api/echo":
                return Counted(self)
            case "/api/later":
                return Later(lambda: Answer(body=b"late"))
            case "/api/broken":
                raise RuntimeError("a fault of the service")
            case "/api/long":
                return Answer(stream=Ten(), length=10)
            case "/api/short":
                return Answer(stream=Ten(), length=11)
        return Answer(status=404, body=b"no")

    def refusal(self, error: PressroomError) -> Answer:
        return Answer(status=400, body=error.message.encode())

    def close(self) -> None:
        self.closed = True


class Ten:
    def __init__(self) -> None:
        self.left = b"0123456789"

    def read(self, size: int) -> bytes:
        data, self.left = self.left[:3], self.left[3:]
        return data

    def close(self) -> None: ...


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def gateway(service: Service) -> Iterator[GatewayThread]:
    running = GatewayThread(settings=GatewaySettings(max_body_bytes=2_000))
    running.gateway = Gateway(running.gateway.settings, running.routes, hub=service)
    with running:
        yield running
    assert service.closed


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def test_a_body_of_any_length(gateway: GatewayThread) -> None:
    size = 30_000_000  # far beyond max_body_bytes
    with Client(gateway.port) as client:
        client.send(head("/api/echo", f"Content-Length: {size}") + bytes(size))
        assert client.response()[2] == b"30000000"
        client.send(head("/api/echo", "Transfer-Encoding: chunked"))
        for _ in range(100):
            client.send(b"2710\r\n" + bytes(10_000) + b"\r\n")
        client.send(b"0\r\n\r\n" + LIVE)
        assert client.response()[2] == b"1000000"
        assert client.response()[0] == 200
        client.send(head("/api/echo", "Content-Length: 0") + head("/api/echo", "Content-Length: 3") + b"abc")
        assert client.response()[2] == b"0" and client.response()[2] == b"3"


def test_a_client_waits_while_its_body_is_not_taken(gateway: GatewayThread, service: Service) -> None:
    service.gate.clear()
    with Client(gateway.port) as client:
        client.socket.setblocking(False)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        sent = client.socket.send(head("/api/echo", "Content-Length: 100000000"))
        until(lambda: service.sinks)
        quiet = 0
        while quiet < 200:  # until nothing more is taken for a while
            try:
                sent += client.socket.send(bytes(1 << 20))
                quiet = 0
            except BlockingIOError:
                quiet += 1
                threading.Event().wait(0.005)
        assert sent < 30_000_000
        service.gate.set()
        client.socket.setblocking(True)
        client.send(bytes(100_000_000 + len(head("/api/echo", "Content-Length: 100000000")) - sent))
        assert client.response()[2] == b"100000000"


def test_a_body_that_is_refused_in_the_middle(gateway: GatewayThread, service: Service) -> None:
    with Client(gateway.port) as client:
        client.send(head("/api/echo", "Content-Length: 20000000") + b"refuse" + bytes(15_000_000))
        status, headers, body = client.response()
        assert status == 400 and body == b"this is refused" and headers["connection"] == "close"
    until(lambda: service.sinks[0].ended == "aborted")


@pytest.mark.parametrize("end", [b"zz\r\n", b""])
def test_a_body_that_breaks_off(gateway: GatewayThread, service: Service, end: bytes) -> None:
    with Client(gateway.port) as client:
        client.send(head("/api/echo", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n")
        until(lambda: service.sinks)
        if end:
            client.send(end)
            assert client.response()[0] == 400
    until(lambda: service.sinks[0].ended == "aborted")
    assert b"finished" not in service.sinks[0].data


def test_a_body_that_stops_coming(gateway: GatewayThread, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http_server, "_BODY_S", 0.1)
    with Client(gateway.port) as client:
        client.send(head("/api/echo", "Content-Length: 10") + b"abc")
        assert client.response()[0] == 408
    until(lambda: service.sinks[0].ended == "aborted")


def test_a_slow_service_is_not_a_slow_client(
    gateway: GatewayThread, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http_server, "_BODY_S", 0.1)
    service.gate.clear()
    with Client(gateway.port) as client:
        client.send(head("/api/echo", "Content-Length: 3") + b"abc")
        until(lambda: service.sinks)
        threading.Event().wait(1.2)  # two looks at the deadlines
        service.gate.set()
        assert client.response()[2] == b"3"


def test_an_answer_before_the_body_has_come(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client:
        client.send(head("/api/nothing", "Content-Length: 1000000"))
        status, headers, _ = client.response()
        assert status == 404 and headers["connection"] == "close"
        client.send(bytes(1_000_000))  # it is still taken, so that the answer is not lost
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == b""


def test_whoever_asks_first_is_told_before_it_sends(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client:
        client.send(head("/api/echo", "Content-Length: 3", "Expect: 100-continue"))
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        client.send(b"abc")
        assert client.response()[2] == b"3"


def test_answers_of_a_known_length(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client:
        client.send(head("/api/long", method="GET") + head("/api/later", method="GET") + LIVE)
        status, headers, body = client.response()
        assert (status, headers["content-length"], body) == (200, "10", b"0123456789")
        assert client.response()[2] == b"late" and client.response()[0] == 200
        client.send(head("/api/long", method="HEAD"))
        assert b"content-length: 10" in client.until(b"\r\n\r\n")
        client.send(LIVE)
        assert client.response()[0] == 200


def test_an_answer_that_ends_too_early_is_cut(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client:
        client.send(head("/api/short", method="GET"))
        assert b"content-length: 11" in client.until(b"\r\n\r\n")
        assert client.rest() == b"0123456789"  # and then the connection ends


def test_a_fault_of_the_service_is_its_own(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client:
        client.send(head("/api/broken", method="GET"))
        status, _, body = client.response()
        assert status == 500 and b"log says why" in body
        client.send(LIVE)
        assert client.response()[0] == 200


def test_no_more_connections_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand that say nothing: the ones that are idle longest make room, and who works is not disturbed."""
    monkeypatch.setattr(_http_server, "connections_allowed", lambda: 50)
    with GatewayThread() as gateway:
        idle: list[Any] = []
        with Client(gateway.port) as working:
            working.send(head("/v1/chat/completions", "Content-Length: 100") + b"{")
            idle += [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(1_000)]
            with Client(gateway.port) as another:
                another.send(LIVE)
                assert another.response()[0] == 200
            working.send(b" " * 98 + b"}")
            assert working.response()[0] == 400
        for each in idle:
            each.close()
