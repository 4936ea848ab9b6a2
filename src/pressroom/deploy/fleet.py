"""The copies of one deployment: several replicas of one version, or the variants that `auto` chooses among."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pressroom.deploy._room import Room
from pressroom.deploy.base import AUTO, Cluster, Deployment, Phase, Replica, RouteWish, Running
from pressroom.engines import engine_class
from pressroom.gateway import Route
from pressroom.kernel import PressroomError

_log = logging.getLogger(__name__)

# Of every copy in the life of a server: what wakes must not be taken for what it was before, which may still be ending.
_numbers = itertools.count(1)
# A copy in one of these is waited for no more.
_SETTLED = (Phase.READY, Phase.FAILED)


@dataclass
class Copy:
    """One copy, from the wish for it to its end. `key` names it among all copies of the server."""

    wish: Deployment
    key: str
    label: str
    replica: Replica | None = None
    failure: str = ""
    waiting: str = ""
    started: float = field(default_factory=time.time)
    #: What was measured of it, for people and scripts.
    figures: dict[str, Any] = field(default_factory=dict)

    def running(self) -> Running:
        """How it is now."""
        if self.replica is not None:
            return self.replica.running()
        if self.failure:
            return Running(phase=Phase.FAILED, detail=self.failure, since=self.started)
        return Running(phase=Phase.WAITING, detail=self.waiting, since=self.started)

    def route(self, model: str, *, created: int, branch: str = "") -> Route:
        """Where the gateway finds it."""
        now = self.running()
        ready = now.phase is Phase.READY
        return Route(
            model=model,
            branch=branch,
            host=now.host,
            port=now.port,
            ref=self.wish.ref,
            digest=self.wish.digest,
            engine=self.wish.engine,
            context=now.context,
            slots=now.slots,
            capabilities=self.replica.capabilities if self.replica else Route.no_capabilities(),
            created=created,
            ready=ready,
            coming=not ready and now.phase is not Phase.FAILED,
            detail=now.detail or now.phase.value,
            elsewhere=is_elsewhere(self.wish.engine),
        )

    def record(self) -> dict[str, Any]:
        """It as JSON for scripts."""
        now = self.running()
        return {
            "ref": self.wish.ref,
            "digest": self.wish.digest,
            "engine": self.wish.engine,
            "state": now.phase.value,
            "detail": now.detail,
            "url": f"http://{now.host}:{now.port}" if now.port else None,
            "pid": now.pid,
            "restarts": now.restarts,
            "context": now.context,
            "slots": now.slots,
            "memory_bytes": now.memory_bytes,
            "peak_memory_bytes": now.peak_memory_bytes,
            **self.figures,
        }


class Fleet:
    """All copies of one version for one route of a wish. Belongs to the reconciler's thread.

    `way` is the route as it is wished, `label` tells its logs from those of the deployment's other routes.
    """

    def __init__(self, wish: Deployment, cluster: Cluster, room: Room, *, way: RouteWish, label: str = "") -> None:
        self.wish = wish.alone(way)
        self.way = way
        #: The newest wish that it was found to be right for.
        self.generation = wish.generation
        self._cluster = cluster
        self._room = room
        self.started = time.time()
        #: What `auto` was measured to give, by engine; empty until it was.
        self.speeds: Mapping[str, tuple[tuple[int, float], ...]] = {}
        #: Why a fleet whose copies are up does not serve yet.
        self.holding_back = ""
        #: What it goes through before it may take traffic, while it does.
        self.tried = ""
        #: Where the gateway was told last that it answers.
        self.told: list[Route] = []
        self.copies = [
            Copy(wish=each, key=f"{wish.name}#{next(_numbers)}", label=".".join(filter(None, (label, own))))
            for each, own in _wishes(self.wish)
        ]

    def look(self) -> None:
        """Start what has not been started and may be."""
        for copy in self.copies:
            if copy.replica is None and not copy.failure:
                self._start(copy)
            elif copy.replica is not None:
                now = copy.running()
                if now.phase is Phase.READY and now.peak_memory_bytes:
                    self._room.measured(copy.key, now.peak_memory_bytes)

    def _start(self, copy: Copy) -> None:
        try:
            copy.waiting = self._room.ask(copy.key, self.wish.name, lambda: self._cluster.needs(copy.wish))
            if not copy.waiting:
                copy.figures.update(self._room.figures(copy.key))
                copy.replica = self._cluster.launch(copy.wish, label=copy.label)
        except PressroomError as error:
            _log.error("cannot start %s: %s", self.wish.name, error)
            copy.failure = f"{error} {error.hint}".strip()
            self._room.leave(copy.key)

    @property
    def settled(self) -> bool:
        """Whether every copy is up, or will not be, and whatever must be measured first was."""
        return not self.holding_back and all(copy.running().phase in _SETTLED for copy in self.copies)

    @property
    def up(self) -> bool:
        """Whether a copy answers."""
        return any(copy.running().phase is Phase.READY for copy in self.copies)

    def running(self) -> Running:
        """How the fleet is as a whole: ready where one copy is, else as the one that is nearest to it."""
        states = [copy.running() for copy in self.copies]
        best = min(states, key=lambda state: _NEARNESS[state.phase])
        details = [state.detail for state in states if state.detail]
        if len(states) > 1:
            ready = sum(state.phase is Phase.READY for state in states)
            if ready < len(states):
                details = [f"{ready} of {len(states)} copies answer", *details]
        if self.holding_back and best.phase is Phase.READY:
            best, details = dataclasses.replace(best, phase=Phase.STARTING), [self.holding_back]
        elif self.tried and best.phase is Phase.READY:
            best, details = dataclasses.replace(best, phase=Phase.STARTING), [self.tried]
        return dataclasses.replace(
            best,
            detail="; ".join(dict.fromkeys(details)),
            restarts=sum(state.restarts for state in states),
            memory_bytes=sum(state.memory_bytes for state in states),
        )

    def routes(self, branch: str = "") -> list[Route]:
        """Where the gateway finds the copies: those that answer, or one that says why none does."""
        created = int(self.wish.created)
        routes = [copy.route(self.wish.name, created=created, branch=branch) for copy in self.copies]
        if self.holding_back:
            return [dataclasses.replace(routes[0], ready=False, coming=True, detail=self.holding_back)]
        ready = [route for route in routes if route.ready]
        if ready:
            return ready
        return [next((route for route in routes if route.coming), routes[0])]

    def records(self) -> list[dict[str, Any]]:
        """Every copy as JSON for scripts."""
        return [copy.record() for copy in self.copies]

    def stop(self) -> None:
        """End every copy; returns when nothing is left."""
        for copy in self.copies:
            if copy.replica is not None:
                copy.replica.stop()
            self._room.leave(copy.key)


def is_elsewhere(engine: str) -> bool:
    """Whether what is asked of this engine is answered, and charged, by somebody else."""
    if engine == AUTO:
        return False  # it is measured what it chooses among
    try:
        return engine_class(engine).elsewhere
    except PressroomError:  # there is no such engine here: its fleet says so
        return False


_NEARNESS = {
    phase: number
    for number, phase in enumerate(
        (Phase.READY, Phase.STARTING, Phase.BACKOFF, Phase.WAITING, Phase.FAILED, Phase.ASLEEP, Phase.STOPPED)
    )
}


def _wishes(wish: Deployment) -> Iterator[tuple[Deployment, str]]:
    """A wish for each copy, and what its log is called by."""
    if wish.engine == AUTO:
        for number, variant in enumerate(wish.variants):
            each = dataclasses.replace(
                wish, ref=variant.ref, digest=variant.digest, engine=variant.engine, variants=(), replicas=1
            )
            yield each, variant.engine if number else ""
    else:
        for number in range(wish.replicas):
            yield wish, str(number + 1) if number else ""
