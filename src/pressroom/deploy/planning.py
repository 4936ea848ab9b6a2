"""What a file would change of a deployment, before anything is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from pressroom.deploy._entry import paired
from pressroom.deploy.base import Deployment, Phase, RouteWish
from pressroom.deploy.checks import Checks
from pressroom.deploy.deployments import Deployments
from pressroom.deploy.file import DeploymentFile


class Kind(StrEnum):
    """What a change means for what runs: an engine starts, a version is rolled out beside the old one, a route ends, or
    only the gateway is told something else."""

    START = "start"
    ROLL_OUT = "roll out"
    STOP = "stop"
    TELL = "tell"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One difference. `subject` is a route or a section; `before` and `after` are '' where there is nothing."""

    kind: Kind
    subject: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What applying a file would do to the deployment `name`; `notes` are what one should know besides."""

    name: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "changes": [asdict(change) for change in self.changes], "notes": list(self.notes)}


def plan(deployments: Deployments, said: DeploymentFile) -> Plan:
    """The difference between what is wished and what the file says. Changes nothing."""
    known = {wish.name: wish for wish in deployments.list()}
    before = known.get(said.name)
    changes = list(_changes(before, said))
    notes = []
    if before is not None:
        seen = deployments.observed(before)
        if before.running and seen.phase is Phase.FAILED and not any(c.kind is not Kind.TELL for c in changes):
            notes.append(f"it failed ({seen.detail}): applying the file tries it again")
    return Plan(name=said.name, changes=tuple(changes), notes=tuple(notes))


def _changes(before: Deployment | None, said: DeploymentFile) -> Iterator[Change]:
    if before is None or not before.running:
        if before is not None:
            yield Change(kind=Kind.START, subject="deployment", before="stopped", after="running")
        for route in said.routes:
            yield Change(kind=Kind.START, subject=_of(route), before="", after=_described(route))
    else:
        yield from _routes(before.ways, said.routes)
    yield from _sections(before.policy if before else {}, said.policy)
    yield from _sections({"cache": before.cache} if before and before.cache else {}, _named("cache", said.cache))
    old, new = Checks.of(before.rollout).as_dict() if before and before.rollout else {}, said.rollout
    if before is not None and old != new:
        differ = [key for key in new if old.get(key) != new[key]]
        after = ", ".join(f"{key} {_short(new[key])}" for key in differ)
        was = ", ".join(f"{key} {_short(old[key])}" for key in differ if key in old)
        yield Change(kind=Kind.TELL, subject="[rollout]", before=was, after=after)


def _routes(before: tuple[RouteWish, ...], after: tuple[RouteWish, ...]) -> Iterator[Change]:
    pairs = paired(after, before)
    for route, number in zip(after, pairs, strict=True):
        if number is None:
            yield Change(kind=Kind.START, subject=_of(route), before="", after=_described(route))
            continue
        old = before[number]
        if old.mark != route.mark:
            yield Change(kind=Kind.ROLL_OUT, subject=_of(route), before=_described(old), after=_described(route))
        for field in ("name", "weight", "idle_stop_s", "price"):
            was, now = getattr(old, field), getattr(route, field)
            if was != now:
                told = (f"{field} {_short(value)}" for value in (was, now))
                yield Change(kind=Kind.TELL, subject=_of(old), before=next(told), after=next(told))
    for number, old in enumerate(before):
        if number not in pairs:
            yield Change(kind=Kind.STOP, subject=_of(old), before=_described(old), after="")


def _sections(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for section in dict.fromkeys((*before, *after)):
        was, now = before.get(section), after.get(section)
        if was != now:
            brackets = f"[[{section}]]" if section == "rule" else f"[{section}]"
            yield Change(
                kind=Kind.TELL,
                subject=brackets,
                before="" if was is None else _short(was),
                after="" if now is None else _short(now),
            )


def _named(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: table} if table else {}


def _of(route: RouteWish) -> str:
    return f"route {route.name}"


def _described(route: RouteWish) -> str:
    """A route in a line, without its options' values."""
    forms = f" ({', '.join(variant.engine for variant in route.variants)})" if route.variants else ""
    copies = f", {route.replicas} copies" if route.replicas > 1 else ""
    options = f", with {', '.join(sorted(route.options))}" if route.options else ""
    weight = "" if route.weight == 1 else f", weight {route.weight:g}"
    return f"{route.ref} on {route.engine}{forms}{copies}{options}{weight}"


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."
