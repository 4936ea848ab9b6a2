"""Checks of single values, each a function of a parameter's name and its value that returns a Problem or None.

Each has a JSON schema of what it lets through, for the OpenAPI document: `schema_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pressroom.gateway.problems import Problem

Check = Callable[[str, Any], Problem | None]

_NAMES: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a decimal",
    bool: "a boolean",
    list: "an array",
    dict: "an object",
    type(None): "null",
}
_JSON_NAMES: dict[type, str] = {str: "string", bool: "boolean", list: "array", dict: "object"}


_SCHEMAS: dict[Check, dict[str, Any]] = {}


def described(check: Check, schema: dict[str, Any]) -> Check:
    """The same check, with the schema of what it lets through."""
    _SCHEMAS[check] = schema
    return check


def schema_of(check: Check) -> dict[str, Any]:
    """The JSON schema of what a check lets through; {} where it lets everything."""
    return _SCHEMAS.get(check, {})


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def wrong_type(param: str, value: Any, expected: str) -> Problem:
    """The value is not of the type it must be."""
    got = _NAMES[type(value)]
    return Problem(
        400,
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.",
        param=param,
        code="invalid_type",
    )


def wrong_value(param: str, message: str, code: str = "invalid_value") -> Problem:
    """The value has the right type, and is still not one of those allowed."""
    return Problem(400, message, param=param, code=code)


def missing(param: str) -> Problem:
    """A parameter that must be there is not."""
    return Problem(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def unsupported(param: str, what: str) -> Problem:
    """OpenAI documents it, and what answers here cannot do it: said, not ignored."""
    return Problem(400, f"Unsupported parameter: {what}", param=param, code="unsupported_parameter")


def unknown(param: str, key: str) -> Problem:
    """An object has a key that it cannot have."""
    name = f"{param}.{key[:200]}"
    return Problem(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def kept(param: str, value: Any) -> Problem | None:
    """Any value: the engine checks it."""
    return None


def never(what: str) -> Check:
    """Only null: nothing here can do it."""
    return described(lambda param, value: None if value is None else unsupported(param, what), {"type": "null"})


def only(allowed: Any, what: str) -> Check:
    """Only null or one value, the one that asks for nothing special."""

    def check(param: str, value: Any) -> Problem | None:
        if value is None or (type(value) is type(allowed) and value == allowed):
            return None
        if type(value) is not type(allowed):
            return wrong_type(param, value, _NAMES[type(allowed)])
        return unsupported(param, what)

    return described(check, {"enum": [allowed, None]})


def typed(kind: type) -> Check:
    """A value of this JSON type, or null."""
    expected = _NAMES[kind]
    return described(
        lambda param, value: None if type(value) is kind or value is None else wrong_type(param, value, expected),
        nullable({"type": _JSON_NAMES[kind]}),
    )


def number(low: float, high: float) -> Check:
    """A number from low to high, or null."""

    def check(param: str, value: Any) -> Problem | None:
        if type(value) not in (int, float):
            return None if value is None else wrong_type(param, value, "a decimal")
        if not math.isfinite(value):
            return wrong_type(param, value, "a finite decimal")
        if value < low:
            return _out_of(param, "decimal", "below minimum", f">= {low:g}", value, "decimal_below_min_value")
        if value > high:
            return _out_of(param, "decimal", "above maximum", f"<= {high:g}", value, "decimal_above_max_value")
        return None

    return described(check, nullable({"type": "number", "minimum": low, "maximum": high}))


def integer(low: int, high: int = 2**31 - 1) -> Check:
    """A whole number from low to high, or null. The default bound is what an engine's 32 bits hold."""

    def check(param: str, value: Any) -> Problem | None:
        if type(value) is not int:
            return None if value is None else wrong_type(param, value, "an integer")
        if value < low:
            return _out_of(param, "integer", "below minimum", f">= {low}", value, "integer_below_min_value")
        if value > high:
            return _out_of(param, "integer", "above maximum", f"<= {high}", value, "integer_above_max_value")
        return None

    return described(check, nullable({"type": "integer", "minimum": low, "maximum": high}))


def strings(most: int) -> Check:
    """A string or an array of up to `most` strings, or null."""

    def check(param: str, value: Any) -> Problem | None:
        if value is None or type(value) is str:
            return None
        if type(value) is not list:
            return wrong_type(param, value, "a string or an array of strings")
        if len(value) > most:
            return wrong_value(
                param, f"Invalid '{param}': array too long. Expected at most {most} items.", "array_above_max_length"
            )
        for index, item in enumerate(value):
            if type(item) is not str:
                return wrong_type(f"{param}[{index}]", item, "a string")
        return None

    text = {"type": "string"}
    return described(check, nullable({"anyOf": [text, {"type": "array", "items": text, "maxItems": most}]}))


def _out_of(param: str, kind: str, where: str, expected: str, value: Any, code: str) -> Problem:
    return wrong_value(
        param, f"Invalid '{param}': {kind} {where} value. Expected a value {expected}, but got {value} instead.", code
    )
