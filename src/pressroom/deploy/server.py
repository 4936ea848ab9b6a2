"""The one server process of a workspace: the gateway, and the reconciler that keeps the engines behind it.

It runs in a thread of the process that starts it (`press up`, `press serve`), or detached (`press deploy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pressroom.deploy.base import MAIN
from pressroom.deploy.deployments import SERVER_LOCK, Deployments
from pressroom.kernel import DeployError, NotFoundError, PressroomError, Workspace, plugins, settings

if TYPE_CHECKING:
    from pressroom.gateway import Bookkeeping, Gateway, Route
    from pressroom.gateway.workers import SharedTable

_INFO = "server.json"
# A detached server opens its gateway in well under a second; imports on a busy machine take longer.
_DETACHED_START_S = 60.0
_STOP_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """A running server: its process, where its gateway answers, and where its gRPC door is ('' where there is none, and
    then `grpc_trouble` says why)."""

    pid: int
    url: str
    grpc: str = ""
    grpc_trouble: str = ""


def running_server(workspace: Workspace) -> ServerInfo | None:
    """The server of this workspace, or None where none runs."""
    holder = workspace.lock_holder(SERVER_LOCK)
    if holder is None:
        return None
    try:
        found = ServerInfo(**json.loads((workspace.dir / "run" / _INFO).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # it is coming up, or was killed while it did
    # The file of a server that was killed stays behind: it counts only for the process that holds the lock.
    return found if found.pid == holder.get("pid") else None


class Server:
    """Gateway and reconciler, from `start` (or entering `with`) to `stop`."""

    def __init__(self, workspace: Workspace, *, host: str | None = None, port: int | None = None) -> None:
        from pressroom.deploy.reconciler import Reconciler
        from pressroom.deploy.survey import Surveyor
        from pressroom.gateway import RouteTable
        from pressroom.gateway.workers import SharedTable

        gateway = workspace.settings.gateway
        self._workspace = workspace
        self._host = gateway.host if host is None else host
        self._port = gateway.port if port is None else port
        cluster = plugins.load("pressroom.deploy.backends", "pressroom.deploy", "local")(workspace)
        #: The processes that answer; 1: this one.
        self._count = gateway.workers
        self._routes = SharedTable() if self._count > 1 else RouteTable()
        deployments = self._deployments = Deployments(workspace)
        self._surveyor = Surveyor(deployments, workspace)
        self._reconciler = Reconciler(
            deployments, cluster, self._routes, workspace.settings.engines, surveyor=self._surveyor
        )
        self._gateway: Gateway | None = None
        self._bookkeeping: Bookkeeping | None = None
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._opened = threading.Event()
        self._ended = threading.Event()
        self._held = ExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_gateway: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self.url = ""
        self.grpc = ""
        self.grpc_trouble = ""

    def start(self) -> None:
        """Open the gateway and begin to bring about the wishes; returns when the gateway answers.

        Raises:
            LockedError: this workspace has a server already.
            PortInUseError: somebody else has the address.
        """
        self._held.enter_context(self._workspace.lock(SERVER_LOCK, purpose="serve this workspace"))
        try:
            self._mount()
            self._thread.start()
            while not self._opened.wait(0.1):
                if self._ended.is_set():
                    raise self._failure or DeployError("the gateway ended before it opened")
            info = ServerInfo(pid=os.getpid(), url=self.url, grpc=self.grpc, grpc_trouble=self.grpc_trouble)
            path = self._workspace.path("run") / _INFO
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(asdict(info)), encoding="utf-8")
            temporary.replace(path)
            self._reconciler.start()
        except BaseException:
            self._held.close()
            raise

    def ended(self) -> bool:
        """Whether the gateway has ended by itself; raises what ended it."""
        if not self._ended.is_set():
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def stop(self) -> None:
        """Close the gateway (running requests get their time to finish), then stop every engine."""
        if self._loop is not None and self._stop_gateway is not None and not self._ended.is_set():
            self._loop.call_soon_threadsafe(self._stop_gateway.set)
            self._thread.join()
        self._surveyor.close()
        self._reconciler.stop()
        (self._workspace.dir / "run" / _INFO).unlink(missing_ok=True)
        self._held.close()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _mount(self) -> None:
        """Make the gateway, with the hub, the batches and the books: each takes what lies in its folder for its own, so
        only one server has it."""
        from pressroom.deploy.control import Control
        from pressroom.gateway import Bookkeeping, Gateway
        from pressroom.gateway.batches import BatchDoor
        from pressroom.gateway.workers import wait_for_orphans
        from pressroom.registry.hub import Hub

        wait_for_orphans(self._workspace)
        self._bookkeeping = self._held.enter_context(closing(Bookkeeping(self._workspace, overrides=self._price_said)))
        self._routes.pricing = self._bookkeeping.price
        access = self._bookkeeping.access
        self._gateway = Gateway(
            self._workspace.settings.gateway,
            self._routes,
            ready=self._reconciler.ready,
            hub=self._held.enter_context(closing(Hub(self._workspace))),
            batches=self._held.enter_context(closing(BatchDoor(self._workspace, credential=access.internal()))),
            control=Control(self._workspace),
            access=access,
            books=self._bookkeeping.books,
        )

    def _price_said(self, route: Route) -> dict[str, Any] | None:
        """What the deployment of a route says that its tokens cost."""
        try:
            wish = self._deployments.get(route.model)
        except NotFoundError:
            return None
        # The new version of a route is a branch of its own while it is watched: `own~new`.
        name = route.branch.partition("~")[0] or MAIN
        ways = wish.ways
        return next((way.price for way in ways if way.name == name), ways[0].price if len(ways) == 1 else None)

    def _run(self) -> None:
        import uvloop

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except (PressroomError, OSError) as error:
            self._failure = error
        finally:
            self._ended.set()

    async def _serve(self) -> None:
        from pressroom.gateway import serve
        from pressroom.gateway.workers import SharedTable

        assert self._gateway is not None and self._bookkeeping is not None
        self._loop = asyncio.get_running_loop()
        self._bookkeeping.start(self._routes)
        self._stop_gateway = asyncio.Event()
        if isinstance(self._routes, SharedTable):
            await self._serve_with_workers(self._gateway, self._bookkeeping, self._routes, self._stop_gateway)
            return
        await serve(
            self._gateway,
            host=self._host,
            port=self._port,
            grpc_port=self._grpc_port(),
            drain_s=self._workspace.settings.gateway.drain_s,
            started=self._started,
            grpc_started=self._grpc_started,
            stop=self._stop_gateway,
        )

    async def _serve_with_workers(
        self, gateway: Gateway, books: Bookkeeping, routes: SharedTable, stop: asyncio.Event
    ) -> None:
        from pressroom.gateway.workers import Workers, serve_with_workers

        workers = Workers(
            self._workspace,
            routes,
            books.treasury,
            count=self._count,
            ready=self._reconciler.ready,
            budgets=books.budgets,
            control="pressroom.deploy.control:Control",
        )
        books.renewed = workers.renew
        gateway.metrics.joined = workers.figures.joined
        await serve_with_workers(
            gateway,
            workers,
            host=self._host,
            port=self._port,
            grpc_port=self._grpc_port(),
            drain_s=self._workspace.settings.gateway.drain_s,
            started=self._started,
            grpc_started=self._grpc_started,
            stop=stop,
        )

    def _grpc_port(self) -> int | None:
        wanted = self._workspace.settings.gateway.grpc_port
        if wanted < 0:
            return None
        return wanted if self._port else 0  # any free port for the one means any for the other

    def _grpc_started(self, address: str, trouble: str) -> None:
        self.grpc, self.grpc_trouble = address, trouble

    def _started(self, url: str) -> None:
        self.url = url
        self._opened.set()


def start_detached(workspace: Workspace) -> ServerInfo:
    """Start a server that outlives this process, and return when its gateway answers.

    Raises:
        DeployError: it did not come up; the message carries what it wrote.
    """
    log = workspace.path("logs") / "server.log"
    with log.open("ab") as out, Path(os.devnull).open("rb") as nothing:
        begin = out.tell()
        # Not a Popen: nobody waits for this child, it outlives us. Its own session: Ctrl-C here is not meant for it.
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "pressroom", "serve"],
            {**os.environ, settings.WORKSPACE_VARIABLE: str(workspace.root)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, out.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, out.fileno(), 2),
            ],
            setsid=True,
        )
    deadline = time.monotonic() + _DETACHED_START_S
    while time.monotonic() < deadline:
        found = running_server(workspace)
        if found is not None and (found.pid == pid or _lives(found.pid)):
            return found
        if os.waitpid(pid, os.WNOHANG)[0]:
            break
        time.sleep(0.05)
    else:
        os.kill(pid, signal.SIGTERM)
    with log.open("rb") as written:
        written.seek(begin)
        said = written.read().decode(errors="replace").strip()
    raise DeployError(f"the server did not start: {said or 'it wrote nothing'}", hint=f"Its log is {log}.")


def _lives(pid: int) -> bool:
    """Whether a process runs: the lock of one that was just killed is held until the last of it is gone."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop_server(workspace: Workspace) -> bool:
    """End the server of this workspace and return when it is gone; False where none runs.

    Raises:
        DeployError: it does not end.
    """
    holder = workspace.lock_holder(SERVER_LOCK)
    pid = holder.get("pid") if holder else None
    if not isinstance(pid, int):
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        if workspace.lock_holder(SERVER_LOCK) is None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)  # where this very process started it, nobody else would
            return True
        time.sleep(0.05)
    raise DeployError(
        f"the server (process {pid}) has not ended in {_STOP_S:.0f} s", hint=f"End it with: kill -9 {pid}"
    )
