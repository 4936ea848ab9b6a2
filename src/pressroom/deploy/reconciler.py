"""Brings about what is wished: looks at the database, starts, switches and stops, and writes down what it sees.

A new version starts beside the old one and takes its traffic only when it answers; one that never does leaves the old
one serving. What is replaced first finishes the requests it has.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pressroom.deploy._room import Room
from pressroom.deploy._scribe import Scribe
from pressroom.deploy.base import Cluster, Deployment, Observed, Phase, Running
from pressroom.deploy.deployments import Deployments
from pressroom.deploy.fleet import Fleet
from pressroom.deploy.survey import Surveyor
from pressroom.gateway import Route, RouteTable, Speeds
from pressroom.kernel import EnginesSettings, PressroomError

_log = logging.getLogger(__name__)

# How often the wishes are read. A person who deploys waits at most this long for the start to begin.
_POLL_S = 0.2
# How often an unchanged deployment is written down again (its memory changes).
_HEARTBEAT_S = 5.0
# How long requests that run on a replaced copy may go on before they are cut.
_DRAIN_S = 60.0


@dataclass
class _Entry:
    """One deployment: the fleet that has the traffic, and the one that is coming up to take it."""

    live: Fleet | None = None
    coming: Fleet | None = None
    routes: list[Route] = field(default_factory=list)
    written: Observed | None = None
    #: Since when it is asleep (seconds of the monotonic clock), 0 while it is not; and of which generation.
    asleep: float = 0.0
    asleep_generation: int = 0
    #: When a request was last seen on it, or it came up; seconds of the monotonic clock.
    used: float = field(default_factory=time.monotonic)


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
        self._cluster = cluster
        self._routes = routes
        self._settings = settings or EnginesSettings()
        self._room = Room(self._settings)
        self._surveyor = surveyor
        self._entries: dict[str, _Entry] = {}
        self._told_stopped: dict[str, int] = {}
        self._wishes: dict[str, Deployment] = {}
        self._scribe = Scribe(deployments.observe)
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
        for entry in self._entries.values():
            for fleet in (entry.live, entry.coming):
                if fleet is not None:
                    self._end_fleet(fleet)
        for name in list(self._entries):
            self._routes.remove(name)
        self._enders.shutdown(wait=True)
        self._scribe.close()

    def ready(self) -> bool:
        """Whether every deployment that should run has a copy that answers, or would wake if it was asked."""
        return all(
            entry.asleep or (entry.live is not None and entry.live.running().phase is Phase.READY)
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
                entry = self._entries.setdefault(wish.name, _Entry())
                try:
                    self._look_at(entry, wish)
                except PressroomError as error:  # what goes wrong with one does not hold up the others
                    _log.error("cannot look after %s: %s", wish.name, error)
                except Exception:  # nor does a fault of ours, or of a cluster's  # noqa: BLE001
                    _log.exception("cannot look after %s", wish.name)

    def _look_at(self, entry: _Entry, wish: Deployment) -> None:
        try:
            self._bring(entry, wish)
        finally:
            if entry.asleep or entry.live is not None or entry.coming is not None:
                self._rest(entry, wish)
                self._route(entry, wish)
                self._write(entry, wish)

    def _bring(self, entry: _Entry, wish: Deployment) -> None:
        if entry.asleep:
            asked = self._routes.asked(wish.name)
            if asked <= entry.asleep and entry.asleep_generation >= wish.generation:
                return
            entry.asleep, entry.used = 0.0, time.monotonic()
            entry.written = None
        newest = entry.coming or entry.live
        if newest is None or newest.wish.generation < wish.generation:
            if entry.coming is not None:
                self._end_fleet(entry.coming)
            entry.coming = Fleet(wish, self._cluster, self._room)
        for fleet in (entry.live, entry.coming):
            if fleet is not None:
                fleet.look()
        if entry.coming is not None:
            if self._surveyor is not None:
                self._surveyor.before(entry.coming)
            if entry.coming.up and entry.coming.settled:
                replaced, old_routes = entry.live, entry.routes
                entry.live, entry.coming, entry.used = entry.coming, None, time.monotonic()
                self._route(entry, wish)
                if replaced is not None:
                    self._end_fleet(replaced, after=old_routes)
        if entry.live is not None and self._surveyor is not None:
            self._surveyor.after(entry.live, idle=self._idle(entry))

    # Falling asleep and waking.

    def _rest(self, entry: _Entry, wish: Deployment) -> None:
        """Let a deployment that nobody uses fall asleep: after its time, or to make room for another."""
        fleet = entry.live
        if fleet is None:
            self._room.evicting.discard(wish.name)
            return
        now = time.monotonic()
        if not self._idle(entry):
            entry.used = now
        idle = now > entry.used
        for copy in fleet.copies:
            self._room.use(copy.key, idle=idle and entry.coming is None, last_used=entry.used)
        after = self._settings.idle_stop_s if wish.idle_stop_s is None else wish.idle_stop_s
        wanted = wish.name in self._room.evicting
        self._room.evicting.discard(wish.name)
        if entry.coming is None and idle and (wanted or (after and now - entry.used >= after)):
            _log.info("%s falls asleep: %s", wish.name, "another needs its room" if wanted else "nobody asks for it")
            old = entry.routes
            entry.live, entry.asleep, entry.asleep_generation = None, now, wish.generation
            self._route(entry, wish)
            self._end_fleet(fleet, after=old)

    def _idle(self, entry: _Entry) -> bool:
        """Whether no request runs on a deployment, and none came since it was looked at last."""
        return not any(
            self._routes.in_flight(route) or self._routes.last_used(route) > entry.used for route in entry.routes
        )

    # Saying what is.

    def _route(self, entry: _Entry, wish: Deployment) -> None:
        """Tell the gateway where the deployment answers, or why it does not."""
        if entry.asleep:
            before = entry.routes[0] if entry.routes else Route(model=wish.name, ref=wish.ref, digest=wish.digest)
            detail = "it is asleep; the next request wakes it"
            routes = [
                dataclasses.replace(before, host="", port=0, ready=False, coming=True, asleep=True, detail=detail)
            ]
            speeds: Mapping[str, Speeds] = {}
        else:
            fleet = entry.live or entry.coming
            assert fleet is not None
            routes, speeds = fleet.routes(), fleet.speeds
        if routes != entry.routes:
            self._routes.put(wish.name, routes, speeds=speeds)
            entry.routes = routes

    def _write(self, entry: _Entry, wish: Deployment) -> None:
        """Say how the wish stands: of the fleet that is coming where there is one, else of the one that serves."""
        fleet = entry.coming or entry.live
        if fleet is None:
            now, copies, since = Running(phase=Phase.ASLEEP, detail="the next request wakes it"), [], time.time()
        else:
            now, copies, since = fleet.running(), fleet.records(), fleet.started
        detail = now.detail
        if entry.coming is not None and entry.live is not None:
            detail = f"{detail or now.phase.value}; {entry.live.wish.ref} goes on answering"
        before = entry.written
        if not now.since and before is not None and before.phase is now.phase:
            since = before.since
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
            since=now.since or since,
            seen=time.time(),
            copies=copies,
        )
        if before is not None:
            same = dataclasses.replace(
                seen, seen=before.seen, memory_bytes=before.memory_bytes, copies=before.copies
            ) == before and [_steady(copy) for copy in copies] == [_steady(copy) for copy in before.copies]
            if same and seen.seen - before.seen < _HEARTBEAT_S:
                return
        self._scribe.put(seen)
        entry.written = seen

    def _end(self, name: str, wish: Deployment | None) -> None:
        """Take a deployment out of service; its copies end in the background, and then it is said to be stopped."""
        entry = self._entries.pop(name)
        self._routes.remove(name)

        def end() -> None:
            for fleet in (entry.coming, entry.live):
                if fleet is not None:
                    self._drain(fleet, entry.routes)
            if wish is not None:
                self._tell_stopped(wish)

        if wish is not None:
            self._told_stopped[name] = wish.generation  # it is said when the copies are gone, not before
        self._enders.submit(_logged(end))

    def _tell_stopped(self, wish: Deployment) -> None:
        now = time.time()
        self._scribe.put(Observed(name=wish.name, generation=wish.generation, phase=Phase.STOPPED, since=now, seen=now))
        self._told_stopped[wish.name] = wish.generation

    def _end_fleet(self, fleet: Fleet, *, after: Sequence[Route] = ()) -> None:
        self._enders.submit(_logged(lambda: self._drain(fleet, after)))

    def _drain(self, fleet: Fleet, routes: Sequence[Route]) -> None:
        """Stop a fleet once the requests on its routes are done, the time for that is over, or the server ends."""
        deadline = time.monotonic() + _DRAIN_S
        while any(self._routes.in_flight(route) for route in routes) and time.monotonic() < deadline:
            if self._stopping.wait(_POLL_S):
                break
        fleet.stop()


def _steady(copy: dict[str, Any]) -> dict[str, Any]:
    """What of a copy is worth writing down at once when it changes."""
    return {key: value for key, value in copy.items() if key not in ("memory_bytes", "peak_memory_bytes")}


def _logged(work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            work()
        except Exception:  # the edge of a thread  # noqa: BLE001
            _log.exception("ending a copy failed")

    return run
