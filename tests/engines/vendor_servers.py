"""Vendors for the tests: llm-katan as a process, and one that fails as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import json
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pressroom.engines._vendor.keys import Key
from pressroom.engines._vendor.options import read
from pressroom.engines._vendor.server import VendorServer
from pressroom.engines._vendor.setting_up import server_for

# llm-katan says the time in its answers, which a test that asks twice cannot use: its clock stands still here.
_KATAN = """
import datetime

class Stopped(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, tzinfo=tz)

datetime.datetime = Stopped
from llm_katan.cli import main
main()
"""
_PATIENCE_S = 60.0


def description(folder: Path, protocol: str, url: str, **more: Any) -> Path:
    """An `endpoint.json` for a model that its vendor calls `upstream-model`."""
    path = folder / "endpoint.json"
    path.write_text(json.dumps({"protocol": protocol, "url": url, "model": "upstream-model", **more}))
    return path


@contextlib.contextmanager
def katan(folder: Path, *options: str) -> Iterator[str]:
    """A running llm-katan that speaks as OpenAI and as Anthropic: its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", _KATAN, "--model", "katan", "--backend", "echo", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--providers", "openai,anthropic", "--max-concurrent", "64"]
    command += ["--stats-file", str(folder / "stats.json"), "--disable-dashboard", *options]
    with (folder / "katan.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            said = (folder / "katan.log").read_text()
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


@dataclass
class Answer:
    """What the scripted vendor answers: `pieces` are bytes to write, or what to do in between: seconds to wait, `hang`
    until the client is gone, `cut` the connection. Without `stream` the one piece has a Content-Length."""

    status: int = 200
    body: Any = None
    pieces: list[Any] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    stream: bool = False
    before: Callable[[], None] | None = None


@dataclass
class Asked:
    """What the scripted vendor was asked."""

    path: str
    headers: dict[str, str]
    body: Any


class ScriptedVendor:
    """A server that gives its answers in order, and the last one from then on."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers)
        self.asked: list[Asked] = []
        self.connections = 0
        self.left = threading.Event()
        self._lock = threading.Lock()
        vendor = self

        class Handler(_Handler):
            script = vendor

        self._server = _Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls is not None else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> ScriptedVendor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def next(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that leave, and those that do not trust a certificate, are what is tested


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: ScriptedVendor

    def setup(self) -> None:
        super().setup()
        self.script.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.script.next(Asked(self.path, headers, json.loads(body)))
        if answer.before is not None:
            answer.before()
        pieces = answer.pieces or [answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()]
        if pieces[0] == "cut":
            self.close_connection = True
            return
        if pieces[0] == "hang":
            self._hang()
            return
        self.send_response(answer.status)
        kind = "text/event-stream" if answer.stream else "application/json"
        for name, value in {"Content-Type": kind, **answer.headers}.items():
            self.send_header(name, value)
        if answer.stream:
            self.send_header("Transfer-Encoding", "chunked")
        elif "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(sum(len(piece) for piece in pieces)))
        self.end_headers()
        for piece in pieces:
            if piece == "cut":
                self.close_connection = True
                return
            if piece == "hang":
                self._hang()
                return
            if isinstance(piece, float):
                time.sleep(piece)
                continue
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.stream else piece)
        if answer.stream:
            self.wfile.write(b"0\r\n\r\n")

    def _hang(self) -> None:
        """Wait until the client is gone."""
        self.close_connection = True
        readable, _, _ = select.select([self.connection], [], [], _PATIENCE_S)
        if readable and not self.connection.recv(1):
            self.script.left.set()


@contextlib.contextmanager
def served(url: str, protocol: str = "openai", *, key: Key | None = None, **options: Any) -> Iterator[str]:
    """The engine for the vendor at `url`, in this process: its address. It answers as `mine`."""
    described: dict[str, Any] = {"protocol": protocol, "url": url, "model": "upstream-model"}
    wanted = read({name: value for name, value in options.items() if "." not in name})
    described.update({name: value for name, value in options.items() if "." in name})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[VendorServer, int]:
        server = server_for("mine", described, wanted, key or Key("the-key-of-the-tests"), slots=64)
        return server, await server.listen()

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def events(*data: Any) -> list[Any]:
    """Pieces of a stream of events, each in a write of its own."""
    return [b"data: " + (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n\n" for each in data]


def ask(url: str, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of an answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=_PATIENCE_S)
    try:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, sent, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


def stream(url: str, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a streamed answer, `[DONE]` as it is."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=_PATIENCE_S)
    try:
        sent = json.dumps({**body, "stream": True})
        connection.request("POST", path, sent, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.headers.get_content_type() == "text/event-stream"
        frames = [frame for frame in response.read().decode().split("\n\n") if frame]
    finally:
        connection.close()
    data = [frame.removeprefix("data: ") for frame in frames]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def get(url: str, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=_PATIENCE_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
