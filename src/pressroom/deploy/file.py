"""`deployment.toml`: what should answer to one name, read and checked whole before anything of it is wished.

name = "chat"
[[route]]
ref = "smollm2@production"
[[route]]
name = "vendor"
ref = "gpt-4o-mini"
weight = 0
[fallback]
order = ["vendor"]
[rollout]
canary = 10
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.cost import Price, PriceError
from pressroom.deploy._faults import faults, without_dates
from pressroom.deploy._places import Places
from pressroom.deploy.base import RouteWish
from pressroom.deploy.checks import Checks
from pressroom.deploy.fleet import is_elsewhere
from pressroom.kernel import (
    CapabilityError,
    DeployError,
    EngineError,
    PluginError,
    PressroomError,
    Ref,
    did_you_mean,
    is_name,
)

if TYPE_CHECKING:
    from pressroom.kernel import Workspace

_MOST_BYTES = 1 << 20
_MOST_ROUTES = 32
# Sections that the policy of the routes reads, and those of other parts.
_POLICY = ("split", "fallback", "retry", "breaker", "hedge", "limits", "shadow", "rules", "rule")
_TOP = ("name", "route", "rollout", "cache", *_POLICY)
_SIZES = ("context", "slots", "threads")
_ROUTE = ("name", "ref", "engine", "with", "replicas", *_SIZES, "options", "idle_stop_s", "weight", "price")
_PRICE = ("prompt", "completion", "cached", "request")
# What an error of the making of a route is about.
_ABOUT = ((PluginError, "engine"), (CapabilityError, "engine"), (EngineError, "options"))
_MOST_WEIGHT = 1e6
_MOST_USD = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong with a file; `line` is 0 where it is about all of it."""

    line: int
    message: str
    hint: str = ""


class DeploymentFileError(DeployError):
    """A file of a deployment says something that cannot be; `facts["problems"]` has each with its line."""

    code = "deployment_file"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentFile:
    """What a file says, checked. `rollout` is as `Deployment.rollout` has it."""

    path: Path
    name: str
    routes: tuple[RouteWish, ...]
    policy: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    rollout: dict[str, Any] = field(default_factory=dict)


def read_deployment(workspace: Workspace, path: Path) -> DeploymentFile:
    """Read and check a file: versions are looked up, engines asked whether they run them, policy and cache parsed.

    Raises:
        DeploymentFileError: it cannot be read, or says what cannot be. It names every problem that was found, with line
            and what is allowed.
    """
    try:
        with path.open("rb") as opened:  # what is no plain file may have no size, and no end
            raw = opened.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise _wrong(path, [Problem(line=0, message=f"it is larger than {_MOST_BYTES:,} bytes")])
        text = raw.decode()
    except OSError as error:
        raise _wrong(path, [Problem(line=0, message=f"it cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise _wrong(path, [Problem(line=0, message="it is not UTF-8")]) from error
    try:
        said = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", None) or _line_in(str(error))
        raise _wrong(path, [Problem(line=line, message=f"not TOML: {error}")]) from error
    return _Reader(workspace, path, said, Places(text)).read()


class _Reader:
    def __init__(self, workspace: Workspace, path: Path, said: dict[str, Any], places: Places) -> None:
        self._workspace = workspace
        self._path = path
        self._said = said
        self._places = places
        self._problems: list[Problem] = []

    def read(self) -> DeploymentFile:
        said = self._said
        self._unknown(said, _TOP, "", 0, "the file")
        name = said.get("name")
        if not isinstance(name, str) or not is_name(name):
            found = "is missing" if name is None else f"is {str(name)[:60]!r}"
            hint = "The name that it answers to: letters, digits, '.', '_' and '-', first a letter or a digit."
            self._add(self._places.line("", 0, "name"), f"`name` {found}", hint)
        routes = self._routes()
        rollout = self._rollout()
        policy = {key: said[key] for key in _POLICY if key in said}
        cache = said.get("cache", {})
        self._terms(policy, cache, routes)
        if self._problems:
            raise _wrong(self._path, sorted(self._problems, key=lambda problem: problem.line))
        assert isinstance(name, str)
        return DeploymentFile(
            path=self._path, name=name, routes=tuple(routes), policy=policy, cache=cache, rollout=rollout
        )

    def _routes(self) -> list[RouteWish]:
        given = self._said.get("route")
        if not isinstance(given, list) or not given or not all(isinstance(each, dict) for each in given):
            found = "there is none" if given is None else "`route` is no list of tables"
            self._add(self._places.line("route", 1), f"{found}", "Write [[route]] before each, with a `ref`.")
            return []
        if len(given) > _MOST_ROUTES:
            self._add(self._places.line("route", _MOST_ROUTES + 1), f"{len(given)} routes", f"At most {_MOST_ROUTES}.")
            return []
        wished: list[RouteWish] = []
        names: set[str] = set()
        for number, table in enumerate(given, 1):
            route = self._route(number, table)
            if route is not None and route.name in names:
                line = self._places.line("route", number, "name")
                self._add(line, f"two routes are called {route.name!r}", "Give each a `name` of its own.")
            elif route is not None:
                names.add(route.name)
                wished.append(route)
        return wished

    def _route(self, number: int, table: Mapping[str, Any]) -> RouteWish | None:
        from pressroom.deploy.wishes import make_route

        before = len(self._problems)
        self._unknown(table, _ROUTE, "route", number, f"[[route]] {number}")
        ref = table.get("ref")
        if not isinstance(ref, str) or not ref:
            self._at(
                number, "ref", "`ref` is missing" if ref is None else "`ref` is no text", "A version: NAME:NUMBER."
            )
            return None
        name = table.get("name", _called(ref))
        if not isinstance(name, str) or not is_name(name) or "/" in name:
            self._at(number, "name", f"{str(name)[:60]!r} cannot name a route", "Letters, digits, '.', '_' and '-'.")
        options = table.get("options", {})
        if not isinstance(options, dict) or not _is_json(options):
            self._at(
                number, "options", "`options` is no table of texts, numbers and truths", "options = { KEY = VALUE }"
            )
            options = {}
        engine = table.get("engine")
        if engine is not None and not isinstance(engine, str):
            self._at(number, "engine", "`engine` is no text", "`press engines` lists them.")
        forms = table.get("with", [])
        forms = [forms] if isinstance(forms, str) else forms
        if not isinstance(forms, list) or not all(isinstance(form, str) for form in forms):
            self._at(number, "with", "`with` is no list of versions", "Other forms of the model, for `auto`.")
        replicas = table.get("replicas", 1)
        if type(replicas) is not int or not 1 <= replicas <= 64:
            self._at(number, "replicas", f"replicas is {str(replicas)[:40]}", "A whole number from 1 to 64.")
        weight = self._amount(number, "weight", table.get("weight", 1.0), _MOST_WEIGHT)
        idle_stop_s = table.get("idle_stop_s")
        if idle_stop_s is not None and type(idle_stop_s) not in (int, float):
            self._at(number, "idle_stop_s", "`idle_stop_s` is no number", "Seconds; 0 for never.")
        price = self._price(number, table.get("price"))
        if len(self._problems) > before:
            return None
        sizes = {key: table[key] for key in _SIZES if key in table}
        try:
            return make_route(
                self._workspace,
                ref,
                name=name,
                engine=engine,
                options={**options, **sizes},
                also=forms,
                replicas=replicas,
                idle_stop_s=idle_stop_s,
                weight=weight,
                price=price,
            )
        except PressroomError as error:
            key = str(error.facts.get("setting") or error.facts.get("asked", ""))
            if key not in table:
                key = next((key for kind, key in _ABOUT if isinstance(error, kind)), "ref")
            self._at(number, key, error.message, error.hint)
            return None

    def _price(self, number: int, price: Any) -> dict[str, Any] | None:
        if price is None:
            return None
        if not isinstance(price, dict):
            self._at(number, "price", "`price` is no table", "US dollars for a million tokens: { prompt, completion }.")
            return None
        self._unknown(price, _PRICE, "route", number, f"the price of [[route]] {number}", key="price")
        for key, value in price.items():
            if key in _PRICE:
                self._amount(number, "price", value, _MOST_USD, what=f"the price of `{key}`")
        if not price:
            self._at(number, "price", "`price` is empty", f"It has {', '.join(_PRICE)}; leave it out for the list's.")
            return None
        try:
            Price.parse(price)
        except PriceError as error:
            self._at(number, "price", error.message, error.hint)
        return dict(price)

    def _amount(self, number: int, key: str, value: Any, most: float, *, what: str = "") -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= most:
            self._at(number, key, f"{what or key} is {str(value)[:40]!r}", f"A number from 0 to {most:g}.")
            return 0.0
        return float(value)

    def _rollout(self) -> dict[str, Any]:
        given = self._said.get("rollout", {})
        if not isinstance(given, dict):
            self._add(self._places.line("", 0, "rollout"), "[rollout] is no table", "")
            return {}
        settings, folder = self._workspace.settings.rollout, self._path.resolve().parent
        read = partial(Checks.parse, settings=settings, folder=folder)
        before = len(self._problems)
        for error in faults(read, given, lambda error: str(error.facts.get("key", ""))):
            self._add(self._places.line("rollout", 1, str(error.facts.get("key", ""))), error.message, error.hint)
        return read(given).as_dict() if len(self._problems) == before else {}

    def _terms(self, policy: dict[str, Any], cache: Any, routes: list[RouteWish]) -> None:
        """What other parts read, by their own words."""
        from pressroom.deploy._telling import made_cache, made_policy

        for table in policy, {"cache": cache}:
            for place in without_dates(table):
                line = self._places.line_of(place)
                self._add(line, f"{place} is a date or a time", "Texts, numbers, truths, lists and tables are allowed.")
        names = self._names()
        if names:  # else words about branches would mislead
            elsewhere = {route.name for route in routes if is_elsewhere(route.engine)}
            own = [name for name in names if name not in elsewhere]
            harmless = {"when": {"tag": ["-"]}, "prefer": [names[0]]}
            read = partial(made_policy, branches=names, own=own)
            for error in faults(read, policy, lambda error: str(error.facts.get("place", "")), filler=harmless):
                self._add(self._places.line_of(str(error.facts.get("place", ""))), error.message, error.hint)
        if not isinstance(cache, dict):
            self._add(self._places.line("", 0, "cache"), "[cache] is no table", "")
            return
        before = len(self._problems)
        for error in faults(
            lambda said: made_cache(said.get("cache", {})),
            {"cache": cache},
            lambda error: str(error.facts.get("setting", "cache")),
        ):
            self._add(self._places.line_of(str(error.facts.get("setting", "cache"))), error.message, error.hint)
        made = made_cache(cache) if len(self._problems) == before else None
        if made is not None and made.meaning is not None:
            self._embeds(made.meaning.deployment)

    def _names(self) -> list[str]:
        """What the routes are called, also those that are wrong otherwise; none where one has no name of its own."""
        given = self._said.get("route")
        found: list[str] = []
        for table in given if isinstance(given, list) else ():
            ref = table.get("ref", "") if isinstance(table, dict) else ""
            name = table.get("name", _called(ref) if isinstance(ref, str) and ref else None) if ref else None
            if not isinstance(name, str) or not is_name(name) or name in found:
                return []
            found.append(name)
        return found

    def _embeds(self, name: str) -> None:
        """Whether there is a deployment of this name that may be asked, for the cache by meaning."""
        from pressroom.deploy.deployments import Deployments

        line = self._places.line_of("cache.meaning.deployment")
        if name == self._said.get("name"):
            hint = "Name another one, that answers /v1/embeddings; what answers chat does not."
            self._add(line, f"cache.meaning.deployment is {name!r}, which is this deployment itself", hint)
            return
        known = {wish.name: wish for wish in Deployments(self._workspace).list()}
        if name not in known:
            hint = did_you_mean(
                name, known, otherwise="Deploy a model of embeddings first: `press deploy REF --as NAME`."
            )
            self._add(line, f"there is no deployment called {name!r}", hint)
        elif abroad := next((way.engine for way in known[name].ways if is_elsewhere(way.engine)), ""):
            what = f"the deployment {name!r}, for the cache by meaning, asks somebody else ({abroad})"
            self._add(line, what, "Questions are not sent away to be compared: name one on your own machines.")

    def _unknown(
        self, table: Mapping[str, Any], known: Iterable[str], name: str, number: int, what: str, *, key: str = ""
    ) -> None:
        known = list(known)
        for each in table:
            if each not in known:
                # At the top it may be a key or a table.
                line = self._places.line(name, number, key or each) or self._places.line(each, 1)
                hint = did_you_mean(each, known, otherwise=f"There are {', '.join(known)}.")
                self._add(line, f"{what} has no {each[:60]!r}", hint)

    def _at(self, number: int, key: str, message: str, hint: str) -> None:
        self._add(self._places.line("route", number, key), message, hint)

    def _add(self, line: int, message: str, hint: str) -> None:
        self._problems.append(Problem(line=line, message=message, hint=hint))


def _called(ref: str) -> str:
    """The name of a route that has none: its model's."""
    try:
        return Ref.parse(ref).name.rpartition("/")[2]
    except PressroomError:
        return "main"  # what is wrong with the reference is said of the reference


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _line_in(message: str) -> int:
    """The parser has it in its words only: `... (at line 3, column 7)`."""
    _, at, rest = message.rpartition("(at line ")
    number = rest.partition(",")[0]
    return int(number) if at and number.isdigit() else 0


def _wrong(path: Path, problems: list[Problem]) -> DeploymentFileError:
    def said(problem: Problem) -> str:
        return f"{path}{f', line {problem.line}' if problem.line else ''}: {problem.message}"

    hint = problems[0].hint
    lines = [f"{said(each)}{f' ({each.hint})' if each.hint and len(problems) > 1 else ''}" for each in problems]
    return DeploymentFileError(
        "\n  ".join(lines),
        hint=hint if len(problems) == 1 else "Nothing was changed.",
        file=str(path),
        problems=[{"line": each.line, "message": each.message, "hint": each.hint} for each in problems],
    )
