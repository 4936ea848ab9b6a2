"""The route table of a server with workers: what changes goes to each of them, and what runs at them counts here.

A worker that was told of a change says when it has it. Until then it may still send requests where the table does not
lead any more, so that an engine is not ended because nothing runs on it *here*.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pressroom.cost import Price
from pressroom.gateway.routes import Route, RouteTable
from pressroom.gateway.workers._pipe import Message
from pressroom.gateway.workers._plain import plain_served

Endpoint = tuple[str, str, int]


class Mirrored:
    """What one worker has of the table, and what runs there. Changed on the event loop, read from anywhere."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self.send = send
        #: By model, the number of the last change that it has.
        self.acked: dict[str, int] = {}
        self.running: dict[Endpoint, int] = {}
        self.used: dict[Endpoint, float] = {}


class SharedTable(RouteTable):
    """As `RouteTable`, for a process whose workers answer. `join` and all that is about a worker belong to the event
    loop; `bring` is called from any thread with work for it."""

    def __init__(self, *, pricing: Callable[[Route], Price | None] | None = None) -> None:
        super().__init__(pricing=pricing)
        self._noting = threading.Lock()
        self._number = 0
        # By model, the number of its last change; also of models that are gone.
        self._changes: dict[str, int] = {}
        self._mirrors: tuple[Mirrored, ...] = ()
        self.bring: Callable[[Callable[[], None]], None] | None = None
        self.listen(self._note)

    def reprice(self) -> None:
        super().reprice()
        for model in list(self._served):
            self._note(model)

    # From any thread: what the workers do counts.

    def in_flight(self, route: Route) -> int:
        running = super().in_flight(route)
        change = self._changes.get(route.model, 0)
        endpoint = _endpoint(route)
        for mirror in self._mirrors:
            # In this order: a worker that has the change by now has said before what runs there.
            if mirror.acked.get(route.model, 0) < change:
                running += 1
            running += mirror.running.get(endpoint, 0)
        return running

    def last_used(self, route: Route) -> float:
        endpoint = _endpoint(route)
        return max([super().last_used(route), *(mirror.used.get(endpoint, 0.0) for mirror in self._mirrors)])

    # On the event loop.

    def join(self, send: Callable[[Message], None]) -> Mirrored:
        """A new worker: it is told of every route now, and of every change from now on."""
        mirror = Mirrored(send)
        with self._noting:
            mirror.acked = dict(self._changes)  # before the table is read: it had none of what was before
        self._mirrors = (*self._mirrors, mirror)
        for model in list(self._served):
            self._tell_one(mirror, model)
        return mirror

    def part(self, mirror: Mirrored) -> None:
        """Its process is gone, and with it what ran there."""
        for endpoint, used in mirror.used.items():
            load = self._loads.get(endpoint)
            if load is not None:
                load.used = max(load.used, used)
        self._mirrors = tuple(each for each in self._mirrors if each is not mirror)

    def said(self, mirror: Mirrored, message: Message) -> None:
        """A worker says that it has a change, or what runs there."""
        kind, *values = message
        if kind == "has":
            model, number = values
            mirror.acked[model] = max(int(number), mirror.acked.get(model, 0))
            return
        loads, asked, tallies = values
        for model, host, port, running, used in loads:
            endpoint = (str(model), str(host), int(port))
            if used:
                mirror.used[endpoint] = float(used)
            if running:
                mirror.running[endpoint] = int(running)
            else:
                mirror.running.pop(endpoint, None)
                if endpoint not in self._loads:  # nobody will ask for it any more
                    mirror.used.pop(endpoint, None)
        for model, at in asked:
            self.ask_for(str(model), max(float(at), self.asked(str(model))))
        for model, branch, answered, failed, left, latest in tallies:
            tally = self.tally(str(model), str(branch))
            if tally is not None:
                tally.answered += int(answered)
                tally.failed += int(failed)
                tally.left += int(left)
                tally.latest.extend((float(seconds), bool(well)) for seconds, well in latest)

    def _note(self, model: str) -> None:
        """The routes of a model have changed; they are in the table already."""
        with self._noting:
            self._number += 1
            self._changes[model] = self._number
        if self.bring is not None:
            self.bring(lambda: self._tell_all(model))

    def _tell_all(self, model: str) -> None:
        for mirror in self._mirrors:
            self._tell_one(mirror, model)

    def _tell_one(self, mirror: Mirrored, model: str) -> None:
        number = self._changes.get(model, 0)  # first: what is read then is this change or a later one
        served = self._served.get(model)
        mirror.send(["routes", model, number, None if served is None else plain_served(served)])


def _endpoint(route: Route) -> Endpoint:
    return route.model, route.host, route.port
