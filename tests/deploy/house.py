"""A reconciler with replicas whose health the test decides, in front of echoes that really answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pressroom.deploy import Cluster, Deployment, Deployments, Phase, Replica, Rollout, Running
from pressroom.deploy.deployments import SERVER_LOCK
from pressroom.deploy.reconciler import Reconciler
from pressroom.engines import Capabilities, Estimate
from pressroom.engines.backends.echo import EchoServer
from pressroom.gateway import RouteTable
from pressroom.kernel import EnginesSettings, Workspace


class EchoedReplica(Replica):
    """Starting until it is told to come up; then an echo answers on its port, as the wish's options say."""

    capabilities = Capabilities()

    def __init__(self, wish: Deployment, port: int) -> None:
        self.wish = wish
        self.now = Running(phase=Phase.STARTING)
        self.port = port
        self.stopped = False

    def come_up(self, memory: int = 0) -> None:
        self.now = Running(
            phase=Phase.READY, host="127.0.0.1", port=self.port, pid=self.port, memory_bytes=memory,
            peak_memory_bytes=memory, context=128, slots=4,
        )  # fmt: skip

    def running(self) -> Running:
        return self.now

    def stop(self) -> None:
        self.stopped = True


class EchoedCluster(Cluster):
    """`sizes[ref]` bytes a copy; with `at_once` copies come up as they are launched."""

    def __init__(self, workspace: Workspace, echoes: Echoes, *, at_once: bool = True) -> None:
        super().__init__(workspace)
        self.launched: list[EchoedReplica] = []
        self.sizes: dict[str, int] = {}
        self.at_once = at_once
        self._echoes = echoes

    def needs(self, wish: Deployment) -> Estimate | None:
        size = self.sizes.get(wish.ref, 0)
        return Estimate(weights=size, kv_cache=0, overhead=0, total=size, later=0, how="a test's") if size else None

    def launch(self, wish: Deployment, *, label: str = "") -> Replica:
        replica = EchoedReplica(wish, self._echoes.open(wish))
        self.launched.append(replica)
        if self.at_once:
            replica.come_up(self.sizes.get(wish.ref, 0))
        return replica

    def of(self, ref: str) -> list[EchoedReplica]:
        return [each for each in self.launched if each.wish.ref == ref]


class Echoes:
    """Echo servers in a loop of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.servers: list[EchoServer] = []

    def open(self, wish: Deployment) -> int:
        server = EchoServer(wish.name, options=wish.options)
        self.servers.append(server)
        return asyncio.run_coroutine_threadsafe(server.listen(), self._loop).result()

    def close(self) -> None:
        async def end() -> None:
            for server in self.servers:
                server.close()
            await asyncio.sleep(0)
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class House:
    def __init__(self, workspace: Workspace, echoes: Echoes, *, at_once: bool = True, **settings: Any) -> None:
        self.workspace = workspace
        self.deployments = Deployments(workspace)
        self.cluster = EchoedCluster(workspace, echoes, at_once=at_once)
        self.routes = RouteTable()
        self.reconciler = Reconciler(self.deployments, self.cluster, self.routes, EnginesSettings(**settings))

    def put(self, name: str, ref: str, **more: Any) -> Deployment:
        return self.deployments.put(name, ref=ref, digest=f"sha256-{ref}", engine="echo", **more)

    def phase(self, name: str) -> Phase:
        return self.deployments.observed(self.deployments.get(name)).phase

    def detail(self, name: str) -> str:
        return self.deployments.observed(self.deployments.get(name)).detail

    def serves(self, name: str) -> list[str]:
        """The versions that the gateway may ask now."""
        return sorted({route.ref for route in self.routes.every() if route.model == name and route.ready})

    def last(self, name: str) -> Rollout:
        return self.deployments.rollouts(name)[0]

    def shares(self, name: str) -> dict[str, float]:
        served = self.routes.served(name)
        assert served is not None
        return {branch: each.weight for branch, each in served.branches.items()}

    def request(self, name: str, branch: str, *, seconds: float = 0.01, worked: bool = True, times: int = 1) -> None:
        """Requests as the gateway writes them down."""
        tally = self.routes.tally(name, branch)
        assert tally is not None
        for _ in range(times):
            tally.answered += worked
            tally.failed += not worked
            tally.latest.append((seconds, worked))


def until(true: Callable[[], object]) -> None:
    """Wait for the reconciler's next rounds; the limit only ends a test that fails."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@contextmanager
def opened(folder: Path, echoes: Echoes, **settings: Any) -> Iterator[House]:
    """A house whose reconciler runs."""
    with Workspace.open(folder, environ={}) as workspace, workspace.lock(SERVER_LOCK, purpose="test"):
        house = House(workspace, echoes, **settings)
        house.reconciler.start()
        try:
            yield house
        finally:
            house.reconciler.stop()
