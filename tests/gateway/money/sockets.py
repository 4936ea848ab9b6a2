"""Leases over a Unix socket that both sides find by its name: an owner may end, and another take its place.

The server's own workers have a pipe each and end with it; here both sides may come and go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import cast

import orjson

from pressroom.gateway.money.leases import Ask, FromOwner, FromWorker, Hello, Report
from pressroom.gateway.money.owner import Channel, Owner
from pressroom.gateway.money.wire import packed, unpacked
from pressroom.gateway.money.worker import Worker

_log = logging.getLogger(__name__)

_LENGTH = 4
# Far more than any message has; a longer one is not from here.
_LONGEST = 64 << 20
_TICK_S = 0.25
_AGAIN_S = 0.1


def encode(message: FromWorker | FromOwner) -> bytes:
    """A message with its length before it."""
    body = orjson.dumps(packed(message))
    return len(body).to_bytes(_LENGTH, "big") + body


def decode(body: bytes) -> FromWorker | FromOwner:
    """The message of these bytes, without the length. Raises ValueError where it is none."""
    return unpacked(orjson.loads(body))


class _Messages(asyncio.Protocol):
    """Cuts what comes into messages."""

    def __init__(self) -> None:
        self._coming = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, message: FromWorker | FromOwner) -> None:
        if self.transport is not None:
            self.transport.write(encode(message))

    def data_received(self, data: bytes) -> None:
        coming = self._coming
        coming += data
        try:
            while len(coming) >= _LENGTH:
                end = _LENGTH + int.from_bytes(coming[:_LENGTH], "big")
                if end > _LONGEST:
                    raise ValueError(f"a message of {end} bytes")
                if len(coming) < end:
                    return
                body = bytes(coming[_LENGTH:end])
                del coming[:end]
                self.received(decode(body))
        except (ValueError, AttributeError) as error:
            _log.error("the other side of the socket of budgets does not speak its language: %s", error)
            coming.clear()
            if self.transport is not None:
                self.transport.abort()

    def received(self, message: FromWorker | FromOwner) -> None:
        raise NotImplementedError


class _FromWorkers(_Messages):
    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self._owner = owner
        self._channel: Channel | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._channel = self._owner.open(self.send)

    def received(self, message: FromWorker | FromOwner) -> None:
        if not isinstance(message, Hello | Ask | Report):
            raise ValueError("an owner's message from a worker")
        assert self._channel is not None
        self._channel.receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._channel is not None:
            self._channel.close()


class OwnerSocket:
    """Lets workers reach `owner` at the socket `path`; on the event loop."""

    def __init__(self, owner: Owner, path: Path) -> None:
        self._owner = owner
        self._path = path
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; whatever lies at `path` of an owner that is gone makes way. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        # Made under another name, so that nobody connects before it is private.
        made = self._path.with_name(f"{self._path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            made.unlink()
        self._server = await loop.create_unix_server(lambda: _FromWorkers(self._owner), str(made))
        made.chmod(0o600)
        made.rename(self._path)
        self._ticking = loop.create_task(self._tick())

    async def stop(self) -> None:
        """End; workers go on within their leases."""
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
        if self._server is not None:
            self._server.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                self._owner.tick()
            except Exception:  # the edge of a task: leases that cannot be taken back now can be later  # noqa: BLE001
                _log.exception("leases cannot be looked after")


class _FromOwner(_Messages):
    def __init__(self, worker: Worker, lost: asyncio.Event) -> None:
        super().__init__()
        self._worker = worker
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._worker.opened(self.send)

    def received(self, message: FromWorker | FromOwner) -> None:
        if isinstance(message, Hello | Ask | Report):
            raise ValueError("a worker's message from the owner")
        self._worker.receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._worker.closed()
        self._lost.set()


class WorkerSocket:
    """Keeps `worker` connected to the owner at the socket `path`, and its heart beating; on the event loop."""

    def __init__(self, worker: Worker, path: Path) -> None:
        self._worker = worker
        self._path = path
        self._tasks: list[asyncio.Task[None]] = []
        self._transport: asyncio.BaseTransport | None = None

    def start(self) -> None:
        """Begin to connect, and again whenever the connection ends."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._connect()), loop.create_task(self._beat())]

    async def stop(self) -> None:
        """End; what the worker has is given back once its process has ended."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._transport is not None:
            self._transport.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            lost = asyncio.Event()
            try:
                self._transport, _ = await loop.create_unix_connection(
                    lambda lost=lost: _FromOwner(self._worker, lost),  # type: ignore[misc]
                    str(self._path),
                )
                await lost.wait()
            except OSError:
                _log.debug("the owner of the budgets is not there", exc_info=True)
            await asyncio.sleep(_AGAIN_S)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._worker.beat_s)
            try:
                self._worker.beat()
            except Exception:  # the edge of a task: the next beat may succeed  # noqa: BLE001
                _log.exception("the owner of the budgets cannot be told what was spent")


def process_alive(pid: int) -> bool:
    """Whether a process of this number runs: for `Owner`. One that has ended, and waits to be asked how, does not."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
