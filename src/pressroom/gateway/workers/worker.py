"""The process of a worker: answers what clients ask of models, within what the server's process lets it.

It is started by the server with a listening socket and one end of a pipe. It tells the server that it is there, waits
until what its predecessor left is in the ledger, takes the routes, and then takes connections. It ends when the server
says so, or is gone: then it takes no more connections and lets what runs come to its end.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from pressroom.gateway._grant import Books
from pressroom.gateway.access import Access
from pressroom.gateway.app import Gateway
from pressroom.gateway.binding import BACKLOG, url_of
from pressroom.gateway.ledger import open_ledger
from pressroom.gateway.money.leases import Ask, Hello, Report
from pressroom.gateway.money.wire import packed, unpacked
from pressroom.gateway.money.worker import Worker as Treasury
from pressroom.gateway.workers._carrying import CarryingListener
from pressroom.gateway.workers._pipe import Message, Pipe
from pressroom.gateway.workers.figures import plain_families
from pressroom.gateway.workers.mirror import MirrorTable
from pressroom.kernel import Keys, PressroomError, Workspace
from pressroom.kernel.interpreter import tuned_for_a_loop

_log = logging.getLogger(__name__)

#: Seconds between two words of a worker to the server: what runs, and that it lives.
BEAT_S = 0.1
_MONEY_BEATS = round(Treasury.beat_s / BEAT_S)
_FIGURES_BEATS = 10
_DRAIN_POLL_S = 0.02
# For the errors that end what ran too long to reach their clients.
_LAST_WORDS_S = 0.5
# Beyond its drain, a process that does not end is ended by the kernel.
_HANGING_S = 20


def main() -> None:
    """Run as a worker; the spec is JSON in `argv[1]`."""
    import uvloop

    spec = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        with (
            Workspace.open(Path(spec["workspace"])) as workspace,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            worker = WorkerProcess(workspace, spec)
            tuned_for_a_loop()
            runner.run(worker.run())
    except PressroomError as error:
        _log.error("worker %s: %s %s", spec["number"], error, error.hint)
        raise SystemExit(1) from None


class WorkerProcess:
    """One worker, from its start to its end."""

    def __init__(self, workspace: Workspace, spec: dict[str, Any]) -> None:
        self._workspace = workspace
        self._number = int(spec["number"])
        self._host = str(spec["host"])
        self._server = (str(spec["server"][0]), int(spec["server"][1]))
        self._control = str(spec["control"])
        self._socket = socket.socket(fileno=int(spec["socket"]))
        self._grpc = socket.socket(fileno=int(spec["grpc"])) if "grpc" in spec else None
        self._pipe_socket = socket.socket(fileno=int(spec["pipe"]))
        self._pipe = Pipe(self._received, self._lost)
        self._table = MirrorTable(self._pipe.send)
        self._treasury = Treasury(secrets.token_hex(8), pid=os.getpid())
        self._ready = False
        self._drain_s = workspace.settings.gateway.drain_s
        self._begin = asyncio.Event()
        self._routed = asyncio.Event()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until the server says that it is enough, or is gone."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._pipe, sock=self._pipe_socket)
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        self._pipe.send(["here", os.getpid()])
        if not await self._either(self._begin):
            return
        with ExitStack() as held:
            gateway = self._made(held)
            # Answered by this process are the requests with these names: their rows say what it had settled.
            # What the names of all requests begin with that this process answers.
            self._pipe.send(["opened", self._treasury.session, [gateway.ids.prefix]])
            if await self._either(self._routed):
                await self._serve(gateway)
            self._pipe.close()

    async def _either(self, event: asyncio.Event) -> bool:
        """Wait for it; False where the end comes first."""
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._stop.wait())]
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return not self._stop.is_set()

    def _made(self, held: ExitStack) -> Gateway:
        workspace, settings = self._workspace, self._workspace.settings
        access = held.enter_context(closing(Access(Keys(workspace), require_key=settings.gateway.require_key)))
        access.renew()
        ledger = open_ledger(workspace, worker=self._number)
        held.callback(ledger.stop)
        ledger.recover(others=False)
        ledger.start()
        control = None
        if self._control:
            module, _, name = self._control.partition(":")
            control = getattr(importlib.import_module(module), name)(workspace)
        gateway = Gateway(
            settings.gateway,
            self._table,
            ready=lambda: self._ready,
            control=control,
            access=access,
            books=Books.of(settings.ledger, self._treasury, ledger),
        )
        held.callback(gateway.close)
        gateway.bound_to(self._host, url_of(self._socket))
        access.start(asyncio.get_running_loop())
        return gateway

    async def _serve(self, gateway: Gateway) -> None:
        loop = asyncio.get_running_loop()
        settings = gateway.settings
        listener = CarryingListener(gateway, body_limit=settings.max_body_bytes, server=self._server)
        server = await loop.create_server(listener.connect, sock=self._socket, backlog=BACKLOG)
        grpc = await gateway.open_grpc(self._host, 0, bound=self._grpc) if self._grpc is not None else None
        self._pipe.send(["listens"])
        beating = loop.create_task(self._beat(gateway))
        await self._stop.wait()
        hanging = threading.Timer(self._drain_s + _HANGING_S, os._exit, (1,))
        hanging.daemon = True
        hanging.start()
        server.close()
        listener.stop()
        closing = loop.create_task(grpc.close(self._drain_s)) if grpc is not None else None
        deadline = loop.time() + self._drain_s
        while listener.connections and loop.time() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
        if closing is not None:
            await closing
        listener.end()
        deadline = loop.time() + _LAST_WORDS_S
        while listener.connections and loop.time() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
        listener.abort()
        beating.cancel()
        self._table.report()
        self._treasury.beat()
        self._pipe.send(["figures", plain_families(gateway.metrics.collect())])

    async def _beat(self, gateway: Gateway) -> None:
        beats = 0
        while True:
            await asyncio.sleep(BEAT_S)
            beats += 1
            try:
                self._table.report()
                if beats % _MONEY_BEATS == 0:
                    self._treasury.beat()
                if beats % _FIGURES_BEATS == 0:
                    self._pipe.send(["figures", plain_families(gateway.metrics.collect())])
            except Exception:  # the edge of a task: the next beat may succeed  # noqa: BLE001
                _log.exception("the server cannot be told how it is here")

    # What the server says.

    def _received(self, message: Message) -> None:
        kind = message[0]
        if kind == "routes":
            self._table.follow(message)
        elif kind == "begin":
            self._begin.set()
        elif kind == "routed":
            self._treasury.opened(lambda message: self._pipe.send(packed(message)))
        elif kind == "ready":
            self._ready = bool(message[1])
        elif kind == "stop":
            self._drain_s = float(message[1])
            self._stop.set()
        else:
            found = unpacked(message)
            if isinstance(found, Hello | Ask | Report):
                raise ValueError("a worker's message from the owner")
            self._treasury.receive(found)
            if self._treasury.known:
                self._routed.set()  # the routes came before

    def _lost(self) -> None:
        """The server's process is gone: so are its engines. What a vendor answers may come to its end."""
        self._treasury.closed()
        self._stop.set()
