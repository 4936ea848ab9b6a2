"""Several copies of a deployment, variants that `auto` chooses among, room in memory, sleep and waking."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pressroom.deploy import AUTO, Cluster, Deployment, Deployments, Phase, Replica, Running, Variant
from pressroom.deploy.deployments import SERVER_LOCK
from pressroom.deploy.reconciler import Reconciler
from pressroom.deploy.survey import Surveyor
from pressroom.engines import Capabilities, EngineSpec, Estimate, create
from pressroom.gateway import RouteTable
from pressroom.kernel import EnginesSettings, Workspace

GB = 10**9


class ScriptedReplica(Replica):
    capabilities = Capabilities()

    def __init__(self, wish: Deployment, port: int, label: str) -> None:
        self.wish = wish
        self.label = label
        self.now = Running(phase=Phase.STARTING)
        self.port = port
        self.stopped = False

    def come_up(self, port: int = 0, memory: int = 0) -> None:
        self.now = Running(
            phase=Phase.READY,
            host="127.0.0.1",
            port=port or self.port,
            pid=self.port,
            context=128,
            slots=4,
            memory_bytes=memory,
            peak_memory_bytes=memory,
        )

    def running(self) -> Running:
        return self.now

    def stop(self) -> None:
        self.stopped = True


class ScriptedCluster(Cluster):
    """Takes `sizes[ref]` bytes for a copy."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.launched: list[ScriptedReplica] = []
        self.sizes: dict[str, int] = {}

    def needs(self, wish: Deployment) -> Estimate | None:
        size = self.sizes.get(wish.ref, 0)
        how = "what the test says"
        return Estimate(weights=size, kv_cache=0, overhead=0, total=size, later=0, how=how) if size else None

    def launch(self, wish: Deployment, *, label: str = "") -> Replica:
        self.launched.append(ScriptedReplica(wish, 1000 + len(self.launched), label))
        return self.launched[-1]


class House:
    def __init__(self, workspace: Workspace, **settings: Any) -> None:
        self.deployments = Deployments(workspace)
        self.cluster = ScriptedCluster(workspace)
        self.routes = RouteTable()
        self.surveyor = Surveyor(self.deployments)
        self.reconciler = Reconciler(
            self.deployments, self.cluster, self.routes, EnginesSettings(**settings), surveyor=self.surveyor
        )

    def put(self, name: str, ref: str = "m:1", **more: Any) -> Deployment:
        return self.deployments.put(name, ref=ref, digest=f"sha256-{ref}", engine=more.pop("engine", "echo"), **more)

    def phase(self, name: str) -> Phase:
        return self.deployments.observed(self.deployments.get(name)).phase

    def detail(self, name: str) -> str:
        return self.deployments.observed(self.deployments.get(name)).detail

    def ports(self, name: str) -> list[int]:
        return [route.port for route in self.routes.every() if route.model == name and route.ready]

    def launched(self, count: int) -> list[ScriptedReplica]:
        until(lambda: len(self.cluster.launched) == count)
        return self.cluster.launched


def until(true: Callable[[], bool]) -> None:
    """Wait for the reconciler's next rounds; the limit only ends a test that fails."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    @contextmanager
    def make(**settings: Any) -> Iterator[House]:
        with Workspace.open(tmp_path, environ={}) as workspace, workspace.lock(SERVER_LOCK, purpose="test"):
            house = House(workspace, **settings)
            house.reconciler.start()
            try:
                yield house
            finally:
                house.surveyor.close()
                house.reconciler.stop()

    yield make


# Several copies.


def test_each_replica_is_a_route(build: Any) -> None:
    with build() as house:
        house.put("chat", replicas=3)
        copies = house.launched(3)
        assert [copy.label for copy in copies] == ["", "2", "3"], "each has a log of its own"
        copies[0].come_up()
        copies[1].come_up()
        until(lambda: "2 of 3 copies answer" in house.detail("chat"))
        assert house.phase("chat") is Phase.READY
        copies[2].come_up()
        until(lambda: house.ports("chat") == [1000, 1001, 1002])
        copies[1].now = Running(phase=Phase.BACKOFF, detail="killed by signal 9")
        until(lambda: house.ports("chat") == [1000, 1002] and "killed by signal 9" in house.detail("chat"))
        seen = house.deployments.observed(house.deployments.get("chat"))
        assert [copy["state"] for copy in seen.copies] == ["ready", "backoff", "ready"]


def test_a_new_version_takes_over_when_all_its_copies_answer(build: Any) -> None:
    with build() as house:
        house.put("chat")
        house.launched(1)[0].come_up()
        until(lambda: house.ports("chat") == [1000])
        house.put("chat", "m:2", replicas=2)
        copies = house.launched(3)
        copies[1].come_up()
        time.sleep(0.5)
        assert house.ports("chat") == [1000]
        copies[2].come_up()
        until(lambda: house.ports("chat") == [1001, 1002] and copies[0].stopped)


# Auto.

VARIANTS = (
    Variant(ref="m:1", digest="sha256-small", engine="small"),
    Variant(ref="m:2", digest="sha256-large", engine="large"),
)


def test_auto_is_measured_before_it_serves(build: Any) -> None:
    engines = [
        create("echo", EngineSpec(name="chat", options={"delay_s": delay, "tokens": 48})) for delay in (0, 0.002)
    ]
    endpoints = [engine.start() for engine in engines]
    try:
        with build() as house:
            house.put("chat", engine=AUTO, variants=VARIANTS)
            copies = house.launched(2)
            copies[0].come_up(endpoints[0].port)
            until(lambda: "engines start" in house.detail("chat") or house.detail("chat") == "")
            assert house.ports("chat") == []
            copies[1].come_up(endpoints[1].port)
            until(lambda: len(house.ports("chat")) == 2 and house.phase("chat") is Phase.READY)
            served = house.routes.served("chat")
            assert served is not None and served.chooser is not None
            speeds = served.chooser.speeds
            assert [clients for clients, _ in speeds["small"]] == [1, 4, 8, 16, 64]
            assert speeds["small"][0][1] > speeds["large"][0][1] > 0, "the slower echo was measured to be slower"
            seen = house.deployments.observed(house.deployments.get("chat"))
            assert set(seen.copies[0]["tokens_per_second"]) == {"1", "4", "8", "16", "64"}
    finally:
        for engine in engines:
            engine.stop()


def test_auto_goes_by_what_was_measured_before(build: Any) -> None:
    with build() as house:
        house.put("chat", engine=AUTO, variants=VARIANTS)
        copies = house.launched(2)
        copies[1].now = Running(phase=Phase.FAILED, detail="no such library")
        copies[0].come_up()
        until(lambda: house.ports("chat") == [1000])
        until(lambda: house.phase("chat") is Phase.READY)
        assert "no such library" in house.detail("chat")


# Sleep and waking.


def test_an_idle_deployment_sleeps_and_a_request_wakes_it(build: Any) -> None:
    with build(idle_stop_s=0.5) as house:
        house.put("chat")
        house.launched(1)[0].come_up()
        until(lambda: house.phase("chat") is Phase.ASLEEP)
        until(lambda: house.cluster.launched[0].stopped)
        route = house.routes.get("chat")
        assert route is not None and not route.ready and route.coming and house.reconciler.ready()
        assert route.digest == "sha256-m:1", "what would answer is still said"
        time.sleep(0.6)
        assert house.phase("chat") is Phase.ASLEEP and len(house.cluster.launched) == 1
        house.routes.ask_for("chat", time.monotonic())
        house.launched(2)[1].come_up()
        until(lambda: house.ports("chat") == [1001] and house.phase("chat") is Phase.READY)


def test_what_is_used_does_not_sleep(build: Any) -> None:
    with build(idle_stop_s=0.4) as house:
        house.put("chat")
        house.put("other", idle_stop_s=0.0)
        for copy in house.launched(2):
            copy.come_up()
        until(lambda: len(house.ports("chat")) == 1 and len(house.ports("other")) == 1)
        lane = house.routes.lane("chat")
        assert lane is not None and house.routes.enter(lane)
        time.sleep(1.2)
        assert house.phase("chat") is Phase.READY and house.phase("other") is Phase.READY
        lane.load.running -= 1
        lane.load.used = time.monotonic()
        until(lambda: house.phase("chat") is Phase.ASLEEP)
        assert house.phase("other") is Phase.READY, "0 means never"


def test_a_new_wish_wakes_what_sleeps(build: Any) -> None:
    with build(idle_stop_s=0.3) as house:
        house.put("chat")
        house.launched(1)[0].come_up()
        until(lambda: house.phase("chat") is Phase.ASLEEP)
        house.put("chat", "m:2", idle_stop_s=0.0)
        house.launched(2)[1].come_up()
        until(lambda: house.ports("chat") == [1001])
        house.deployments.stop("chat")
        until(lambda: house.phase("chat") is Phase.STOPPED)


# Room in memory.


def test_what_can_never_fit_is_refused_with_figures(build: Any) -> None:
    with build(memory_bytes=2 * GB) as house:
        house.cluster.sizes["m:1"] = 3 * GB
        house.put("chat")
        until(lambda: house.phase("chat") is Phase.FAILED)
        detail = house.detail("chat")
        assert "3.00 GB" in detail and "2.00 GB" in detail and "engines.memory_bytes" in detail
        assert not house.cluster.launched


def test_what_does_not_fit_now_waits_until_there_is_room(build: Any) -> None:
    with build(memory_bytes=5 * GB, when_full="wait") as house:
        house.cluster.sizes |= {"m:1": 3 * GB, "m:2": 3 * GB}
        house.put("one")
        house.launched(1)[0].come_up(memory=3 * GB)
        house.put("two", "m:2")
        until(lambda: house.phase("two") is Phase.WAITING and "3.00 GB" in house.detail("two"))
        assert "one 3.00 GB" in house.detail("two"), "it says who has the room"
        house.deployments.stop("one")
        house.launched(2)[1].come_up()
        until(lambda: house.phase("two") is Phase.READY)


def test_an_idle_one_makes_room_and_a_busy_one_does_not(build: Any) -> None:
    with build(memory_bytes=7 * GB) as house:
        house.cluster.sizes |= {"m:1": 3 * GB, "m:2": 3 * GB, "m:3": 3 * GB}
        house.put("busy")
        house.launched(1)[0].come_up(memory=3 * GB)
        until(lambda: len(house.ports("busy")) == 1)
        lane = house.routes.lane("busy")
        assert lane is not None and house.routes.enter(lane)
        house.put("idle", "m:2")
        house.launched(2)[1].come_up(memory=3 * GB)
        until(lambda: len(house.ports("idle")) == 1)
        house.put("new", "m:3")
        until(lambda: house.phase("idle") is Phase.ASLEEP)
        house.launched(3)[2].come_up(memory=3 * GB)
        until(lambda: house.phase("new") is Phase.READY)
        assert house.phase("busy") is Phase.READY


def test_a_refusal_by_policy(build: Any) -> None:
    with build(memory_bytes=5 * GB, when_full="refuse") as house:
        house.cluster.sizes |= {"m:1": 3 * GB, "m:2": 3 * GB}
        house.put("one")
        house.launched(1)[0].come_up(memory=3 * GB)
        house.put("two", "m:2")
        until(lambda: house.phase("two") is Phase.FAILED)
        assert "does not fit now" in house.detail("two")


def test_a_measured_size_stands_in_for_the_estimate(build: Any) -> None:
    with build(memory_bytes=5 * GB, when_full="wait") as house:
        house.cluster.sizes |= {"m:1": 3 * GB, "m:2": 3 * GB}
        house.put("one")
        house.launched(1)[0].come_up(memory=1 * GB)
        until(lambda: len(house.ports("one")) == 1)
        house.put("two", "m:2")
        house.launched(2)


# What is written down.


def test_a_key_that_is_typed_as_an_option_is_written_nowhere(tmp_path: Path) -> None:
    import sqlite3

    from pressroom.deploy import make_wish
    from pressroom.kernel import PressroomError
    from pressroom.registry import pull

    secret = "sk-0123456789abcdef"
    with Workspace.open(tmp_path, environ={}) as workspace:
        pull(workspace, "openai:some-model", name="mini")
        for options in ({"key": secret}, {"key_env": secret}, {"key_file": secret}, {"vendro.key": secret}):
            with pytest.raises(PressroomError) as refused:
                make_wish(workspace, "mini", options=options)
            assert secret not in f"{refused.value} {refused.value.hint} {refused.value.facts}"
        with sqlite3.connect(tmp_path / ".pressroom" / "pressroom.db") as database:
            assert secret not in "".join(database.iterdump())
        database.close()
