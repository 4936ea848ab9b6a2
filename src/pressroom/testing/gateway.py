"""A gateway on a free port, in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from pressroom.gateway import Books, Gateway, Route, RouteTable, serve
from pressroom.gateway.access import Access
from pressroom.gateway.batches import BatchDoor
from pressroom.gateway.control import ModelControl
from pressroom.kernel import GatewaySettings
from pressroom.registry.hub.base import HubService

__all__ = ["GatewayThread"]

T = TypeVar("T")
_START_S = 30.0


class GatewayThread:
    """Serves `routes` while entered: `url` and `port` say where (with `grpc`, `grpc_port` too), `on_loop` looks inside,
    `stop` ends it."""

    def __init__(
        self,
        *routes: Route,
        settings: GatewaySettings | None = None,
        ready: Callable[[], bool] | None = None,
        hub: HubService | None = None,
        batches: BatchDoor | None = None,
        control: ModelControl | None = None,
        access: Access | None = None,
        books: Books | None = None,
        grpc: bool = False,
    ) -> None:
        self.routes = RouteTable()
        for route in routes:
            self.routes.set(route)
        self.gateway = Gateway(
            settings or GatewaySettings(),
            self.routes,
            ready=ready,
            hub=hub,
            batches=batches,
            control=control,
            access=access,
            books=books,
        )
        self.grpc_port = 0
        self._with_grpc = grpc
        self.url = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])

    def on_loop(self, look: Callable[[], T]) -> T:
        """What `look` returns, called in the gateway's thread."""
        assert self._loop is not None
        found: Future[T] = Future()

        def run() -> None:
            try:
                found.set_result(look())
            except Exception as error:  # handed to whoever asked  # noqa: BLE001
                found.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return found.result(_START_S)

    def stop(self, *, wait: bool = True) -> None:
        """Ask it to stop; with `wait`, return when it has."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        if wait:
            self._thread.join()

    def __enter__(self) -> GatewayThread:
        self._thread.start()
        self.url = self._started.result(_START_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        import uvloop

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> Any:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await serve(
            self.gateway,
            port=0,
            grpc_port=0 if self._with_grpc else None,
            started=self._started.set_result,
            grpc_started=self._grpc_started,
            stop=self._stop,
        )

    def _grpc_started(self, address: str, trouble: str) -> None:
        assert address, trouble
        self.grpc_port = int(address.rpartition(":")[2])
