"""Where each model answers: written by a reconciler's thread, read by the gateway's event loop without a lock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pressroom.cost import Price
from pressroom.engines.base import Capabilities
from pressroom.gateway._choosing import Chooser, Speeds

if TYPE_CHECKING:
    from pressroom.gateway.cache import CachePolicy
    from pressroom.gateway.policy import Policy

#: What costs nothing by the token.
FREE = Price()
_NOTHING = Capabilities(chat=False, completions=False, streaming=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One way to answer to `model`: the engine at `host`:`port` that runs the version `ref` with `digest`.

    `context` is in tokens a request and `slots` in requests at once (0: not known), `created` in seconds since the
    epoch. A route that is not `ready` is listed; a request for it waits where it is `coming` (it starts, wakes or is
    started again), and is answered 503 with its `detail` and `retry_after_s` where it is not. One that is `asleep` is
    started by the request itself.
    """

    model: str
    #: Which of the deployment's branches it belongs to; '' where it has one.
    branch: str = ""
    host: str = ""
    port: int = 0
    ref: str = ""
    digest: str = ""
    engine: str = ""
    context: int = 0
    slots: int = 0
    capabilities: Capabilities = field(default_factory=Capabilities)
    created: int = 0
    ready: bool = True
    coming: bool = False
    asleep: bool = False
    detail: str = ""
    retry_after_s: int = 2
    #: Whether it is a vendor's: what is asked leaves the machines of one's own.
    elsewhere: bool = False
    #: `exact`, or `meaning;` and the cosine: the answer was kept from before, and no engine worked on it.
    cache: str = ""

    @property
    def available(self) -> bool:
        """Whether a request is answered: now, or as soon as it has woken the engine."""
        return self.ready or self.asleep

    @staticmethod
    def no_capabilities() -> Capabilities:
        """What a route can do whose engine has not been chosen."""
        return _NOTHING


class Load:
    """How many requests run on one endpoint, and when the last one ended (seconds of the monotonic clock); changed on
    the event loop only, read from anywhere."""

    __slots__ = ("running", "used")

    def __init__(self) -> None:
        self.running = 0
        self.used = 0.0


class Lane:
    """A route as the table holds it: with its load, what the gateway prepares once a route, until when it is passed
    over because its engine was not there, and the requests on it that have no answer yet (kept where there are others).
    """

    __slots__ = ("load", "prepared", "price", "route", "shunned_until", "unbegun")

    def __init__(self, route: Route, load: Load, price: Price | None = FREE) -> None:
        self.route = route
        self.load = load
        #: What its tokens cost; None where nobody knows.
        self.price = price
        self.prepared: Any = None
        self.shunned_until = 0.0
        self.unbegun: dict[Any, None] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """One of several ways to answer to a model: the copies of one version, or a vendor. `weight` is its share of the
    requests beside the other branches' weights; with 0 it gets those only that a policy sends there.

    `speeds` as `RouteTable.put` has them.
    """

    name: str
    routes: tuple[Route, ...]
    weight: float = 1.0
    speeds: Mapping[str, Speeds] = field(default_factory=dict)


class Tally:
    """What came of the requests on one branch since the server began; only ever grows. Changed on the event loop, read
    from anywhere. `latest` are (seconds to the first token or, of an answer in one piece, to all of it; worked or not)
    of the last requests, newest at the end."""

    __slots__ = ("answered", "failed", "latest", "left")

    def __init__(self) -> None:
        self.answered = 0
        #: Ended with a status of 500 or more, or broke off.
        self.failed = 0
        self.left = 0
        self.latest: deque[tuple[float, bool]] = deque(maxlen=512)


class Served:
    """One model, or one branch of it: its lanes (at least one, the first of which speaks for all), and who chooses
    among several. A model with `branches` is answered by these, as `policy` says; its lanes are those of the branch
    with the largest weight."""

    __slots__ = ("branches", "cache", "chooser", "lanes", "policy", "tally", "weight")

    def __init__(
        self, lanes: tuple[Lane, ...], chooser: Chooser | None, *, tally: Tally | None = None, weight: float = 1.0
    ) -> None:
        self.lanes = lanes
        self.chooser = chooser
        self.tally = tally or Tally()
        self.weight = weight
        self.branches: dict[str, Served] = {}
        self.policy: Policy | None = None
        self.cache: CachePolicy | None = None

    @property
    def route(self) -> Route:
        """A ready route where there is one, else the first."""
        return next((lane.route for lane in self.lanes if lane.route.ready), self.lanes[0].route)


class RouteTable:
    """The routes by the name of their model. A change replaces the whole dictionary, so a reader sees one moment.

    `pricing` says what a route's tokens cost (None: not known); without it all are free.
    """

    def __init__(self, *, pricing: Callable[[Route], Price | None] | None = None) -> None:
        #: Called by whoever changes the routes, and may look things up.
        self.pricing = pricing or (lambda route: FREE)
        self._served: dict[str, Served] = {}
        # Endpoints that are in the table, or were and still have requests.
        self._loads: dict[tuple[str, str, int], Load] = {}
        self._writing = threading.Lock()
        self._listeners: tuple[Callable[[str], None], ...] = ()
        self._asked: dict[str, float] = {}

    def set(self, route: Route) -> None:
        """Let `route` alone answer for its model, in place of what did."""
        self.put(route.model, [route])

    def put(
        self,
        model: str,
        routes: Sequence[Route],
        *,
        speeds: Mapping[str, Speeds] | None = None,
        policy: Policy | None = None,
        cache: CachePolicy | None = None,
    ) -> None:
        """Let these routes answer for `model`, in place of what did. `speeds` is what the engines named by
        `Route.engine` were measured to give, where the load is to choose among them; `cache` says what is kept."""
        assert routes and all(route.model == model for route in routes)
        with self._writing:
            served = self._made(routes, speeds, self._served.get(model))
            served.policy, served.cache = policy, cache
            self._served = {**self._served, model: served}
            self._forget_idle()
        self._tell(model)

    def put_branches(
        self,
        model: str,
        branches: Sequence[Branch],
        *,
        policy: Policy | None = None,
        cache: CachePolicy | None = None,
    ) -> None:
        """Let these branches answer for `model`, in place of what did, each with its share. The names of branches are
        those of their routes (`Route.branch`), and no two are alike."""
        assert branches and len({branch.name for branch in branches}) == len(branches)
        assert all(
            route.branch == branch.name and route.model == model for branch in branches for route in branch.routes
        )
        with self._writing:
            before = self._served.get(model)
            known = before.branches if before is not None else {}
            made = {
                branch.name: self._made(branch.routes, branch.speeds, known.get(branch.name), weight=branch.weight)
                for branch in branches
            }
            first = max(made.values(), key=lambda branch: branch.weight)
            served = Served(first.lanes, first.chooser, tally=before.tally if before is not None else None)
            served.branches, served.policy, served.cache = made, policy, cache
            self._served = {**self._served, model: served}
            self._forget_idle()
        self._tell(model)

    def _made(
        self,
        routes: Sequence[Route],
        speeds: Mapping[str, Speeds] | None,
        before: Served | None,
        *,
        weight: float = 1.0,
    ) -> Served:
        known = {lane.route: lane for lane in before.lanes} if before is not None and len(routes) > 1 else {}
        lanes = []
        for route in routes:
            load = self._loads.setdefault(_endpoint(route), Load())
            lanes.append(known.get(route) or Lane(route, load, self.pricing(route)))
        chooser = None
        if len(lanes) > 1:
            # What it remembers of prefixes stays true of the engines that stay.
            chooser = before.chooser if before is not None and before.chooser is not None else Chooser()
            chooser.speeds = dict(speeds or {})
        return Served(tuple(lanes), chooser, tally=before.tally if before is not None else None, weight=weight)

    def remove(self, name: str) -> None:
        """Take the routes of `name` out; nothing happens where there are none."""
        with self._writing:
            self._served = {model: served for model, served in self._served.items() if model != name}
            self._forget_idle()
        self._tell(name)

    def get(self, name: str) -> Route | None:
        """The route that speaks for `name`, or None."""
        served = self._served.get(name)
        return served.route if served is not None else None

    def all(self) -> list[Route]:
        """The route that speaks for each model, by name."""
        return [served.route for _, served in sorted(self._served.items())]

    def every(self) -> list[Route]:
        """Every route of every model, by name."""
        return [lane.route for _, served in sorted(self._served.items()) for lane in lanes_of(served)]

    def reprice(self) -> None:
        """Look every price up again: what is asked from now on costs what it says."""
        with self._writing:
            for served in self._served.values():
                for lane in lanes_of(served):
                    lane.price = self.pricing(lane.route)

    def in_flight(self, route: Route) -> int:
        """Requests that run on the endpoint of `route`, also after another route took its place.

        Once the table holds another route, no request starts on the old one: when this is 0 it stays 0.
        """
        load = self._loads.get(_endpoint(route))
        return load.running if load is not None else 0

    def last_used(self, route: Route) -> float:
        """When a request last ended on the endpoint of `route`, in seconds of the monotonic clock; 0 where none has."""
        load = self._loads.get(_endpoint(route))
        return load.used if load is not None else 0.0

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the name of a model whenever its routes changed, in the thread that changed them."""
        self._listeners = (*self._listeners, listener)

    def ask_for(self, model: str, now: float) -> None:
        """For the gateway: somebody asks for `model` (`now` in seconds of the monotonic clock)."""
        self._asked[model] = now

    def asked(self, model: str) -> float:
        """When somebody last asked for `model`, in seconds of the monotonic clock; 0 where nobody has."""
        return self._asked.get(model, 0.0)

    def served(self, name: str) -> Served | None:
        """For the gateway: what answers for `name`."""
        return self._served.get(name)

    def tally(self, model: str, branch: str = "") -> Tally | None:
        """What came of the requests on a branch of `model` ('': where it has none); None where there is none of it."""
        served = self._served.get(model)
        if served is not None and branch:
            served = served.branches.get(branch)
        return served.tally if served is not None else None

    def lane(self, name: str) -> Lane | None:
        """The first lane of `name`."""
        served = self._served.get(name)
        return served.lanes[0] if served is not None else None

    def enter(self, lane: Lane) -> bool:
        """For the gateway, on the event loop: count one request in; False where `lane` is no longer in the table."""
        lane.load.running += 1
        # Counted first, then looked: whoever replaced the lane before this line is seen here, and whoever does after
        # it sees the count. Otherwise an engine could be stopped between the look-up and the count.
        served = self._served.get(lane.route.model)
        if served is not None and served.branches:
            served = served.branches.get(lane.route.branch)
        if served is not None and lane in served.lanes:
            return True
        lane.load.running -= 1
        return False

    def _tell(self, model: str) -> None:
        for listener in self._listeners:
            listener(model)

    def _forget_idle(self) -> None:
        used = {id(lane.load) for served in self._served.values() for lane in lanes_of(served)}
        self._loads = {endpoint: load for endpoint, load in self._loads.items() if load.running or id(load) in used}


def _endpoint(route: Route) -> tuple[str, str, int]:
    return route.model, route.host, route.port


def lanes_of(served: Served) -> list[Lane]:
    """The lanes of all its branches."""
    if served.branches:
        return [lane for branch in served.branches.values() for lane in branch.lanes]
    return list(served.lanes)
