"""Brings about what is wished: looks at the database, starts, switches and stops, and writes down what it sees.

A new version starts beside the old one and takes its traffic only when it answers; one that never does leaves the old
one serving. What is replaced first finishes the requests it has.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pressroom.deploy.base import Cluster, Deployment, Observed, Phase, Replica, Running
from pressroom.deploy.deployments import Deployments
from pressroom.gateway import Route, RouteTable
from pressroom.kernel import PressroomError

_log = logging.getLogger(__name__)

# How often the wishes are read. A person who deploys waits at most this long for the start to begin.
_POLL_S = 0.2
# How often an unchanged deployment is written down again (its memory changes).
_HEARTBEAT_S = 5.0
# How long requests that run on a replaced copy may go on before they are cut.
_DRAIN_S = 60.0


@dataclass
class _Copy:
    wish: Deployment
    replica: Replica | None
    failure: str = ""
    started: float = field(default_factory=time.time)

    def running(self) -> Running:
        if self.replica is None:
            return Running(phase=Phase.FAILED, detail=self.failure, since=self.started)
        return self.replica.running()


@dataclass
class _Entry:
    """One deployment: the copy that has the traffic, and the one that is coming up to take it."""

    live: _Copy | None = None
    coming: _Copy | None = None
    route: Route | None = None
    written: Observed | None = None


class Reconciler:
    """The loop, in a thread of its own between `start` and `stop`."""

    def __init__(self, deployments: Deployments, cluster: Cluster, routes: RouteTable) -> None:
        self._deployments = deployments
        self._cluster = cluster
        self._routes = routes
        self._entries: dict[str, _Entry] = {}
        self._told_stopped: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        # Stopping an engine takes seconds; it must not keep the others waiting.
        self._enders = ThreadPoolExecutor(max_workers=8, thread_name_prefix="end-replica")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop every copy; returns when all are gone. The wishes stay, and the next server brings them back."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        copies = [c for e in self._entries.values() for c in (e.live, e.coming) if c is not None and c.replica]
        for copy in copies:
            self._end_copy(copy)
        for name in list(self._entries):
            self._routes.remove(name)
        self._enders.shutdown(wait=True)

    def ready(self) -> bool:
        """Whether every deployment that should run has a copy that answers."""
        return all(
            entry.live is not None and entry.live.running().phase is Phase.READY
            for entry in list(self._entries.values())  # a copy: it is asked from the gateway's thread
        )

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except PressroomError as error:
                # The database may be full or gone for a while: what runs goes on serving.
                _log.error("cannot look after the deployments: %s", error)
            except Exception:  # the edge of a thread: the next round may succeed  # noqa: BLE001
                _log.exception("cannot look after the deployments")
            if self._stopping.wait(_POLL_S):
                return

    def _look(self) -> None:
        wishes = {wish.name: wish for wish in self._deployments.list()}
        for name in [n for n in self._entries if n not in wishes or not wishes[n].running]:
            self._end(name, wishes.get(name))
        for wish in wishes.values():
            if not wish.running and self._told_stopped.get(wish.name) != wish.generation:
                self._tell_stopped(wish)  # it was stopped before this server began
            if wish.running and not self._stopping.is_set():
                self._bring(self._entries.setdefault(wish.name, _Entry()), wish)

    def _bring(self, entry: _Entry, wish: Deployment) -> None:
        newest = entry.coming or entry.live
        if newest is None or newest.wish.generation < wish.generation:
            if entry.coming is not None:
                self._end_copy(entry.coming)
            entry.coming = self._launch(wish)
        if entry.coming is not None and entry.coming.running().phase is Phase.READY:
            replaced, old_route = entry.live, entry.route
            entry.live, entry.coming = entry.coming, None
            self._route(entry)
            if replaced is not None:
                self._end_copy(replaced, after=old_route)
        self._route(entry)
        self._write(entry, wish)

    def _launch(self, wish: Deployment) -> _Copy:
        try:
            return _Copy(wish, self._cluster.launch(wish))
        except PressroomError as error:
            _log.error("cannot start %s: %s", wish.name, error)
            return _Copy(wish, None, failure=f"{error} {error.hint}".strip())

    def _route(self, entry: _Entry) -> None:
        """Tell the gateway where the deployment answers, or why it does not."""
        copy = entry.live or entry.coming
        assert copy is not None
        now = copy.running()
        wish = copy.wish
        route = Route(
            model=wish.name,
            host=now.host,
            port=now.port,
            ref=wish.ref,
            digest=wish.digest,
            engine=wish.engine,
            context=now.context,
            capabilities=copy.replica.capabilities if copy.replica else Route.no_capabilities(),
            created=int(wish.created),
            ready=now.phase is Phase.READY,
            detail=now.detail or now.phase.value,
        )
        if route != entry.route:
            self._routes.set(route)
            entry.route = route

    def _write(self, entry: _Entry, wish: Deployment) -> None:
        """Say how the wish stands: of the copy that is coming where there is one, else of the one that serves."""
        copy = entry.coming or entry.live
        assert copy is not None
        now = copy.running()
        detail = now.detail
        if entry.coming is not None and entry.live is not None:
            detail = f"{detail or now.phase.value}; {entry.live.wish.ref} goes on answering"
        seen = Observed(
            name=wish.name,
            generation=wish.generation,
            phase=now.phase,
            detail=detail,
            url=f"http://{now.host}:{now.port}" if now.port else "",
            pid=now.pid,
            restarts=now.restarts,
            memory_bytes=now.memory_bytes,
            context=now.context,
            since=now.since or copy.started,
            seen=time.time(),
        )
        before = entry.written
        if before is not None:
            same = dataclasses.replace(seen, seen=before.seen, memory_bytes=before.memory_bytes) == before
            if same and seen.seen - before.seen < _HEARTBEAT_S:
                return
        self._deployments.observe(seen)
        entry.written = seen

    def _end(self, name: str, wish: Deployment | None) -> None:
        """Take a deployment out of service; its copies end in the background, and then it is said to be stopped."""
        entry = self._entries.pop(name)
        self._routes.remove(name)

        def end() -> None:
            for copy in (entry.coming, entry.live):
                if copy is not None:
                    self._drain(copy, entry.route)
            if wish is not None:
                self._tell_stopped(wish)

        if wish is not None:
            self._told_stopped[name] = wish.generation  # it is said when the copies are gone, not before
        self._enders.submit(_logged(end))

    def _tell_stopped(self, wish: Deployment) -> None:
        now = time.time()
        self._deployments.observe(
            Observed(name=wish.name, generation=wish.generation, phase=Phase.STOPPED, since=now, seen=now)
        )
        self._told_stopped[wish.name] = wish.generation

    def _end_copy(self, copy: _Copy, *, after: Route | None = None) -> None:
        self._enders.submit(_logged(lambda: self._drain(copy, after)))

    def _drain(self, copy: _Copy, route: Route | None) -> None:
        """Stop a copy once the requests on its route are done, the time for that is over, or the server ends."""
        deadline = time.monotonic() + _DRAIN_S
        while route is not None and self._routes.in_flight(route) and time.monotonic() < deadline:
            if self._stopping.wait(_POLL_S):
                break
        if copy.replica is not None:
            copy.replica.stop()


def _logged(work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            work()
        except Exception:  # the edge of a thread  # noqa: BLE001
            _log.exception("ending a copy failed")

    return run
