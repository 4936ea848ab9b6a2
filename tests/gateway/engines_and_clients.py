"""Engines to put behind a gateway: the echo, and one that sends whatever bytes a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvloop

from pressroom.engines.backends.echo import EchoServer
from pressroom.gateway import Route

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
)
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Keep-Alive: timeout=5, max=100\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def route_to(port: int, *, model: str = "m", **more: Any) -> Route:
    return Route(
        model=model, host="127.0.0.1", port=port, ref=f"{model}:1", digest="sha256-0123abcd", engine="echo", **more
    )


def until(condition: Callable[[], Any], *, seconds: float = 20.0) -> None:
    """Wait for what happens soon; the limit only ends a test that has failed."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def chat(text: str = "hello big world", **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


def post(body: bytes, path: str = "/v1/chat/completions", *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


class Client:
    """A raw connection that reads one response after another."""

    def __init__(self, port: int, *, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", port))
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _more(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self.buffer += data
        return bool(data)

    def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            assert self._more(), f"the connection ended: {self.buffer[-500:]!r}"
        found, _, self.buffer = self.buffer.partition(mark)
        return found

    def response(self, *, body: bool = True) -> tuple[int, dict[str, str], bytes]:
        lines = self.until(b"\r\n\r\n").decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        status = int(lines[0].split()[1])
        if not body:
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            found = b""
            while size := int(self.until(b"\r\n"), 16):
                while len(self.buffer) < size + 2:
                    assert self._more(), "the connection ended within a chunk"
                found, self.buffer = found + self.buffer[:size], self.buffer[size + 2 :]
            assert self.until(b"\r\n") == b""
            return status, headers, found
        if "content-length" not in headers:
            return status, headers, self.rest()
        size = int(headers["content-length"])
        while len(self.buffer) < size:
            assert self._more(), "the connection ended within a body"
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return status, headers, found

    def ask(self, data: bytes) -> tuple[int, dict[str, str], Any]:
        """Send, and return the response with its body as JSON."""
        self.send(data)
        status, headers, body = self.response()
        return status, headers, json.loads(body)

    def rest(self) -> bytes:
        """All there is until the other side closes."""
        while self._more():
            pass
        found, self.buffer = self.buffer, b""
        return found

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Echoes:
    """Echo engines in an event loop of their own."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._servers: list[EchoServer] = []
        self._running = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), daemon=True)
        self._thread.start()
        assert self._running.wait(30)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._running.set()
        await self._over.wait()
        for server in self._servers:
            server.close()

    def __call__(self, *, context: int = 0, **options: Any) -> EchoServer:
        assert self._loop is not None
        server = EchoServer("m", context=context, options=options)
        asyncio.run_coroutine_threadsafe(server.listen(), self._loop).result(30)
        self._servers.append(server)
        return server

    def close(self) -> None:
        assert self._loop is not None and self._over is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)
        assert not self._thread.is_alive()


class Script:
    """An engine that answers the nth connection with the nth function, called with the connected socket after a whole
    request has been read; the last one answers all that follow."""

    def __init__(self, *steps: Callable[[socket.socket], None]) -> None:
        self._steps = steps
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.requests: list[bytes] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            step = self._steps[min(self.connections, len(self._steps) - 1)]
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connected, step), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connected: socket.socket, step: Callable[[socket.socket], None]) -> None:
        connected.settimeout(30)
        with connected, contextlib.suppress(OSError):
            if self.read(connected):
                step(connected)

    def read(self, connected: socket.socket) -> bytes:
        """One whole request; b'' where the connection ended first."""
        got = b""
        while b"\r\n\r\n" not in got:
            data = connected.recv(65536)
            if not data:
                return b""
            got += data
        head, _, body = got.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += connected.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)
