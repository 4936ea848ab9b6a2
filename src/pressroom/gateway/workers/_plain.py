"""What answers to a model as plain data, for its way to the workers: routes, prices, speeds and policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pressroom.cost import Price, Tier
from pressroom.engines.base import Capabilities
from pressroom.gateway._choosing import Speeds
from pressroom.gateway.cache.base import CachePolicy, MeaningPolicy
from pressroom.gateway.policy.base import Breaker, Limits, Policy, Retry, Rule, Shadow, When
from pressroom.gateway.routes import Route, Served

Plain = dict[str, Any]


def plain_served(served: Served) -> Plain:
    """All that a worker has to know to answer as this process would."""
    branches = served.branches or {"": served}
    return {
        "branches": [
            {
                "name": name,
                "weight": branch.weight,
                "speeds": dict(branch.chooser.speeds) if branch.chooser is not None else {},
                "lanes": [[asdict(lane.route), plain_price(lane.price)] for lane in branch.lanes],
            }
            for name, branch in branches.items()
        ],
        "single": not served.branches,
        "policy": asdict(served.policy) if served.policy is not None else None,
        "cache": asdict(served.cache) if served.cache is not None else None,
    }


def route_of(plain: Mapping[str, Any]) -> Route:
    """The route of `plain_served`."""
    return Route(**{**plain, "capabilities": Capabilities(**plain["capabilities"])})


def speeds_of(plain: Mapping[str, Any]) -> dict[str, Speeds]:
    """What the engines of a branch were measured to give."""
    return {str(engine): tuple((int(at), float(rate)) for at, rate in pairs) for engine, pairs in plain.items()}


def policy_of(plain: Mapping[str, Any] | None) -> Policy | None:
    """The policy of `plain_served`. It was checked when it was read, and its branches need not all be there now."""
    if plain is None:
        return None
    order, shadow = plain["order"], plain["shadow"]
    return Policy(
        **{
            **plain,
            "order": None if order is None else tuple(order),
            "retry": Retry(**plain["retry"]),
            "breaker": Breaker(**plain["breaker"]),
            "limits": Limits(**plain["limits"]),
            "shadow": None if shadow is None else Shadow(**shadow),
            "rules": tuple(_rule(rule) for rule in plain["rules"]),
        }
    )


def cache_of(plain: Mapping[str, Any] | None) -> CachePolicy | None:
    """What `plain_served` says that is kept."""
    if plain is None:
        return None
    meaning = plain["meaning"]
    return CachePolicy(**{**plain, "meaning": None if meaning is None else MeaningPolicy(**meaning)})


def plain_price(price: Price | None) -> Plain | None:
    """A price, exactly; None where nobody knows it."""
    return None if price is None else asdict(price)


def price_of(plain: Mapping[str, Any] | None) -> Price | None:
    """The price of `plain_price`."""
    if plain is None:
        return None
    return _known(plain)


def _known(plain: Mapping[str, Any]) -> Price:
    tiers = tuple(Tier(**tier) for tier in plain["tiers"])
    services = tuple((str(name), _known(price)) for name, price in plain["services"])
    return Price(**{**plain, "tiers": tiers, "services": services})


def _rule(plain: Mapping[str, Any]) -> Rule:
    when: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plain["when"].items()
    }
    return Rule(name=plain["name"], when=When(**when), only=tuple(plain["only"]), prefer=tuple(plain["prefer"]))
