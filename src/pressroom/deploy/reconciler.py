"""Brings about what is wished: looks at the database, starts, switches and stops, and writes down what it sees.

A new version starts beside the old one and takes its traffic only when it answers and has passed its checks; one that
never does leaves the old one serving. What is replaced first finishes the requests it has, and may stay loaded for a
while, so that going back to it is a switch.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pressroom.deploy._entry import Entry
from pressroom.deploy._room import Room
from pressroom.deploy._route_life import Ground
from pressroom.deploy._scribe import Scribe
from pressroom.deploy.base import Cluster, Deployment, Observed, Phase, Rollout, Standing
from pressroom.deploy.deployments import Deployments
from pressroom.deploy.fleet import Fleet
from pressroom.deploy.survey import Surveyor
from pressroom.gateway import RouteTable
from pressroom.kernel import EnginesSettings, PressroomError

_log = logging.getLogger(__name__)

# How often the wishes are read. A person who deploys waits at most this long for the start to begin; on this machine
# less, because a new wish rings.
_POLL_S = 0.2
_BELL_S = 0.05
# How long requests that run on a replaced copy may go on before they are cut.
_DRAIN_S = 60.0


class Reconciler:
    """The loop, in a thread of its own between `start` and `stop`."""

    def __init__(
        self,
        deployments: Deployments,
        cluster: Cluster,
        routes: RouteTable,
        settings: EnginesSettings | None = None,
        *,
        surveyor: Surveyor | None = None,
    ) -> None:
        self._deployments = deployments
        self._routes = routes
        self._scribe = Scribe(deployments.observe)
        settings = settings or EnginesSettings()
        self._ground = Ground(
            cluster=cluster,
            room=Room(settings),
            table=routes,
            settings=settings,
            deployments=deployments,
            keep=self._keep,
            surveyor=surveyor,
        )
        self._entries: dict[str, Entry] = {}
        self._told_stopped: dict[str, int] = {}
        self._wishes: dict[str, Deployment] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        # Stopping an engine takes seconds; it must not keep the others waiting.
        self._enders = ThreadPoolExecutor(max_workers=8, thread_name_prefix="end-replica")

    def start(self) -> None:
        self._scribe.start()
        self._thread.start()

    def stop(self) -> None:
        """Stop every copy; returns when all are gone. The wishes stay, and the next server brings them back."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for name, entry in list(self._entries.items()):
            for fleet in entry.fleets():
                self._end_fleet(fleet)
            self._routes.remove(name)
        self._enders.shutdown(wait=True)
        self._scribe.close()

    def ready(self) -> bool:
        """Whether every deployment that should run has a copy that answers, or would wake if it was asked."""
        return all(entry.answers for entry in list(self._entries.values()))  # a copy: the gateway's thread asks

    def _run(self) -> None:
        while True:
            bell = self._deployments.bell()
            try:
                self._look()
            except PressroomError as error:
                # The database may be full or gone for a while: what runs goes on serving.
                _log.error("cannot look after the deployments: %s", error)
            except Exception:  # the edge of a thread: the next round may succeed  # noqa: BLE001
                _log.exception("cannot look after the deployments")
            until = time.monotonic() + _POLL_S
            while True:
                if self._stopping.wait(_BELL_S):
                    return
                if time.monotonic() >= until or self._deployments.bell() != bell:
                    break

    def _look(self) -> None:
        try:
            self._wishes = {wish.name: wish for wish in self._deployments.list()}
        except PressroomError as error:
            # The database may be gone for a while: what was wished last is still looked after.
            _log.error("cannot read what is wished: %s", error)
        wishes = self._wishes
        for name in [n for n in self._entries if n not in wishes or not wishes[n].running]:
            self._end(name, wishes.get(name))
        for wish in wishes.values():
            if not wish.running and self._told_stopped.get(wish.name) != wish.generation:
                self._tell_stopped(wish)  # it was stopped before this server began
            if wish.running and not self._stopping.is_set():
                try:
                    self._look_at(wish)
                except PressroomError as error:  # what goes wrong with one does not hold up the others
                    _log.error("cannot look after %s: %s", wish.name, error)
                except Exception:  # nor does a fault of ours, or of a cluster's  # noqa: BLE001
                    _log.exception("cannot look after %s", wish.name)

    def _look_at(self, wish: Deployment) -> None:
        entry = self._entries.get(wish.name)
        if entry is None:
            entry = Entry(self._ground, wish, end=self._end_fleet, stand=self._stand)
            self._entries[wish.name] = entry
            subject = f"rollouts {wish.name}"
            self._scribe.also(subject, functools.partial(self._deployments.close_rollouts, wish.name, wish.generation))
        try:
            entry.look(wish)
        finally:
            seen = entry.observed()
            if seen is not None:
                self._scribe.put(seen)

    # What is written down.

    def _keep(self, rollout: Rollout) -> None:
        subject = f"rollout {rollout.name} {rollout.route} {rollout.generation}"
        self._scribe.also(subject, functools.partial(self._deployments.write_rollout, rollout))

    def _stand(self, standing: Standing) -> None:
        self._scribe.also(f"standing {standing.name}", functools.partial(self._deployments.write_standing, standing))

    def _tell_stopped(self, wish: Deployment) -> None:
        now = time.time()
        self._scribe.put(Observed(name=wish.name, generation=wish.generation, phase=Phase.STOPPED, since=now, seen=now))
        self._told_stopped[wish.name] = wish.generation

    # Ends.

    def _end(self, name: str, wish: Deployment | None) -> None:
        """Take a deployment out of service; its copies end in the background, and then it is said to be stopped."""
        entry = self._entries.pop(name)
        self._routes.remove(name)
        fleets = entry.leave()

        def end() -> None:
            for fleet in fleets:
                self._drain(fleet)
            if wish is not None:
                self._tell_stopped(wish)

        if wish is not None:
            self._told_stopped[name] = wish.generation  # it is said when the copies are gone, not before
        self._enders.submit(_logged(end))

    def _end_fleet(self, fleet: Fleet) -> None:
        self._enders.submit(_logged(lambda: self._drain(fleet)))

    def _drain(self, fleet: Fleet) -> None:
        """Stop a fleet once the requests on it are done, the time for that is over, or the server ends."""
        deadline = time.monotonic() + _DRAIN_S
        while any(self._routes.in_flight(route) for route in fleet.told) and time.monotonic() < deadline:
            if self._stopping.wait(_POLL_S):
                break
        fleet.stop()


def _logged(work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            work()
        except Exception:  # the edge of a thread  # noqa: BLE001
            _log.exception("ending a copy failed")

    return run
