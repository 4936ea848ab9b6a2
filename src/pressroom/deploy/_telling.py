"""What the gateway is told of a deployment: its routes as branches with their shares, its policy, its cache."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pressroom.deploy._route_life import RouteLife
from pressroom.deploy._trial import canary_of
from pressroom.deploy.base import Deployment, RouteWish
from pressroom.deploy.fleet import is_elsewhere
from pressroom.gateway import Branch, RouteTable, Speeds

if TYPE_CHECKING:
    from pressroom.gateway.cache import CachePolicy
    from pressroom.gateway.policy import Policy


def made_policy(policy: Mapping[str, Any], *, branches: Sequence[str], own: Sequence[str]) -> Policy:
    """The policy that a file of a deployment says, over these branches; `own` are those on one's own machines. Raises
    DeployError, with the place."""
    from pressroom.gateway.policy import Policy

    return Policy.parse(dict(policy), branches=list(branches), own=list(own))


def made_cache(cache: Mapping[str, Any]) -> CachePolicy | None:
    """What the `[cache]` of a file says; None where there is none. Raises DeployError, with the place."""
    if not cache:
        return None
    from pressroom.gateway.cache import CachePolicy

    return CachePolicy.parse(dict(cache))


def check_terms(wish_policy: Mapping[str, Any], routes: Sequence[RouteWish]) -> None:
    """Raise DeployError where a policy does not go with these routes."""
    if wish_policy:
        own = [route.name for route in routes if not is_elsewhere(route.engine)]
        made_policy(wish_policy, branches=[route.name for route in routes], own=own)


class Teller:
    """Tells the gateway about one deployment, when there is something new."""

    def __init__(self, table: RouteTable, name: str) -> None:
        self._table = table
        self._name = name
        self._told: object = None
        self._prices: list[Any] | None = None
        self._made: tuple[object, Policy | None, CachePolicy | None] = (None, None, None)

    def tell(self, wish: Deployment, lives: Sequence[RouteLife]) -> None:
        """Raises what `made_policy` and `made_cache` do: then the gateway goes on with what it was told before."""
        branches = _branches(lives)
        prices = [(way.name, way.price) for way in wish.ways]
        terms = json.dumps([wish.policy, wish.cache, prices], sort_keys=True)
        now = (terms, tuple(branches), tuple(tuple(branch.speeds.items()) for branch in branches))
        if now == self._told:
            return
        # A lane that stays keeps the price it was made with.
        anew = self._prices is not None and prices != self._prices
        plain = len(branches) == 1 and not wish.policy
        policy, cache = self._terms(wish, branches, terms, plain=plain)
        if plain:
            routes = [dataclasses.replace(route, branch="") for route in branches[0].routes]
            self._table.put(self._name, routes, speeds=branches[0].speeds, cache=cache)
        else:
            self._table.put_branches(self._name, branches, policy=policy, cache=cache)
        self._told, self._prices = now, prices
        if anew:
            self._table.reprice()
        for life in lives:
            _note(life)

    def _terms(
        self, wish: Deployment, branches: Sequence[Branch], terms: str, *, plain: bool
    ) -> tuple[Policy | None, CachePolicy | None]:
        """Policy and cache, made anew only where something of them changed: a breaker remembers what it saw."""
        names = tuple(branch.name for branch in branches)
        own = tuple(each.name for each in branches if not any(route.elsewhere for route in each.routes))
        key = (terms, names, own, plain)
        if key != self._made[0]:
            policy = None if plain else made_policy(wish.policy, branches=names, own=own)
            self._made = (key, policy, made_cache(wish.cache))
        return self._made[1], self._made[2]


def _branches(lives: Sequence[RouteLife]) -> list[Branch]:
    found: list[Branch] = []
    up = any(life.answers for life in lives)
    for life in lives:
        # A route that has never been up is listed, so that the policy finds it, and gets nothing until it answers.
        weight = life.way.weight if life.serving is not None or not up else 0.0
        share, coming = (life.trial.share, life.coming) if life.trial is not None else (0.0, None)
        speeds: Mapping[str, Speeds] = life.live.speeds if life.live is not None else {}
        if not life.asleep and life.live is None and life.coming is not None:
            speeds = life.coming.speeds
        routes = tuple(dataclasses.replace(route, branch=life.name) for route in life.answering())
        found.append(Branch(name=life.name, routes=routes, weight=weight * (1 - share), speeds=dict(speeds)))
        if share and coming is not None:
            name = canary_of(life.name)
            found.append(
                Branch(name=name, routes=tuple(coming.routes(name)), weight=weight * share, speeds=dict(coming.speeds))
            )
    if not any(branch.weight for branch in found):
        weights = {life.name: life.way.weight for life in lives}
        if not any(weights.values()):
            weights = dict.fromkeys(weights, 1.0)
        found = [dataclasses.replace(branch, weight=weights.get(branch.name, 0.0)) for branch in found]
    return found


def _note(life: RouteLife) -> None:
    """What was told is what requests may run on."""
    life.routes = list(life.answering())
    if life.live is not None:
        life.live.told = life.routes
    if life.coming is not None:
        life.coming.told = life.coming.routes()
