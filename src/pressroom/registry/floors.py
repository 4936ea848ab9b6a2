"""Floors: what a sheet must say before an alias may point to its version.

A bound is written `FIGURE=BOUND` and is the most (`max`) or the least (`min`) that the figure may be:

    150MB, 25.3, 9e8         a number, with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB behind it for bytes
    parent                   the same figure of the version's parent
    parent+3%, parent-5%     more or less than that by a share of it; `+3%parent` says the same
    parent+0.5, parent-10MB  more or less than that by a number
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pressroom.kernel import did_you_mean
from pressroom.registry.base import FloorError, Version

SENSES = ("max", "min")

_UNITS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_FIGURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NUMBER = r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
_UNIT = r"(?P<unit>[kMGTK]?i?B)?"
_ABSOLUTE = re.compile(rf"(?P<sign>[+-]?){_NUMBER}{_UNIT}")
_RELATIVE = re.compile(rf"parent(?:(?P<sign>[+-]){_NUMBER}(?:(?P<percent>%)|{_UNIT}))?")
_RELATIVE_TURNED = re.compile(rf"(?P<sign>[+-]){_NUMBER}(?P<percent>%)parent")
# Figures of the machine as much as of the model: only those measured on one machine are compared.
_OF_THE_MACHINE = ("tokens/s", "ms", "s", "W", "J")
# Figures that are never less than a number, or, where `_ABOVE` has it, not even as little as that.
_LEAST = {"bytes": 1.0, "peak_memory_bytes": 1.0, "perplexity": 1.0}
_ABOVE = re.compile(r"tokens_per_second_[0-9]+|ttft_ms|bits_per_weight")
_MOST_BOUND = 60
# Larger than any figure; beyond it a relative bound would come to infinity.
_MOST_NUMBER = 1e18
_HOW_TO_WRITE = "Write a number (25.3, 150MB) or one beside the parent's: parent, parent+3%, parent-0.5."


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """The most or the least that a figure may be; `text` is how it is written, in one plain way."""

    figure: str
    sense: str
    text: str
    amount: float = 0.0
    of_parent: bool = False
    percent: bool = False

    @classmethod
    def parse(cls, asked: str, sense: str) -> Bound:
        """Read `FIGURE=BOUND`. Raises FloorError where it is not one."""
        if sense not in SENSES:
            raise FloorError(f"there is no sense {sense!r} of a bound", hint="There are max and min.", asked=sense)
        figure, equals, written = (part.strip() for part in asked.partition("="))
        if not equals or not _FIGURE.fullmatch(figure):
            raise FloorError(
                f"{asked!r} is not FIGURE=BOUND", hint=f"For example --{sense} perplexity=parent+3%.", asked=asked
            )
        tight = written.replace(" ", "").replace("_", "")
        relative = _RELATIVE.fullmatch(tight) or _RELATIVE_TURNED.fullmatch(tight)
        found = relative or _ABSOLUTE.fullmatch(tight)
        if found is None:
            raise FloorError(f"{written!r} is not a bound for {figure}", hint=_HOW_TO_WRITE, asked=asked)
        parts = found.groupdict()
        unit = parts.get("unit") or ""
        number = float(parts["number"] or 0) * _UNITS.get(unit, math.nan)
        if not abs(number) <= _MOST_NUMBER or len(tight) > _MOST_BOUND:
            raise FloorError(f"{written[:80]!r} is not a bound for {figure}", hint=_HOW_TO_WRITE, asked=asked)
        percent = bool(parts.get("percent"))
        signed = f"{parts['sign'] or ''}{parts['number'] or ''}{unit}{'%' if percent else ''}"
        return cls(
            figure=figure,
            sense=sense,
            text=f"parent{signed}" if relative else signed.removeprefix("+"),
            amount=-number if parts["sign"] == "-" else number,
            of_parent=bool(relative),
            percent=percent,
        )

    def limit(self, of_parent: float | None = None) -> float:
        """The number it comes to; `of_parent` is the parent's figure, needed where the bound speaks of it."""
        if not self.of_parent:
            return self.amount
        assert of_parent is not None
        return of_parent + (abs(of_parent) * self.amount / 100 if self.percent else self.amount)

    def __str__(self) -> str:
        return f"{self.sense} {self.figure}={self.text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A bound held against a sheet: the figure's `value` and the `limit` it was held to, None where one is missing.

    `reason` says why it is not met, and `hint` what to do; both are empty where it is.
    """

    bound: str
    value: float | None
    limit: float | None
    met: bool
    reason: str = ""
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_possible(bounds: Sequence[Bound]) -> None:
    """Raise FloorError where no sheet at all could meet one of the bounds of a floor, or two of them together."""
    least = {bound.figure: bound for bound in bounds if bound.sense == "min" and not bound.of_parent}
    for bound in bounds:
        if bound.sense != "max":
            continue
        never = _never(bound)
        if never:
            raise FloorError(
                f"nothing can meet {bound}: {never}",
                hint=f"Write a larger bound, or none: --remove {bound.figure} takes one away.",
                asked=str(bound),
            )
        other = least.get(bound.figure)
        if other is not None and not bound.of_parent and bound.limit() < other.limit():
            raise FloorError(
                f"nothing can meet both {bound} and {other}",
                hint="Change one of them, or take both away first: "
                f"--remove {bound.figure}, which may stand beside new bounds.",
                asked=str(bound),
            )


def _never(bound: Bound) -> str:
    """Why no figure is as little as this bound wants it; '' where one may be."""
    figure = bound.figure
    above = _ABOVE.fullmatch(figure) is not None
    if not above and figure not in _LEAST:
        return ""
    if bound.of_parent:
        return f"{figure} is never 0 or less" if bound.percent and bound.amount <= -100 else ""
    if above:
        return f"{figure} is always more than 0" if bound.amount <= 0 else ""
    return f"{figure} is never less than {_LEAST[figure]:g}" if bound.amount < _LEAST[figure] else ""


def check(bound: Bound, version: Version, parent: Version | None) -> Check:
    """Hold one bound against the sheet of `version`; a figure that is missing does not meet it."""
    value, reason, hint = _number_of(version, bound.figure)
    if value is None:
        return Check(bound=str(bound), value=None, limit=None, met=False, reason=reason, hint=hint)
    limit: float | None = None
    if not bound.of_parent:
        limit = bound.limit()
    elif parent is None:
        named = f"its parent {version.parent[:19]} is not registered here" if version.parent else "it has no parent"
        reason = f"{bound.figure} is bound by its parent's, and {named}"
        hint = "Register the parent (press pull, press import), or bind the figure by a number."
    else:
        of_parent, reason, hint = _number_of(parent, bound.figure)
        if of_parent is not None:
            reason, hint = _not_alike(bound.figure, version, parent)
            limit = None if reason else bound.limit(of_parent)
    if limit is None:
        return Check(bound=str(bound), value=value, limit=None, met=False, reason=reason, hint=hint)
    met = value <= limit if bound.sense == "max" else value >= limit
    if met:
        return Check(bound=str(bound), value=value, limit=limit, met=True)
    most = "at most" if bound.sense == "max" else "at least"
    written = f" ({bound.text})" if bound.of_parent else ""
    return Check(
        bound=str(bound),
        value=value,
        limit=limit,
        met=False,
        reason=f"{bound.figure} is {_plain(value)} and must be {most} {_plain(limit)}{written}",
        hint="Promote a version that meets the floor, or change the floor with `press floor`.",
    )


def check_all(bounds: Sequence[Bound], version: Version, parent: Version | None) -> list[Check]:
    return [check(bound, version, parent) for bound in bounds]


def _number_of(version: Version, name: str) -> tuple[float | None, str, str]:
    """The figure as a number, else why there is none and what to do about it."""
    ref = f"{version.name}:{version.number}"
    if name == "bytes":  # known without measuring
        return float(version.size), "", ""
    figure = version.figure(name)
    if figure is None:
        known = [other.name for other in version.sheet]
        close = did_you_mean(name, known)
        return None, f"the sheet of {ref} has no {name}", f"Run: press measure {ref}{f'. {close}' if close else ''}"
    if isinstance(figure.value, str):
        return None, f"{name} of {ref} is the text {figure.value!r}, not a number", "Bind another figure."
    return float(figure.value), "", ""


def _not_alike(name: str, version: Version, parent: Version) -> tuple[str, str]:
    """Why two figures of one name say nothing of each other; '' where they do."""
    if name == "bytes":
        return "", ""
    one, other = version.figure(name), parent.figure(name)
    assert one is not None and other is not None
    first, second = f"{version.name}:{version.number}", f"{parent.name}:{parent.number}"
    refs, again = f"{first} and {second}", f"Measure both alike: press measure {first}, press measure {second}"
    if one.unit != other.unit or (one.how and other.how and one.how != other.how):
        return f"{name} of {refs} was not measured in the same way", again
    if one.unit in _OF_THE_MACHINE and one.where and other.where and one.where != other.where:
        return f"{name} of {refs} was not measured on the same machine", again
    return "", ""


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.6g}"
