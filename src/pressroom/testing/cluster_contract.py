"""What every cluster must keep to, as tests: subclass `ClusterContract`, say which cluster, and run pytest.

class TestMyCluster(ClusterContract):
    backend = "mine"

The replicas run the echo engine, a fake that needs no weights.
"""

from __future__ import annotations

import time
import urllib.request
from abc import ABC
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from pressroom.deploy import Cluster, Deployment, Phase, Replica, Running
from pressroom.kernel import NotFoundError, PluginError, Workspace, plugins

# Only ends a test that fails.
_PATIENCE_S = 60.0


def wait_for(replica: Replica, true: Callable[[Running], bool]) -> Running:
    """How the replica is once `true` holds of it; fails the test if it never does."""
    deadline = time.monotonic() + _PATIENCE_S
    while not true(now := replica.running()):
        assert time.monotonic() < deadline, f"it did not come about: {now}"
        time.sleep(0.02)
    return now


def answers(running: Running) -> bool:
    """Whether somebody answers where a replica is said to be ready."""
    try:
        with urllib.request.urlopen(f"http://{running.host}:{running.port}/health", timeout=5) as health:
            return bool(health.status == 200)
    except OSError:
        return False


class ClusterContract(ABC):
    """The checks. `backend` is the name of the cluster."""

    backend: ClassVar[str]

    @pytest.fixture
    def cluster(self, tmp_path: Path) -> Iterator[Cluster]:
        with Workspace.open(tmp_path, environ={}) as workspace:
            yield plugins.load("pressroom.deploy.backends", "pressroom.deploy", self.backend)(workspace)

    def wish(self, name: str = "parrot", engine: str = "echo", digest: str = "") -> Deployment:
        return Deployment(name=name, ref=f"{name}:1", digest=digest, engine=engine)

    def test_it_comes_up_by_itself_and_answers(self, cluster: Cluster) -> None:
        replica = cluster.launch(self.wish())
        try:
            ready = wait_for(replica, lambda now: now.phase is Phase.READY)
            assert answers(ready)
            assert ready.since > 0 and ready.restarts == 0
            assert replica.capabilities.chat
        finally:
            replica.stop()

    def test_nothing_is_left_after_the_end_and_ending_twice_is_fine(self, cluster: Cluster) -> None:
        replica = cluster.launch(self.wish())
        ready = wait_for(replica, lambda now: now.phase is Phase.READY)
        replica.stop()
        replica.stop()
        assert replica.running().phase is Phase.STOPPED
        assert not answers(ready)

    def test_one_can_be_ended_while_it_starts(self, cluster: Cluster) -> None:
        replica = cluster.launch(self.wish())
        replica.stop()
        assert replica.running().phase is Phase.STOPPED

    def test_two_of_one_name_run_side_by_side(self, cluster: Cluster) -> None:
        replicas = [cluster.launch(self.wish()) for _ in range(2)]
        try:
            ports = {wait_for(replica, lambda now: now.phase is Phase.READY).port for replica in replicas}
            assert len(ports) == 2, "a new version comes up beside the old one"
        finally:
            for replica in replicas:
                replica.stop()

    def test_an_engine_that_does_not_exist_is_said_at_once(self, cluster: Cluster) -> None:
        with pytest.raises(PluginError, match="nonesuch"):
            cluster.launch(self.wish(engine="nonesuch"))

    def test_a_version_that_does_not_exist_is_said_at_once(self, cluster: Cluster) -> None:
        with pytest.raises(NotFoundError):
            cluster.launch(self.wish(engine="llamacpp", digest="sha256-" + "0" * 64))
