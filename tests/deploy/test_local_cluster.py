"""Engine processes on this machine: the contract, and that one which is killed comes back."""

from __future__ import annotations

import os
import signal

from pressroom.deploy import Cluster, Phase
from pressroom.testing.cluster_contract import ClusterContract, answers, wait_for


class TestLocalCluster(ClusterContract):
    backend = "local"

    def test_one_that_is_killed_is_started_again(self, cluster: Cluster) -> None:
        replica = cluster.launch(self.wish())
        try:
            first = wait_for(replica, lambda now: now.phase is Phase.READY)
            assert first.pid is not None
            os.kill(first.pid, signal.SIGKILL)
            again = wait_for(replica, lambda now: now.phase is Phase.READY and now.pid != first.pid)
            assert again.restarts == 1 and answers(again)
        finally:
            replica.stop()

    def test_its_engine_writes_a_log_of_its_own(self, cluster: Cluster) -> None:
        replica = cluster.launch(self.wish("org/parrot"))
        try:
            wait_for(replica, lambda now: now.phase is Phase.READY)
            assert (cluster.workspace.dir / "logs" / "org--parrot.log").exists()
        finally:
            replica.stop()
