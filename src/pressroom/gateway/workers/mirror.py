"""A worker's copy of the server's routes, and what it says of its requests: what runs where, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pressroom.cost import Price
from pressroom.gateway.policy.base import Policy
from pressroom.gateway.routes import Branch, Load, Route, RouteTable, Served, Tally, lanes_of
from pressroom.gateway.workers._pipe import Message
from pressroom.gateway.workers._plain import Plain, cache_of, policy_of, price_of, route_of, speeds_of


class MirrorTable(RouteTable):
    """Follows the messages of a `SharedTable`. `send` takes those to it. Belongs to the event loop; call `report` some
    times a second."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._prices: dict[Route, Price | None] = {}
        super().__init__(pricing=self._prices.get)
        self._send = send
        # Policies as they came, and read: one that has not changed stays the same object, and what a model remembers
        # of its branches with it.
        self._policies: dict[str, tuple[Any, Policy | None]] = {}
        self._said: dict[tuple[str, str, int], tuple[int, float]] = {}
        self._asked_before: dict[str, float] = {}
        self._counted: dict[tuple[str, str], tuple[Tally, int, int, int]] = {}

    def follow(self, message: Message) -> None:
        """The routes of a model have changed."""
        _, model, number, plain = message
        self.report()  # what came of requests on branches that are gone now
        if plain is None:
            self._policies.pop(model, None)
            self.remove(model)
        else:
            self._take(str(model), plain)
        self._send(["has", model, number])

    def report(self) -> None:
        """Say what has changed since the last time."""
        loads, tallies = self._changed_loads(), self._changed_tallies()
        asked = [[model, at] for model, at in self._asked.items() if self._asked_before.get(model) != at]
        if loads or tallies or asked:
            self._asked_before.update(self._asked)
            self._send(["loads", loads, asked, tallies])

    def ask_for(self, model: str, now: float) -> None:
        first = now - self._asked.get(model, 0.0) > 1.0
        super().ask_for(model, now)
        if first:
            self.report()  # it may sleep: let it be woken now

    def _take(self, model: str, plain: Plain) -> None:
        branches = []
        self._prices.clear()
        for each in plain["branches"]:
            routes = []
            for route, price in each["lanes"]:
                routes.append(route_of(route))
                self._prices[routes[-1]] = price_of(price)
            speeds = speeds_of(each["speeds"])
            branches.append(
                Branch(name=each["name"], routes=tuple(routes), weight=float(each["weight"]), speeds=speeds)
            )
        policy, cache = self._policy(model, plain), cache_of(plain["cache"])
        if plain["single"]:
            self.put(model, branches[0].routes, speeds=branches[0].speeds, policy=policy, cache=cache)
        else:
            self.put_branches(model, branches, policy=policy, cache=cache)
        served = self.served(model)
        assert served is not None
        for lane in lanes_of(served):  # those that stay have the price of before
            lane.price = self._prices[lane.route]

    def _policy(self, model: str, plain: Plain) -> Policy | None:
        before = self._policies.get(model)
        if before is None or before[0] != plain["policy"]:
            before = self._policies[model] = (plain["policy"], policy_of(plain["policy"]))
        return before[1]

    def _changed_loads(self) -> list[list[Any]]:
        loads = self._loads
        gone = [endpoint for endpoint in self._said if endpoint not in loads]
        found: list[list[Any]] = [[*endpoint, 0, self._said.pop(endpoint)[1]] for endpoint in gone]
        for endpoint, load in loads.items():
            now = _of(load)
            if self._said.get(endpoint, (0, 0.0)) != now:
                self._said[endpoint] = now
                found.append([*endpoint, *now])
        return found

    def _changed_tallies(self) -> list[list[Any]]:
        found: list[list[Any]] = []
        counted: dict[tuple[str, str], tuple[Tally, int, int, int]] = {}
        for model, served in self._served.items():
            for branch, tally in _tallies(served):
                before = self._counted.get((model, branch))
                answered, failed, left = before[1:] if before is not None and before[0] is tally else (0, 0, 0)
                counted[model, branch] = (tally, tally.answered, tally.failed, tally.left)
                more = (tally.answered - answered, tally.failed - failed, tally.left - left)
                if any(more):
                    count = min(more[0] + more[1], len(tally.latest))
                    latest = list(tally.latest)[len(tally.latest) - count :]
                    found.append([model, branch, *more, latest])
        self._counted = counted
        return found


def _of(load: Load) -> tuple[int, float]:
    return load.running, load.used


def _tallies(served: Served) -> list[tuple[str, Tally]]:
    return [("", served.tally), *((name, branch.tally) for name, branch in served.branches.items())]
