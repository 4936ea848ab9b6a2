"""What people write about the routes of a deployment, checked: nothing in it is ignored or taken for something else."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pressroom.gateway.policy.base import OWN, Breaker, Limits, Policy, Retry, Rule, Shadow, When
from pressroom.kernel import DeployError, did_you_mean

_SECTIONS = ("split", "fallback", "retry", "breaker", "hedge", "limits", "shadow", "rules", "rule")
_SPLIT_BY = ("key", "team", "tag")
_WHEN = ("personal_data", "secret", "language", "tag", "key", "team", "longer_than")
# More than anybody reads; a request looks at each.
_MOST_RULES = 100
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_DAY_S = 86_400.0


def read(mapping: Mapping[str, Any], branches: tuple[str, ...], own: frozenset[str]) -> Policy:
    """As `Policy.parse`."""
    return _Reader(branches, own).policy(mapping)


class _Reader:
    def __init__(self, branches: tuple[str, ...], own: frozenset[str]) -> None:
        self._branches = branches
        self._own = own & frozenset(branches) if branches else own
        self._vendors = frozenset(branches) - own

    def policy(self, mapping: Mapping[str, Any]) -> Policy:
        _known("", mapping, _SECTIONS)
        split = _table("[split]", mapping.get("split", {}))
        rules = _table("[rules]", mapping.get("rules", {}))
        _known("[rules]", rules, ("default",))
        default_rule = _flag("[rules] default", rules.get("default", True))
        return Policy(
            split=self._split(split),
            sticky=_flag("[split] sticky", split.get("sticky", False)),
            order=self._order(mapping),
            retry=_retry(mapping),
            breaker=_breaker(mapping),
            hedge_after_s=self._hedge(mapping),
            limits=_limits(mapping),
            shadow=self._shadow(mapping),
            rules=self._rules(mapping.get("rule", []), default_rule=default_rule),
            default_rule=default_rule,
        )

    def _split(self, table: Mapping[str, Any]) -> dict[str, str]:
        found = {}
        for name, value in table.items():
            if name == "sticky":
                continue
            kind, colon, whom = name.partition(":")
            if not colon or kind not in _SPLIT_BY or not whom:
                allowed = 'sticky, "key:NAME", "team:NAME" and "tag:TEXT"'
                raise _wrong(f'[split] "{name}"', "says nothing about who gets which branch", f"Allowed are {allowed}.")
            found[name] = self._branch(f'[split] "{name}"', value)
        return found

    def _order(self, mapping: Mapping[str, Any]) -> tuple[str, ...] | None:
        if "fallback" not in mapping:
            return None
        table = _table("[fallback]", mapping["fallback"])
        _known("[fallback]", table, ("order",))
        if "order" not in table:
            raise _wrong("[fallback]", "is empty", "Say `order = [...]`, or leave the section out.")
        order = table["order"]
        if not isinstance(order, list):
            raise _wrong("[fallback] order", f"is {order!r}", "A list of names of branches is allowed.")
        return _unlike("[fallback] order", [self._branch("[fallback] order", name) for name in order])

    def _hedge(self, mapping: Mapping[str, Any]) -> float | None:
        if "hedge" not in mapping:
            return None
        table = _stated("[hedge]", mapping, "hedge", ("after_s",))
        if len(self._branches) < 2:
            raise _wrong("[hedge]", "has no second branch to ask", "Give the deployment another [[route]].")
        return _number("[hedge] after_s", table["after_s"], 0.01, 600)

    def _shadow(self, mapping: Mapping[str, Any]) -> Shadow | None:
        if "shadow" not in mapping:
            return None
        table = _table("[shadow]", mapping["shadow"])
        _known("[shadow]", table, ("branch", "share"))
        for name in ("branch", "share"):
            if name not in table:
                raise _wrong(
                    "[shadow]", f"lacks `{name}`", "It needs `branch`, a name, and `share`, above 0 and up to 1."
                )
        share = _number("[shadow] share", table["share"], 0, 1)
        if not share:
            raise _wrong("[shadow] share", "is 0", "Above 0 and up to 1 is allowed; leave the section out for none.")
        return Shadow(branch=self._branch("[shadow] branch", table["branch"]), share=share)

    def _rules(self, given: Any, *, default_rule: bool) -> tuple[Rule, ...]:
        if not isinstance(given, list):
            raise _wrong("[[rule]]", f"is {_kind(given)}", "It is a list of tables: write [[rule]] before each.")
        if len(given) > _MOST_RULES:
            raise _wrong("[[rule]]", f"stands there {len(given)} times", f"At most {_MOST_RULES} are allowed.")
        return tuple(
            self._rule(f"[[rule]] {number}", table, default_rule=default_rule) for number, table in enumerate(given, 1)
        )

    def _rule(self, place: str, given: Any, *, default_rule: bool) -> Rule:
        table = _table(place, given)
        _known(place, table, ("when", "only", "prefer"))
        if "when" not in table:
            raise _wrong(place, "lacks `when`", f"It says when the rule holds: a table with {', '.join(_WHEN)}.")
        when = _when(f"{place}: when", table["when"])
        only = self._some(f"{place}: only", table["only"]) if "only" in table else ()
        prefer = self._some(f"{place}: prefer", table["prefer"]) if "prefer" in table else ()
        if not only and not prefer:
            raise _wrong(place, "says nothing about branches", "It needs `only` or `prefer`.")
        if only and prefer and OWN not in (*only, *prefer) and not set(prefer) & set(only):
            raise _wrong(
                f"{place}: prefer", f"is {_said(prefer)}, which `only` leaves out", f"{_said(only)} is allowed."
            )
        private = when.personal_data or when.secret
        if private and default_rule and self._own and self._vendors and only and self._vendors.issuperset(only):
            what = f"is {_said(only)}, where the default rule keeps such text on branches of one's own"
            raise _wrong(f"{place}: only", what, "Say `default = false` under [rules] to do without that rule.")
        return Rule(name=place, when=when, only=only, prefer=prefer)

    def _some(self, place: str, given: Any) -> tuple[str, ...]:
        """Names of branches, or `own`."""
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not names:
            raise _wrong(place, f"is {given!r}", f"A name, or a list of names, is allowed: {self._names(own=True)}.")
        found = []
        for name in names:
            if name != OWN:
                found.append(self._branch(place, name, own=True))
                continue
            if not self._own:
                raise _wrong(place, "is 'own', and no branch runs on machines of one's own", "Add one.")
            if OWN in self._vendors:
                raise _wrong(
                    place, "is 'own', and the branch called 'own' is a vendor's", "Call that branch otherwise."
                )
            found.append(OWN)
        return _unlike(place, found)

    def _branch(self, place: str, name: Any, *, own: bool = False) -> str:
        if isinstance(name, str) and name in self._branches:
            return name
        if not self._branches:
            raise _wrong(
                place, f"is {name!r}, and the deployment has no branches with names", "Give it [[route]] tables."
            )
        allowed = f"Branches of this deployment: {self._names(own=own)}."
        close = did_you_mean(name, self._branches) if isinstance(name, str) else ""
        raise _wrong(place, f"is {name!r}, which is no branch", f"{close} {allowed}".strip())

    def _names(self, *, own: bool) -> str:
        return ", ".join([*self._branches, *(["own (all that run on one's own machines)"] if own else [])])


def _retry(mapping: Mapping[str, Any]) -> Retry:
    if "retry" not in mapping:
        return Retry(attempts=0)
    table = _stated("[retry]", mapping, "retry", ("attempts", "backoff_s"))
    return Retry(
        attempts=_whole("[retry] attempts", table.get("attempts", Retry().attempts), 0, 10),
        backoff_s=_number("[retry] backoff_s", table.get("backoff_s", Retry().backoff_s), 0, 60),
    )


def _breaker(mapping: Mapping[str, Any]) -> Breaker:
    if "breaker" not in mapping:
        return Breaker()
    table = _stated("[breaker]", mapping, "breaker", ("failures", "pause_s"))
    return Breaker(
        failures=_whole("[breaker] failures", table.get("failures", Breaker().failures), 0, 1000),
        pause_s=_number("[breaker] pause_s", table.get("pause_s", Breaker().pause_s), 0.01, 3600),
    )


def _limits(mapping: Mapping[str, Any]) -> Limits:
    if "limits" not in mapping:
        return Limits()
    table = _stated("[limits]", mapping, "limits", ("first_token_s", "total_s"))
    found = {name: _number(f"[limits] {name}", value, 0.01, _DAY_S) for name, value in table.items()}
    first, total = found.get("first_token_s"), found.get("total_s")
    if first is not None and total is not None and first > total:
        raise _wrong("[limits] first_token_s", f"is {first:g}", f"It is at most total_s, which is {total:g}.")
    return Limits(**found)


def _when(place: str, given: Any) -> When:
    table = _table(place, given)
    _known(place, table, _WHEN, joint=".")
    if not table:
        raise _wrong(place, "is empty", f"Allowed are {', '.join(_WHEN)}.")
    found: dict[str, Any] = {}
    for name, value in table.items():
        where = f"{place}.{name}"
        if name in ("personal_data", "secret"):
            if value is not True:
                raise _wrong(where, f"is {value!r}", "Only true is allowed; leave it out where it does not matter.")
            found[name] = True
        elif name == "longer_than":
            found[name] = _whole(where, value, 0, 100_000_000)
        else:
            found[name] = _words(where, value)
    for language in found.get("language", ()):
        if not _LANGUAGE.fullmatch(language):
            raise _wrong(f"{place}.language", f"has {language!r}", "Codes of ISO 639 are allowed: de, en, fr, zh, …")
    return When(**found)


def _words(place: str, given: Any) -> tuple[str, ...]:
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise _wrong(place, f"is {given!r}", "A list of words is allowed.")
    return _unlike(place, words)


def _stated(place: str, mapping: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> Mapping[str, Any]:
    table = _table(place, mapping[name])
    _known(place, table, allowed)
    if not table:
        raise _wrong(place, "is empty", f"Allowed are {', '.join(allowed)}; leave the section out for none.")
    return table


def _table(place: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise _wrong(place, f"is {_kind(given)}", "It is a table.")
    return given


def _known(place: str, table: Mapping[str, Any], allowed: Iterable[str], *, joint: str = " ") -> None:
    allowed = list(allowed)
    for name in table:
        if name not in allowed:
            close = did_you_mean(str(name), allowed)
            hint = f"{close} Allowed are {', '.join(allowed)}.".strip()
            raise _wrong(f"{place}{joint}{name}" if place else f"[{name}]", "is not known", hint)


def _flag(place: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(place, f"is {value!r}", "true and false are allowed.")
    return value


def _whole(place: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _wrong(place, f"is {value!r}", f"A whole number from {low} to {high} is allowed.")
    return value


def _number(place: str, value: Any, low: float, high: float) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
        raise _wrong(place, f"is {value!r}", f"A number from {low:g} to {high:g} is allowed.")
    return float(value)


def _unlike(place: str, names: list[str]) -> tuple[str, ...]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise _wrong(place, f"has {twice!r} twice", "Say each once.")
    return tuple(names)


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a table"}
    return kinds.get(type(value), repr(value)[:80])


def _said(names: Collection[str]) -> str:
    return ", ".join(names)


def _wrong(place: str, what: str, hint: str) -> DeployError:
    return DeployError(f"{place} {what}"[:500], hint=hint, place=place)
