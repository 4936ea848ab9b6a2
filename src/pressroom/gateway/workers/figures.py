"""Figures of several processes as those of one: families of Prometheus as plain data, and added up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import Metric

#: For each family its name, documentation and type, and for each of its samples a name, labels and value.
Plain = list[Any]

_Key = tuple[str, tuple[tuple[str, str], ...]]

# What only grows goes on counting when its process is gone; the rest is of the processes that live.
_GROWING = ("counter", "histogram")
# Of states the worst one is shown, not the sum.
_STATES = frozenset(("pressroom_route_breaker", "pressroom_ledger_full"))
# The server's process alone knows of these: what the workers have of a budget it counts as held.
_SERVER = frozenset(("pressroom_budget", "pressroom_budget_left", "pressroom_budget_held"))


def plain_families(families: Iterable[Metric]) -> Plain:
    """The families of this process, for the pipe."""
    return [
        [
            family.name,
            family.documentation,
            family.type,
            [[sample.name, sample.labels, sample.value] for sample in family.samples],
        ]
        for family in families
        if family.name not in _SERVER
    ]


class Figures:
    """What the workers have said last, and what those that are gone had counted."""

    def __init__(self) -> None:
        self._last: dict[int, Plain] = {}
        self._gone: dict[str, dict[_Key, float]] = {}

    def said(self, number: int, families: Plain) -> None:
        """The worker of this number has these now."""
        self._last[number] = families

    def gone(self, number: int) -> None:
        """It has ended; another takes its number and begins at zero."""
        for name, _, kind, samples in self._last.pop(number, []):
            if kind in _GROWING:
                _add(self._gone.setdefault(name, {}), samples)

    def joined(self, families: Iterable[Metric]) -> Iterable[Metric]:
        """The families of this process with those of the workers."""
        from prometheus_client.core import Metric

        theirs = [family for families in self._last.values() for family in families]
        for family in families:
            sums = dict(self._gone.get(family.name, {}))
            _add(sums, [[sample.name, sample.labels, sample.value] for sample in family.samples])
            for name, _, _, samples in theirs:
                if name == family.name:
                    _add(sums, samples, largest=name in _STATES)
            whole = Metric(family.name, family.documentation, family.type)
            for (name, labels), value in sums.items():
                whole.add_sample(name, dict(labels), value)
            yield whole


def _add(sums: dict[_Key, float], samples: Iterable[Plain], *, largest: bool = False) -> None:
    for name, labels, value in samples:
        key = (name, tuple(labels.items()))
        before = sums.get(key, 0.0)
        sums[key] = max(before, value) if largest else before + value
