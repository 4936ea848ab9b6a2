"""From wish to route: what is started, switched, kept and ended, with replicas whose health the test decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pressroom.deploy import Cluster, Deployment, Deployments, Phase, Replica, Running
from pressroom.deploy.deployments import SERVER_LOCK
from pressroom.deploy.reconciler import Reconciler
from pressroom.engines import Capabilities
from pressroom.gateway import RouteTable
from pressroom.kernel import NotFoundError, Workspace


class ScriptedReplica(Replica):
    capabilities = Capabilities()

    def __init__(self, wish: Deployment, port: int) -> None:
        self.wish = wish
        self.now = Running(phase=Phase.STARTING)
        self.port = port
        self.stopped = False

    def come_up(self) -> None:
        self.now = Running(phase=Phase.READY, host="127.0.0.1", port=self.port, pid=self.port, context=128)

    def running(self) -> Running:
        return self.now

    def stop(self) -> None:
        self.stopped = True


class ScriptedCluster(Cluster):
    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.launched: list[ScriptedReplica] = []

    def launch(self, wish: Deployment, *, label: str = "") -> Replica:
        if wish.digest == "sha256-gone":
            raise NotFoundError("the bytes are gone", hint="Pull it again.")
        self.launched.append(ScriptedReplica(wish, 1000 + len(self.launched)))
        return self.launched[-1]


class House:
    def __init__(self, workspace: Workspace) -> None:
        self.deployments = Deployments(workspace)
        self.cluster = ScriptedCluster(workspace)
        self.routes = RouteTable()
        self.reconciler = Reconciler(self.deployments, self.cluster, self.routes)

    def phase(self, name: str) -> Phase:
        return self.deployments.observed(self.deployments.get(name)).phase

    def detail(self, name: str) -> str:
        return self.deployments.observed(self.deployments.get(name)).detail

    def port(self, name: str) -> int | None:
        route = self.routes.get(name)
        return route.port if route is not None and route.ready else None


def until(true: Callable[[], bool]) -> None:
    """Wait for the reconciler's next rounds; the limit only ends a test that fails."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with Workspace.open(tmp_path, environ={}) as workspace, workspace.lock(SERVER_LOCK, purpose="test"):
        house = House(workspace)
        house.reconciler.start()
        yield house
        house.reconciler.stop()


def test_a_wish_becomes_a_route(house: House) -> None:
    house.deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo")
    until(lambda: house.phase("chat") is Phase.STARTING)
    assert house.port("chat") is None and not house.reconciler.ready()
    route = house.routes.get("chat")
    assert route is not None and not route.ready
    house.cluster.launched[0].come_up()
    until(lambda: house.phase("chat") is Phase.READY)
    assert house.port("chat") == 1000 and house.reconciler.ready()


def test_the_old_version_answers_until_the_new_one_does(house: House) -> None:
    house.deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo")
    until(lambda: len(house.cluster.launched) == 1)
    house.cluster.launched[0].come_up()
    until(lambda: house.port("chat") == 1000)
    house.deployments.put("chat", ref="m:2", digest="sha256-ab", engine="echo")
    until(lambda: len(house.cluster.launched) == 2 and house.phase("chat") is Phase.STARTING)
    assert house.port("chat") == 1000
    assert "m:1 goes on answering" in house.detail("chat")
    house.cluster.launched[1].come_up()
    until(lambda: house.port("chat") == 1001 and house.cluster.launched[0].stopped)
    route = house.routes.get("chat")
    assert route is not None and route.digest == "sha256-ab"


def test_requests_on_the_old_version_are_finished_first(house: House) -> None:
    house.deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo")
    until(lambda: len(house.cluster.launched) == 1)
    house.cluster.launched[0].come_up()
    until(lambda: house.port("chat") == 1000)
    lane = house.routes.lane("chat")
    assert lane is not None and house.routes.enter(lane)
    house.deployments.put("chat", ref="m:2", digest="sha256-ab", engine="echo")
    until(lambda: len(house.cluster.launched) == 2)
    house.cluster.launched[1].come_up()
    until(lambda: house.port("chat") == 1001)
    time.sleep(0.6)  # three rounds in which it could be stopped wrongly
    assert not house.cluster.launched[0].stopped
    lane.load.running -= 1
    until(lambda: house.cluster.launched[0].stopped)


def test_a_new_version_that_fails_leaves_the_old_one(house: House) -> None:
    house.deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo")
    until(lambda: len(house.cluster.launched) == 1)
    house.cluster.launched[0].come_up()
    until(lambda: house.port("chat") == 1000)
    house.deployments.put("chat", ref="m:2", digest="sha256-gone", engine="echo")
    until(lambda: house.phase("chat") is Phase.FAILED)
    assert "the bytes are gone" in house.detail("chat") and "m:1 goes on answering" in house.detail("chat")
    assert house.port("chat") == 1000 and not house.cluster.launched[0].stopped


def test_one_that_dies_is_no_longer_routed_to(house: House) -> None:
    house.deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo")
    until(lambda: len(house.cluster.launched) == 1)
    house.cluster.launched[0].come_up()
    until(lambda: house.port("chat") == 1000)
    house.cluster.launched[0].now = Running(phase=Phase.BACKOFF, detail="killed by signal 9", restarts=0)
    until(lambda: house.port("chat") is None and house.phase("chat") is Phase.BACKOFF)
    route = house.routes.get("chat")
    assert route is not None and "signal 9" in route.detail
    house.cluster.launched[0].come_up()
    until(lambda: house.port("chat") == 1000)


def test_stopping_and_starting_again(house: House) -> None:
    house.deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo")
    until(lambda: len(house.cluster.launched) == 1)
    house.cluster.launched[0].come_up()
    until(lambda: house.port("chat") == 1000)
    house.deployments.stop("chat")
    until(lambda: house.phase("chat") is Phase.STOPPED)
    assert house.cluster.launched[0].stopped and house.routes.get("chat") is None
    house.deployments.start("chat")
    until(lambda: len(house.cluster.launched) == 2)
    house.cluster.launched[1].come_up()
    until(lambda: house.port("chat") == 1001)


def test_one_that_was_stopped_before_the_server_began_is_said_to_be_stopped(house: House) -> None:
    house.deployments.put("chat", ref="m:1", digest="sha256-gone", engine="echo")
    until(lambda: house.phase("chat") is Phase.FAILED)
    house.deployments.stop("chat")
    until(lambda: house.phase("chat") is Phase.STOPPED)
    other = House(house.cluster.workspace)
    other.deployments.put("late", ref="m:1", digest="sha256-aa", engine="echo")
    other.deployments.stop("late")
    until(lambda: house.phase("late") is Phase.STOPPED)


def test_the_end_stops_everything(tmp_path: Path) -> None:
    with Workspace.open(tmp_path, environ={}) as workspace:
        house = House(workspace)
        house.deployments.put("one", ref="m:1", digest="sha256-aa", engine="echo")
        house.deployments.put("two", ref="m:1", digest="sha256-aa", engine="echo")
        house.reconciler.start()
        until(lambda: len(house.cluster.launched) == 2)
        house.reconciler.stop()
        assert all(replica.stopped for replica in house.cluster.launched)
        assert house.routes.all() == []
        assert [wish.running for wish in house.deployments.list()] == [True, True], "the wishes stay"
