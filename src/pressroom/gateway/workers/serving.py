"""The server's gateway behind its workers: they have the address, and it what they carry to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pressroom.gateway.binding import url_of
from pressroom.gateway.server import serve
from pressroom.kernel import DeployError, MissingDependencyError

if TYPE_CHECKING:
    from pressroom.gateway.app import Gateway
    from pressroom.gateway.workers.owner import Workers
    from pressroom.kernel import Workspace

_log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
# Beyond its time to drain: what a worker without a server needs to write down.
_ORPHAN_S = 5.0
_POLL_S = 0.05


async def serve_with_workers(
    gateway: Gateway,
    workers: Workers,
    *,
    host: str,
    port: int,
    grpc_port: int | None = None,
    drain_s: float,
    started: Callable[[str], None],
    grpc_started: Callable[[str, str], None] = lambda address, trouble: None,
    stop: asyncio.Event,
) -> None:
    """As `serve`, with `workers` on the address and `gateway` behind them on a port of loopback, where also the server
    asks itself. `started` is called with the URL once all take connections, and before that `grpc_started`, as `serve`
    does.

    Raises:
        PortInUseError: somebody else has the address.
        DeployError: it cannot be bound for another reason, or the workers do not come up.
    """
    public = workers.bind(host, port)
    shown, url = public.getsockname()[0], url_of(public)
    if grpc_port is not None:
        try:
            grpc_started(workers.bind_grpc(host, grpc_port), "")
        except (MissingDependencyError, DeployError) as error:
            _log.warning("there is no gRPC door: %s. %s", error.message, error.hint)
            grpc_started("", f"{error.message}. {error.hint}")
    inner: list[str] = []
    opened, enough = asyncio.Event(), asyncio.Event()

    def answers(url: str) -> None:
        inner.append(url)
        opened.set()

    serving = asyncio.create_task(serve(gateway, host=_LOOPBACK, port=0, drain_s=drain_s, started=answers, stop=enough))
    try:
        await _either(serving, opened)
        if inner:
            own = inner[0]
            # Who may ask, and under which names, is a matter of the address that clients use.
            gateway.bound_to(shown)
            await workers.start((_LOOPBACK, int(own.rpartition(":")[2])))
            started(url)
            await _either(serving, stop)
    finally:
        gateway.leave()
        enough.set()  # what is idle on its way from a worker to here is closed now
        try:
            await workers.stop(drain_s)
        finally:
            await serving


async def _either(task: asyncio.Task[None], event: asyncio.Event) -> None:
    """Wait until the one is done or the other is set."""
    waits = asyncio.create_task(event.wait())
    try:
        both: list[asyncio.Task[None] | asyncio.Task[Literal[True]]] = [task, waits]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waits.cancel()


def wait_for_orphans(workspace: Workspace) -> None:
    """Return when no worker of an earlier server of this workspace lives: one whose server was killed may still answer
    what ran there. For whoever holds the server's lock, before the ledger and the budgets are opened."""
    folder = workspace.dir / "locks"
    deadline = time.monotonic() + workspace.settings.gateway.drain_s + _ORPHAN_S
    for lock in sorted(folder.glob("ledger-worker-*.lock")):
        name = lock.name.removesuffix(".lock")
        if name == "ledger-worker-0":
            continue
        said = False
        while (holder := workspace.lock_holder(name)) is not None:
            pid = holder.get("pid")
            if not said:
                said = True
                _log.info("waiting for process %s, a worker whose server is gone", pid)
            if time.monotonic() >= deadline and isinstance(pid, int) and _is_worker(pid):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)


def _is_worker(pid: int) -> bool:
    import psutil

    try:
        return "pressroom.gateway.workers" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
