"""Runs the load generators: `_load.c` for HTTP/1.1 and `_load_grpc.c` for unary gRPC, compiled into the temporary
folder; without a compiler, the same in Python."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_SHARED = _HERE / "_load_results.h"


def generator(source: str = "_load") -> tuple[list[str], str]:
    """The command of a load generator and what it is called in the results."""
    compiler = shutil.which("cc")
    if compiler is not None and sys.platform == "linux":
        code = _HERE / f"{source}.c"
        digest = hashlib.sha256(code.read_bytes() + _SHARED.read_bytes()).hexdigest()[:16]
        program = Path(tempfile.gettempdir()) / f"pressroom{source.replace('_', '-')}-{os.getuid()}-{digest}"
        if not program.exists():
            fresh = program.with_suffix(f".{os.getpid()}")
            made = subprocess.run([compiler, "-O2", "-o", str(fresh), str(code)], capture_output=True, check=False)
            if made.returncode == 0:
                fresh.replace(program)
        if program.exists():
            return [str(program)], "C, epoll"
    return [sys.executable, __file__], "Python, uvloop"


def run(
    port: int,
    request: bytes,
    *,
    clients: int,
    seconds: float,
    requests: int = 0,
    cores: set[int] | None = None,
    grpc: str = "",
) -> dict[str, Any]:
    """One measurement: counts, `seconds`, and `p50_ms`, `p99_ms`, `ttft_p50_ms`, `ttft_p99_ms`.

    `request` is a whole HTTP request, or the message of a call where `grpc` is its path; with that goes the metadata
    `authorization` that the variable LOAD_AUTHORIZATION has.
    """
    command, _ = generator("_load_grpc" if grpc else "_load")
    with tempfile.NamedTemporaryFile() as file:
        file.write(request)
        file.flush()
        arguments = [*command, str(port), str(clients), str(seconds), str(requests), file.name, *([grpc] * bool(grpc))]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            if cores and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(process.pid, cores)
            assert process.stdout is not None
            said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the load generator ended with {process.returncode}: {' '.join(arguments)}")
    found: dict[str, Any] = json.loads(said)
    return found


class _Client(asyncio.Protocol):
    """The same as a client of `_load.c`: reads the framing of an answer, then sends again."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._buffer = b""
        self._status = 0
        self._left: int | None = None  # bytes of the body, or of the chunk; None while the head comes
        self._chunked = self._in_chunk = self._close = False
        self._sent = self._first = 0.0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def begin(self) -> None:
        load = self._load
        if load.limit and load.started >= load.limit:
            return
        load.started += 1
        self._left, self._buffer, self._chunked, self._in_chunk, self._first = None, b"", False, False, 0.0
        self._sent = load.now()
        self._transport.write(load.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._left is None:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self._read_head(head)
            self._buffer = rest
        if self._buffer and not self._first:
            self._first = self._load.now()
        if self._chunked:
            self._read_chunks()
        elif len(self._buffer) >= (self._left or 0):
            self._finish()

    def _read_head(self, head: bytes) -> None:
        lines = head.lower().split(b"\r\n")
        self._status = int(lines[0].split()[1])
        headers = dict(line.split(b": ", 1) for line in lines[1:])
        self._close = headers.get(b"connection") == b"close"
        self._chunked = headers.get(b"transfer-encoding") == b"chunked"
        self._left = int(headers.get(b"content-length", 0))

    def _read_chunks(self) -> None:
        while True:
            size, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                return
            length = int(size, 16)
            if len(rest) < length + 2:
                return
            self._buffer = rest[length + 2 :]
            if not length:
                self._finish()
                return
            self._load.frames += rest[:length].count(b"data: {")

    def _finish(self) -> None:
        load = self._load
        load.ended(self._sent, self._first, good=self._status == 200)
        if load.over.is_set():
            return
        if self._close:
            self._transport.close()
            load.opening.append(asyncio.ensure_future(load.open()))
        else:
            self.begin()


class _Load:
    def __init__(self, port: int, request: bytes, limit: int) -> None:
        self.now = time.perf_counter  # the clock of uvloop counts whole milliseconds
        self.port, self.request, self.limit = port, request, limit
        self.started = self.frames = self.errors = 0
        self.times: list[float] = []
        self.firsts: list[float] = []
        self.over = asyncio.Event()
        self.opening: list[asyncio.Future[None]] = []

    async def open(self) -> None:
        _, client = await asyncio.get_running_loop().create_connection(lambda: _Client(self), "127.0.0.1", self.port)
        client.begin()

    async def call(self, path: str) -> None:
        """A client of gRPC: one call after another, on a connection of its own."""
        import grpc.aio

        options = [("grpc.use_local_subchannel_pool", 1)]
        said = os.environ.get("LOAD_AUTHORIZATION")
        metadata = (("authorization", said),) if said else ()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
            await channel.channel_ready()
            method: Callable[[bytes], Awaitable[bytes]] = channel.unary_unary(path)
            while not self.over.is_set() and not (self.limit and self.started >= self.limit):
                self.started += 1
                sent = self.now()
                try:
                    good = bool(await method(self.request, metadata=metadata))
                except grpc.aio.AioRpcError:
                    good = False
                self.ended(sent, 0.0, good=good)

    def ended(self, sent: float, first: float, *, good: bool) -> None:
        end = self.now()
        self.errors += not good
        self.times.append((end - sent) * 1e3)
        self.firsts.append(((first or end) - sent) * 1e3)
        if self.limit and len(self.times) >= self.limit:
            self.over.set()


async def _measure(
    port: int, clients: int, seconds: float, limit: int, request: bytes, grpc: str = ""
) -> dict[str, Any]:
    load = _Load(port, request, limit)
    began = load.now()
    if grpc:
        load.opening = [asyncio.ensure_future(load.call(grpc)) for _ in range(clients)]
    else:
        await asyncio.gather(*(load.open() for _ in range(clients)))
    try:
        async with asyncio.timeout(seconds):
            await load.over.wait()
    except TimeoutError:
        load.over.set()  # the usual end of a run that is not counted
    took = load.now() - began
    if grpc:
        await asyncio.gather(*load.opening)

    def quantile(values: list[float], q: float) -> float:
        return sorted(values)[round(q * (len(values) - 1))] if values else 0.0

    return {
        "requests": len(load.times),
        "errors": load.errors,
        "frames": load.frames,
        "seconds": took,
        "p50_ms": statistics.median(load.times) if load.times else 0.0,
        "p99_ms": quantile(load.times, 0.99),
        "ttft_p50_ms": quantile(load.firsts, 0.5),
        "ttft_p99_ms": quantile(load.firsts, 0.99),
    }


if __name__ == "__main__":
    import uvloop

    port, clients, seconds, limit, file, *path = sys.argv[1:]
    measured = uvloop.run(_measure(int(port), int(clients), float(seconds), int(limit), Path(file).read_bytes(), *path))
    print(json.dumps(measured))
