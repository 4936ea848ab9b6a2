"""What is the same for every request while the routes of a model and its policy stay as they are: worked out once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import accumulate
from math import log
from typing import TYPE_CHECKING

from pressroom.gateway.policy._marks import Mark
from pressroom.gateway.policy._rules import PERSONAL_DATA, SECRET
from pressroom.gateway.policy.base import OWN

if TYPE_CHECKING:
    from pressroom.gateway.policy.base import Policy
    from pressroom.gateway.routes import Served

_REMEMBERED = 16_384
_LONGEST_SUBJECT = 128


class Way:
    """A branch as a plan has it. Nothing of the routes themselves is kept: they may be replaced at any moment."""

    __slots__ = ("available", "elsewhere", "mark", "name", "weight")

    def __init__(self, name: str, served: Served, mark: Mark) -> None:
        self.name = name
        self.mark = mark
        self.weight = served.weight
        self.available = served.route.available
        # One lane that leads away is enough: a request may take any.
        self.elsewhere = any(lane.route.elsewhere for lane in served.lanes)


class Shares:
    """Some branches with their shares. Those that are not ready get none while another is; where all have the weight 0,
    all have the same."""

    __slots__ = ("_bounds", "_last", "_stuck", "_total", "_ways")

    def __init__(self, ways: Iterable[Way]) -> None:
        found = list(ways)
        assert found
        found = [way for way in found if way.available] or found
        weighed = [way for way in found if way.weight > 0]
        self._ways = weighed or found
        self._bounds = list(accumulate(way.weight if weighed else 1.0 for way in self._ways))
        self._total = self._bounds[-1]
        self._last = len(self._ways) - 1
        self._stuck: dict[str, Way] = {}

    def draw(self, random: Callable[[], float]) -> Way:
        """One of them, each as often as its share."""
        return self._ways[bisect_right(self._bounds, random() * self._total, 0, self._last)]

    def stuck(self, subject: str) -> Way:
        """The same one for the same subject. When weights move, only as many change as must (weighted rendezvous)."""
        found = self._stuck.get(subject)
        if found is None:
            found = max(self._ways, key=lambda way: _score(subject, way))
            if len(subject) <= _LONGEST_SUBJECT:  # it may be what a client calls its user: of any length
                if len(self._stuck) >= _REMEMBERED:
                    self._stuck.clear()
                self._stuck[subject] = found
        return found


def _score(subject: str, way: Way) -> float:
    # Not `hash`: that is another one in each process.
    digest = blake2b(f"{subject}\0{way.name}".encode(errors="surrogatepass"), digest_size=8).digest()
    drawn = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return (way.weight or 1.0) / -log(drawn) if drawn < 1 else float("inf")


class Plan:
    """A policy applied to what answers for a model at one moment."""

    __slots__ = (
        "_later", "_shares", "asks_who", "everyone", "finds", "guarded", "judges", "own", "policy", "served", "shadow",
        "ways",
    )  # fmt: skip

    def __init__(self, policy: Policy, served: Served, marks: dict[str, Mark]) -> None:
        self.policy = policy
        #: To see that it is another one; never asked.
        self.served = served
        branches = served.branches or {"": served}
        self.ways = {name: Way(name, each, marks[name]) for name, each in branches.items()}
        self.own = frozenset(name for name, way in self.ways.items() if not way.elsewhere)
        #: Whether the default rule holds here: there are both, so a choice.
        self.guarded = policy.default_rule and 0 < len(self.own) < len(self.ways)
        self.judges = self.guarded or bool(policy.rules)
        #: What of a text is looked for by all its characters.
        self.finds = tuple(
            name
            for name in (SECRET, PERSONAL_DATA)
            if self.guarded or any(getattr(rule.when, name) for rule in policy.rules)
        )
        self.asks_who = bool(policy.split) or policy.sticky
        self.shadow = self.ways.get(policy.shadow.branch) if policy.shadow is not None else None
        if policy.order is None:
            heaviest = sorted(self.ways.values(), key=lambda way: -way.weight)
            order = [way for way in heaviest if way.weight > 0]
        else:
            order = [self.ways[name] for name in policy.order if name in self.ways]
        self._later = {name: tuple(way for way in order if way.name != name) for name in self.ways}
        self.everyone = self._shared(self.ways.values())
        self._shares: dict[frozenset[str], Shares] = {}

    def shares(self, names: frozenset[str]) -> Shares:
        """Those of some of the branches, at least one."""
        found = self._shares.get(names)
        if found is None:
            if len(self._shares) >= _REMEMBERED:
                self._shares.clear()
            found = self._shares[names] = self._shared(way for name, way in self.ways.items() if name in names)
        return found

    def _shared(self, ways: Iterable[Way]) -> Shares:
        found = list(ways)
        if not any(way.weight for way in found):
            # One without a share that gets copies is there for these.
            found = [way for way in found if way is not self.shadow] or found
        return Shares(found)

    def later(self, first: Way) -> tuple[Way, ...]:
        """Who is asked after `first`, in order."""
        return self._later[first.name]

    def named(self, names: Iterable[str]) -> frozenset[str]:
        """The branches that a rule names and that are there."""
        found: set[str] = set()
        for name in names:
            if name == OWN:
                found |= self.own
            elif name in self.ways:
                found.add(name)
        return frozenset(found)
