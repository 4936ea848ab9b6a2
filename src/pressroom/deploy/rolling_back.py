"""Going back to what had the traffic before: a wish like any other, and a switch where that is still warm."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pressroom.deploy.base import Deployment, Phase, RouteWish, Standing
from pressroom.deploy.checks import Checks
from pressroom.deploy.deployments import Deployments
from pressroom.kernel import DeployError

# Often enough that who waits for a switch waits for nothing else.
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class WayBack:
    """Where going back leads: the routes, and which of them must be loaded first. `cancels`: a version was on its way,
    or did not pass, and what serves goes on as it does."""

    routes: tuple[RouteWish, ...]
    loads: tuple[RouteWish, ...]
    cancels: bool


def way_back(wish: Deployment, standing: Standing) -> WayBack:
    """What going back from `wish` means.

    Raises:
        DeployError: there is nothing to go back to.
    """
    serving = standing.serving
    cancels = bool(serving) and _marks(serving) != _marks(wish.ways)
    target = serving if cancels else standing.previous
    if not target:
        raise DeployError(
            f"{wish.name} has nothing to go back to: {wish.ref} is the first version that it was answered by",
            hint=f"`press deploy REF --as {wish.name}` serves another version.",
            deployment=wish.name,
        )
    loaded = {route.mark for route in serving} | set(standing.warm)
    loads = tuple(route for route in target if route.mark not in loaded)
    return WayBack(routes=target, loads=loads, cancels=cancels)


def roll_back(deployments: Deployments, name: str, *, keep_warm_s: float, load: bool = False) -> Deployment:
    """Wish that `name` is answered by what it was before the last change of a version; where a roll-out is under way,
    or failed, that is what serves now. Weights, policy and cache stay as they are, unless the routes are others.

    Raises:
        NotFoundError: there is no such deployment.
        DeployError: there is nothing to go back to, or it is not loaded any more and `load` is not set.
    """
    wish = deployments.get(name)
    if not wish.running:
        raise DeployError(
            f"{name} is stopped: nothing of it serves", hint=f"`press deploy REF --as {name}` starts a version."
        )
    back = way_back(wish, deployments.standing(name))
    if back.loads and not load:
        refs = ", ".join(route.ref for route in back.loads)
        raise DeployError(
            f"{refs} is no longer warm: going back to it loads it first",
            hint=f"`press rollback {name} --load` does that; the present version answers until it is up.",
            deployment=name,
            loads=[route.ref for route in back.loads],
        )
    routes = _with_weights(back.routes, wish)
    if wish.policy:
        from pressroom.deploy._telling import check_terms

        check_terms(wish.policy, routes)
    return deployments.put_routes(wish, routes, rollout=Checks.none(keep_warm_s=keep_warm_s))


def wait_for_switch(deployments: Deployments, wish: Deployment, *, timeout_s: float) -> float:
    """Return when what was wished has the traffic, with the seconds that took.

    Raises:
        DeployError: it failed, or the time is over.
    """
    began = time.monotonic()
    wanted = _marks(wish.ways)
    while time.monotonic() < began + timeout_s:
        seen = deployments.observed(wish)
        settled = seen.generation >= wish.generation and seen.phase in (Phase.READY, Phase.ASLEEP)
        if settled and _marks(deployments.standing(wish.name).serving) == wanted:
            return time.monotonic() - began
        if seen.generation >= wish.generation and seen.phase is Phase.FAILED:
            raise DeployError(
                f"{wish.name} did not go back: {seen.detail}", hint=f"`press logs {wish.name}` shows more."
            )
        time.sleep(_POLL_S)
    raise DeployError(
        f"{wish.name} has not gone back after {timeout_s:.0f} s",
        hint=f"The wish stays; `press ps` and `press rollouts {wish.name}` show how it goes on.",
    )


def _with_weights(routes: Sequence[RouteWish], wish: Deployment) -> tuple[RouteWish, ...]:
    """The old versions with today's shares and prices, where the routes have the same names."""
    now = {way.name: way for way in wish.ways}
    if set(now) != {route.name for route in routes}:
        return tuple(routes)
    return tuple(
        dataclasses.replace(route, weight=now[route.name].weight, price=now[route.name].price) for route in routes
    )


def _marks(routes: Sequence[RouteWish]) -> list[str]:
    return sorted(route.mark for route in routes)
