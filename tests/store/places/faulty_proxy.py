"""A proxy before a web server that does to requests what networks and busy servers do.

with FaultyProxy(port of the server) as proxy:
    proxy.do(answer(503), when="PUT", times=3)
    ...  # talk to proxy.url
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Request:
    """A whole request as the client sent it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def text(self) -> str:
        return f"{self.method} {self.target}"


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


# Only ends a test that fails.
_PATIENCE_S = 60.0

# What becomes of a request: it gets the request, and a function that asks the server and can be called more than once.
Fault = Callable[["Handler", Request, Callable[[], Answer]], None]


def answer(status: int, code: str = "SlowDown", *, headers: tuple[tuple[str, str], ...] = ()) -> Fault:
    """The server does not see the request; the client gets this."""

    def fault(handler: Handler, request: Request, ask: Callable[[], Answer]) -> None:
        body = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
        handler.send(Answer(status, [("Content-Type", "application/xml"), *headers], body), request)

    return fault


def cut_before(handler: Handler, request: Request, ask: Callable[[], Answer]) -> None:
    """The connection breaks before the server sees the request."""
    handler.cut()


def cut_after(handler: Handler, request: Request, ask: Callable[[], Answer]) -> None:
    """The server does what it was asked, and the connection breaks before its answer."""
    ask()
    handler.cut()


def cut_within(handler: Handler, request: Request, ask: Callable[[], Answer]) -> None:
    """The connection breaks in the middle of the answer's body."""
    handler.send(ask(), request, share=0.5)
    handler.cut()


def twice(handler: Handler, request: Request, ask: Callable[[], Answer]) -> None:
    """The server gets the request two times, as after a retry on the way; the client gets the second answer."""
    ask()
    handler.send(ask(), request)


def told_twice(handler: Handler, request: Request, ask: Callable[[], Answer]) -> None:
    """The client gets the answer two times."""
    given = ask()
    handler.send(given, request)
    handler.send(given, request)


def shorter(handler: Handler, request: Request, ask: Callable[[], Answer]) -> None:
    """A body that ends early, and says that this is all."""
    given = ask()
    handler.send(Answer(given.status, given.headers, given.body[: len(given.body) // 2]), request)


def slow(event: threading.Event) -> Fault:
    """The server is asked only once `event` is set."""

    def fault(handler: Handler, request: Request, ask: Callable[[], Answer]) -> None:
        event.wait(_PATIENCE_S)
        handler.send(ask(), request)

    return fault


def stalled(handler: Handler, request: Request, ask: Callable[[], Answer]) -> None:
    """No answer ever; the server does not see the request."""
    handler.server.proxy.over.wait(_PATIENCE_S)
    handler.cut()


@dataclass
class _Plan:
    fault: Fault
    when: str
    times: int


class FaultyProxy:
    """Listens on a free port of loopback. `seen` are the requests so far, as 'METHOD target'."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        assert parts.hostname is not None and parts.port is not None
        self.server = (parts.hostname, parts.port)
        self.seen: list[str] = []
        self.over = threading.Event()
        self._plans: list[_Plan] = []
        self._lock = threading.Lock()
        self._listener = _Listener(("127.0.0.1", 0), Handler)
        self._listener.proxy = self
        self._thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    def do(self, fault: Fault, *, when: str = "", times: int = 1) -> None:
        """Let it happen to the next `times` requests whose 'METHOD target' has the parts of `when` in it, in order.

        `when` is cut at its asterisks: "PUT*partNumber=2".
        """
        with self._lock:
            self._plans.append(_Plan(fault, when, times))

    def forget(self) -> None:
        """Let everything pass again."""
        with self._lock:
            self._plans.clear()

    def count(self, when: str) -> int:
        """How many of the requests so far had `when` in 'METHOD target'."""
        with self._lock:
            return sum(_matches(text, when) for text in self.seen)

    @property
    def planned_left(self) -> int:
        """How often something is still to happen."""
        with self._lock:
            return sum(plan.times for plan in self._plans)

    def planned(self, request: Request) -> Fault | None:
        with self._lock:
            self.seen.append(request.text)
            for plan in self._plans:
                if plan.times and _matches(request.text, plan.when):
                    plan.times -= 1
                    return plan.fault
        return None

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()


def _matches(text: str, when: str) -> bool:
    return re.search(".*".join(re.escape(part) for part in when.split("*")), text) is not None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True  # a client keeps its idle connections open for longer than a test takes
    proxy: FaultyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for head and body: in two, the second waits for the other side to have seen the first
    server: _Listener

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, list(self.headers.items()), body)

        def ask() -> Answer:
            return _asked(self.server.proxy.server, request)

        fault = self.server.proxy.planned(request)
        if fault is None:
            self.send(ask(), request)
        else:
            fault(self, request, ask)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def send(self, answer: Answer, request: Request, *, share: float = 1.0) -> None:
        """The answer, or so much of its body."""
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        lengths = [value for name, value in answer.headers if name.lower() == "content-length"]
        length = lengths[0] if request.method == "HEAD" and lengths else str(len(answer.body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(answer.body[: int(len(answer.body) * share)])
        self.wfile.flush()

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


def _asked(server: tuple[str, int], request: Request) -> Answer:
    connection = http.client.HTTPConnection(*server, timeout=60)
    try:
        connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers:
            if name.lower() != "connection":
                connection.putheader(name, value)
        connection.endheaders(request.body)
        got = connection.getresponse()
        return Answer(got.status, got.getheaders(), got.read())
    finally:
        connection.close()
