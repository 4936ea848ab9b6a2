"""Policies at work: what is remembered of each model from request to request, and the choice of the first branch."""

from __future__ import annotations

import dataclasses
import random as _random
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from pressroom.gateway.asking import Asked
from pressroom.gateway.policy._marks import Mark
from pressroom.gateway.policy._plan import Plan, Way
from pressroom.gateway.policy._reading_room import ReadingRoom
from pressroom.gateway.policy._rules import Detectors, Judged, Reading, judged, own_detectors
from pressroom.gateway.policy._shadows import Copy, Shadows, recent
from pressroom.gateway.policy._steered import Steered
from pressroom.gateway.policy.base import OWN, Policy

if TYPE_CHECKING:
    from pressroom.gateway.asking import Receiver
    from pressroom.gateway.policy.base import Asking, Start
    from pressroom.gateway.routes import Served


class _Refused(Asked):
    """Nothing is under way."""

    def cancel(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


_REFUSED = _Refused()
_PLAIN = Policy()


class Steerings:
    """The steering of every model: one object for a gateway, on its event loop. What is known of a branch stays while
    the branch does, also when the policy changes.

    `detectors` find what is personal, `random` gives numbers from 0 to 1, `clock` seconds: for tests.
    """

    def __init__(
        self,
        *,
        detectors: Detectors | None = None,
        random: Callable[[], float] = _random.random,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._detectors = detectors
        self._random = random
        self._clock = clock
        self._shadows = Shadows()
        self._readers = ReadingRoom()
        self._models: dict[str, Steering] = {}

    def of(self, model: str, policy: Policy | None) -> Steering:
        """The steering of `model`, which follows `policy` from now on (None: one that says nothing)."""
        if policy is None:
            policy = _PLAIN
        found = self._models.get(model)
        if found is None:
            found = Steering(policy, self._detectors, self._shadows, self._readers, self._random, self._clock)
            self._models[model] = found
        elif found.policy is not policy:
            found.follow(policy)
        return found

    def forget(self, model: str) -> None:
        """Remember nothing of a model that is gone; what is under way ends as it would have."""
        self._models.pop(model, None)

    @property
    def under_way(self) -> int:
        """Requests that are steered now."""
        return sum(steering.under_way for steering in self._models.values())

    @property
    def shadows_under_way(self) -> int:
        """Copies that are compared now."""
        return self._shadows.under_way

    def snapshot(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By model and branch, the counts since the gateway began and the state of the breaker."""
        return {model: steering.snapshot() for model, steering in sorted(self._models.items())}

    def compared(self) -> dict[str, list[dict[str, Any]]]:
        """By model, what came of the last copies, newest at the end; no text."""
        return {model: steering.compared() for model, steering in sorted(self._models.items())}


class Steering:
    """One model's."""

    __slots__ = (
        "_detectors", "_marks", "_plan", "clock", "comparisons", "policy", "random", "readers", "shadows", "under_way",
    )  # fmt: skip

    def __init__(
        self,
        policy: Policy,
        detectors: Detectors | None,
        shadows: Shadows,
        readers: ReadingRoom,
        random: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self.policy = policy
        self.shadows = shadows
        self.readers = readers
        self.random = random
        self.clock = clock
        #: The last ones, newest at the end.
        self.comparisons = recent()
        self.under_way = 0
        self._detectors = detectors
        self._marks: dict[str, Mark] = {}
        self._plan: Plan | None = None

    def follow(self, policy: Policy) -> None:
        """From now on as `policy` says."""
        self.policy = policy
        self._plan = None

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """By branch."""
        now = self.clock()
        return {name: mark.snapshot(now) for name, mark in self._marks.items()}

    def compared(self) -> list[dict[str, Any]]:
        """What came of the last copies, newest at the end."""
        return [dataclasses.asdict(comparison) for comparison in self.comparisons]

    def steer(self, asking: Asking, served: Served, receiver: Receiver, start: Start) -> Asked:
        """Ask the branches of `served` for `asking`, and give `receiver` one answer or the last refusal. The receiver
        may be called before this returns."""
        plan = self._plan
        if plan is None or plan.served is not served:
            plan = self._planned(served)
        if plan.judges:
            reading = Reading(asking, self._detectors or self._own_detectors())
            if plan.finds and reading.long:
                then = partial(self._by_rules, plan, asking, receiver, start, reading)
                return self.readers.read(reading, plan.finds, self, receiver, then)
            return self._by_rules(plan, asking, receiver, start, reading)
        first = self._chosen(plan, asking, None) if plan.asks_who else plan.everyone.draw(self.random)
        return self._sent(plan, asking, receiver, start, first, plan.later(first), None)

    def _by_rules(self, plan: Plan, asking: Asking, receiver: Receiver, start: Start, reading: Reading) -> Asked:
        verdict = judged(plan, asking, reading)
        allowed = verdict.allowed
        if allowed is not None and not allowed:
            receiver.failed(verdict.refusal(asking.row.verdicts))
            return _REFUSED
        first, later = self._first(plan, asking, verdict)
        return self._sent(plan, asking, receiver, start, first, later, allowed)

    def _sent(
        self,
        plan: Plan,
        asking: Asking,
        receiver: Receiver,
        start: Start,
        first: Way,
        later: tuple[Way, ...],
        allowed: frozenset[str] | None,
    ) -> Steered:
        mark = first.mark
        if not first.available or (mark.open_until and not mark.passes(self.clock())):
            first, later = self._instead(first, later, allowed)
        steered = Steered(self, asking, receiver, start, later, allowed)
        shadow = plan.shadow
        if shadow is not None and shadow is not first and (allowed is None or shadow.name in allowed):
            self._copy(steered, shadow)
        steered.ask(first)
        return steered

    def _own_detectors(self) -> Detectors:
        self._detectors = own_detectors()  # not before a request needs them
        return self._detectors

    def _planned(self, served: Served) -> Plan:
        branches = served.branches or ("",)
        self._marks = {name: self._marks.get(name) or Mark() for name in branches}
        plan = self._plan = Plan(self.policy, served, self._marks)
        return plan

    def _chosen(self, plan: Plan, asking: Asking, allowed: frozenset[str] | None) -> Way:
        """By who asks, where that says something, else drawn."""
        policy = plan.policy
        caller = asking.caller
        if policy.split:
            for name in (f"key:{caller.key}", f"team:{caller.team}", f"tag:{asking.tag}"):
                way = plan.ways.get(policy.split.get(name, ""))
                if name in policy.split and way is not None and (allowed is None or way.name in allowed):
                    return way
        shares = plan.everyone if allowed is None else plan.shares(allowed)
        if policy.sticky:
            subject = caller.key or asking.fields.get("user")
            if subject:
                return shares.stuck(subject)
        return shares.draw(self.random)

    def _first(self, plan: Plan, asking: Asking, verdict: Judged) -> tuple[Way, tuple[Way, ...]]:
        """Who is asked first by the rules, and who after."""
        allowed = verdict.allowed
        may = plan.ways if allowed is None else allowed & plan.ways.keys()
        preferred = [name for name in verdict.prefer if name == OWN or name in may]
        if not preferred:
            first = self._chosen(plan, asking, allowed)
            return first, plan.later(first)
        if preferred[0] == OWN:
            own = plan.own if allowed is None else plan.own & allowed
            first = self._chosen(plan, asking, own or allowed)
        else:
            first = plan.ways[preferred[0]]
        ahead = [plan.ways[name] for name in preferred if name in plan.ways and name != first.name]
        if OWN in preferred:
            ahead += [way for way in plan.later(first) if not way.elsewhere and way not in ahead]
        return first, (*ahead, *(way for way in plan.later(first) if way not in ahead))

    def _instead(
        self, first: Way, later: tuple[Way, ...], allowed: frozenset[str] | None
    ) -> tuple[Way, tuple[Way, ...]]:
        """Another one, where `first` is not ready or failed too often; itself, where no other can answer."""
        now = self.clock()
        for way in later:
            if way.available and way.mark.passes(now) and (allowed is None or way.name in allowed):
                first.mark.passed_over += 1
                return way, tuple(other for other in later if other is not way)
        return first, later

    def _copy(self, steered: Steered, shadow: Way) -> None:
        """Send a copy along, for some of the requests."""
        policy = self.policy.shadow
        assert policy is not None
        if steered.asking.endpoint.conversation == "input" or self.random() >= policy.share:
            return  # vectors are no text to compare
        mark = shadow.mark
        if self.shadows.full or not shadow.available or mark.open_until:
            mark.shadows_skipped += 1
        else:
            steered.copy = Copy(steered, shadow)
