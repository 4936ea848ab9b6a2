"""Steps by their methods, with options of the right types."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pressroom.compress.steps.base import Step
from pressroom.kernel import PluginError, RecipeError, did_you_mean, plugins

_PACKAGE = "pressroom.compress.steps.backends"
_GROUP = "pressroom.steps"
_WHAT = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple[str, ...]": "a list of texts",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[float, ...]": "a list of numbers",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of step: its `method`, the class, and each option's type as people call it, its default (None: there is
    none, it must be given) and its sentence."""

    method: str
    made: type[Step]
    options: Mapping[str, tuple[str, Any, str]]


def step_kinds() -> tuple[str, ...]:
    """The methods that there are, sorted. Loads none of them."""
    return tuple(sorted(name.replace("_", "-") for name in plugins.names(_PACKAGE, _GROUP)))


def kind_of(method: str) -> Kind:
    """The kind of step that a method is.

    Raises:
        RecipeError: there is no such method; it says which there are.
        MissingDependencyError: a library that it needs is not installed.
    """
    known = step_kinds()
    name = method.strip().lower().replace("-", "_")
    try:
        found: Any = plugins.load(_PACKAGE, _GROUP, name)
    except PluginError as error:
        if name.replace("_", "-") in known:
            raise
        every = ("quantise", *known)
        raise RecipeError(
            f"there is no method {method[:80]!r}",
            hint=did_you_mean(method.lower().replace("_", "-"), every, otherwise=f"There are: {', '.join(every)}."),
            asked=method[:80],
            known=every,
        ) from error
    if not (dataclasses.is_dataclass(found) and isinstance(found, type) and issubclass(found, Step)):
        raise PluginError(
            f"the step {method!r} is not a dataclass below pressroom.compress.steps.Step",
            hint="See steps/base.py for what a step must be.",
        )
    options = {}
    for field in dataclasses.fields(found):
        type_ = str(field.type)
        if type_ not in _WHAT:
            raise PluginError(f"the option {field.name} of the step {method!r} is of the type {type_}, which none is")
        default = None if field.default is dataclasses.MISSING else field.default
        options[field.name] = (type_, default, found.options.get(field.name, ""))
    return Kind(method=name.replace("_", "-"), made=found, options=options)


def step(method: str, options: Mapping[str, Any]) -> Step:
    """The step with these options.

    Raises:
        RecipeError: there is no such method, or options are not known, missing, or not what they must be: all of them
            are named, and stand in the fact `problems`.
        MissingDependencyError: a library that it needs is not installed.
    """
    kind = kind_of(method)
    wrong = []
    values = {}
    for name, given in options.items():
        if name not in kind.options:
            allowed = ", ".join(kind.options)
            close = did_you_mean(
                str(name), kind.options, otherwise=f"It has: {allowed}." if allowed else "It has none."
            )
            wrong.append(f"{name} is not an option of {kind.method}. {close}")
            continue
        type_ = kind.options[name][0]
        try:
            values[name] = _converted(type_, given)
        except ValueError:
            wrong.append(f"{name} = {_shown(given)} is not {_WHAT[type_]}")
    for name, (type_, default, text) in kind.options.items():
        if default is None and name not in options:
            wrong.append(f"{name} is missing: {text or _WHAT[type_]}")
    if not wrong:
        found = kind.made(**values)
        wrong = found.wrong()
        if not wrong:
            return found
    raise RecipeError(
        f"{kind.method}: " + "; ".join(wrong),
        hint=f"Its options: {', '.join(f'{name} ({_WHAT[one[0]]})' for name, one in kind.options.items())}.",
        problems=wrong,
        method=kind.method,
    )


def _converted(type_: str, given: Any) -> Any:
    """The value as a field of that type has it. Raises ValueError."""
    if type_.startswith("tuple"):
        if not isinstance(given, list | tuple):
            raise ValueError
        inner = type_.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_converted(inner, one) for one in given)
    if type_ == "float":
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
            raise ValueError
        return float(given)
    if type(given) is not {"str": str, "int": int, "bool": bool}[type_]:
        raise ValueError
    return given


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else text[:59] + "…"
