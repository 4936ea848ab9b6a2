"""A server with workers, in a thread of the test or in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from pressroom.gateway import Bookkeeping, Gateway, Route
from pressroom.gateway.batches import BatchDoor
from pressroom.gateway.workers import SharedTable, Workers, serve_with_workers, wait_for_orphans
from pressroom.kernel import Workspace
from tests.gateway.engines_and_clients import route_to


class House:
    """The server's own process: gateway, books and workers; from `start` to `close`."""

    def __init__(
        self,
        root: Path,
        *routes: Route,
        count: int = 2,
        port: int = 0,
        drain_s: float = 2.0,
        grpc_port: int | None = None,
    ) -> None:
        self.workspace = Workspace.open(root)
        wait_for_orphans(self.workspace)
        self.books = Bookkeeping(self.workspace)
        self.table = SharedTable()
        for route in routes:
            self.table.set(route)
        self.ready = True
        self.url = ""
        self._count, self._port, self._drain_s = count, port, drain_s
        self._grpc_port = grpc_port
        self.grpc = self.grpc_trouble = ""
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> House:
        self._thread.start()
        while not self._opened.wait(0.05):
            if not self._thread.is_alive():
                failure, self._failure = self._failure, None
                self.close()
                raise failure or AssertionError("it ended before it opened")
        return self

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def on_loop(self, work: Callable[[], Any]) -> Any:
        async def do() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(do(), self.loop).result(30)

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self.books.close()
        self.workspace.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # said by `close`
            self._failure = error

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        batches = BatchDoor(self.workspace, credential=self.books.access.internal())
        self.gateway = Gateway(
            self.workspace.settings.gateway,
            self.table,
            access=self.books.access,
            books=self.books.books,
            batches=batches,
        )
        self.books.start(self.table)
        self.workers = Workers(
            self.workspace,
            self.table,
            self.books.treasury,
            count=self._count,
            ready=lambda: self.ready,
            budgets=self.books.budgets,
        )
        self.books.renewed = self.workers.renew
        self.gateway.metrics.joined = self.workers.figures.joined

        def started(url: str) -> None:
            self.url = url
            self._opened.set()

        await serve_with_workers(
            self.gateway,
            self.workers,
            host="127.0.0.1",
            port=self._port,
            grpc_port=self._grpc_port,
            drain_s=self._drain_s,
            started=started,
            grpc_started=lambda address, trouble: self.__dict__.update(grpc=address, grpc_trouble=trouble),
            stop=self._stop,
        )


def main() -> None:
    """As a process: `houses.py ROOT PORT ENGINE`, the port of an engine; says where it answers, and serves for ever."""
    root, port, engine = sys.argv[1:]
    house = House(Path(root), route_to(int(engine)), port=int(port)).start()
    print(json.dumps({"url": house.url, "pid": os.getpid(), "workers": house.workers.pids}), flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
