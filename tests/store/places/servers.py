"""A real S3 server on a free port, and a proxy in front of it that has bad days."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of moto's server, in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


class Proxy:
    """Hands connections on to `port`. `faults` are what the next requests meet, one each: `503`, `slow`, `cut` (the
    answer breaks off half-way), `lost` (the server does it and the client never hears), `refuse`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.faults: list[str] = []
        self.seen: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            request = _message(client)
            if not request:
                return
            with self._lock:
                fault = self.faults.pop(0) if self.faults else ""
            self.seen.append(f"{request.split(b' ', 1)[0].decode()} {fault}".strip())
            if fault == "refuse":
                return
            if fault == "503":
                client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                server.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                answer = bytearray()
                while part := server.recv(1 << 16):
                    answer += part
            if fault == "lost":
                return
            if fault == "cut":
                client.sendall(answer[: max(1, len(answer) // 2)])
                return
            if fault == "slow":
                for at in range(0, len(answer), max(1, len(answer) // 5)):
                    client.sendall(answer[at : at + max(1, len(answer) // 5)])
                    time.sleep(0.05)
                return
            # One request a connection: the fault that is meant for the next one must not meet a reused connection.
            client.sendall(bytes(answer).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))


def _message(client: socket.socket) -> bytes:
    """One request, head and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(1 << 16)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    parts = [body]
    count = len(body)
    while count < length:
        part = client.recv(1 << 16)
        if not part:
            return b""
        parts.append(part)
        count += len(part)
    return head + b"\r\n\r\n" + b"".join(parts)
