"""A connection that sends whatever bytes a test wants."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .serving import HubServer


class Wire:
    def __init__(self, hub: HubServer, *, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", hub.port))
        self._read = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, line: str, key: str = "", **headers: str) -> None:
        """Send the head of a request."""
        lines = [f"{line} HTTP/1.1", "Host: localhost"]
        if key:
            lines.append(f"Authorization: Bearer {key}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def ask(self, line: str, body: bytes = b"", key: str = "", **headers: str) -> tuple[int, dict[str, str], bytes]:
        self.head(line, key, Content_Length=str(len(body)), **headers)
        self.send(body)
        return self.answer()

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer, which must say its length."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"])
        while len(self._read) < length:
            self._more()
        body, self._read = self._read[:length], self._read[length:]
        return int(first.split()[1]), headers, body

    def ended(self) -> bool:
        """Whether the other side closes without another byte."""
        try:
            return self._read == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _more(self) -> None:
        data = self.socket.recv(1 << 20)
        assert data, f"the connection ended after {self._read[:200]!r}"
        self._read += data

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()


def lines(*items: Any) -> bytes:
    """A commit's body."""
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


HEADER = {"key": "header", "value": {"summary": "s", "description": ""}}


def until(condition: Callable[[], Any], *, seconds: float = 60.0) -> None:
    """Wait for what happens soon; the limit only ends a test that has failed."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
