"""Where each model answers: written by a reconciler's thread, read by the gateway's event loop without a lock."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from pressroom.engines.base import Capabilities

_NOTHING = Capabilities(chat=False, completions=False, streaming=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One way to answer to `model`: the engine at `host`:`port` that runs the version `ref` with `digest`.

    `context` is in tokens a request (0: not known), `created` in seconds since the epoch. A route that is not `ready`
    is listed and answers 503 with its `detail` and `retry_after_s`.
    """

    model: str
    host: str = ""
    port: int = 0
    ref: str = ""
    digest: str = ""
    engine: str = ""
    context: int = 0
    capabilities: Capabilities = field(default_factory=Capabilities)
    created: int = 0
    ready: bool = True
    detail: str = ""
    retry_after_s: int = 2

    @staticmethod
    def no_capabilities() -> Capabilities:
        """What a route can do whose engine has not been chosen."""
        return _NOTHING


class Load:
    """How many requests run on one endpoint; changed on the event loop only, read from anywhere."""

    __slots__ = ("running",)

    def __init__(self) -> None:
        self.running = 0


class Lane:
    """A route as the table holds it: with its load, and a place for what the gateway prepares once a route."""

    __slots__ = ("load", "prepared", "route")

    def __init__(self, route: Route, load: Load) -> None:
        self.route = route
        self.load = load
        self.prepared: Any = None


class RouteTable:
    """The routes by the name of their model. A change replaces the whole dictionary, so a reader sees one moment."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        # Endpoints that are in the table, or were and still have requests.
        self._loads: dict[tuple[str, str, int], Load] = {}
        self._writing = threading.Lock()

    def set(self, route: Route) -> None:
        """Add the route, or put it in place of the one for the same model."""
        with self._writing:
            load = self._loads.setdefault(_endpoint(route), Load())
            self._lanes = {**self._lanes, route.model: Lane(route, load)}
            self._forget_idle()

    def remove(self, name: str) -> None:
        """Take the route of `name` out; nothing happens where there is none."""
        with self._writing:
            self._lanes = {model: lane for model, lane in self._lanes.items() if model != name}
            self._forget_idle()

    def get(self, name: str) -> Route | None:
        """The route of `name`, or None."""
        lane = self._lanes.get(name)
        return lane.route if lane is not None else None

    def all(self) -> list[Route]:
        """Every route, by name."""
        return [lane.route for _, lane in sorted(self._lanes.items())]

    def in_flight(self, route: Route) -> int:
        """Requests that run on the endpoint of `route`, also after another route took its place.

        Once the table holds another route, no request starts on the old one: when this is 0 it stays 0.
        """
        load = self._loads.get(_endpoint(route))
        return load.running if load is not None else 0

    def lane(self, name: str) -> Lane | None:
        """For the gateway: the lane of `name`."""
        return self._lanes.get(name)

    def enter(self, lane: Lane) -> bool:
        """For the gateway, on the event loop: count one request in; False where `lane` is no longer in the table."""
        lane.load.running += 1
        # Counted first, then looked: whoever replaced the lane before this line is seen here, and whoever does after
        # it sees the count. Otherwise an engine could be stopped between the look-up and the count.
        if self._lanes.get(lane.route.model) is lane:
            return True
        lane.load.running -= 1
        return False

    def _forget_idle(self) -> None:
        used = {id(lane.load) for lane in self._lanes.values()}
        self._loads = {endpoint: load for endpoint, load in self._loads.items() if load.running or id(load) in used}


def _endpoint(route: Route) -> tuple[str, str, int]:
    return route.model, route.host, route.port
