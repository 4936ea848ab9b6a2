"""Checks of single values, each a function of a parameter's name and its value that returns a Problem or None."""

from __future__ import annotations

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
    return lambda param, value: None if value is None else unsupported(param, what)


def only(allowed: Any, what: str) -> Check:
    """Only null or one value, the one that asks for nothing special."""

    def check(param: str, value: Any) -> Problem | None:
        if value is None or (type(value) is type(allowed) and value == allowed):
            return None
        if type(value) is not type(allowed):
            return wrong_type(param, value, _NAMES[type(allowed)])
        return unsupported(param, what)

    return check


def typed(kind: type) -> Check:
    """A value of this JSON type, or null."""
    expected = _NAMES[kind]
    return lambda param, value: None if type(value) is kind or value is None else wrong_type(param, value, expected)


def number(low: float, high: float) -> Check:
    """A number from low to high, or null."""

    def check(param: str, value: Any) -> Problem | None:
        if type(value) not in (int, float):
            return None if value is None else wrong_type(param, value, "a decimal")
        if value < low:
            return _out_of(param, "decimal", "below minimum", f">= {low:g}", value, "decimal_below_min_value")
        if value > high:
            return _out_of(param, "decimal", "above maximum", f"<= {high:g}", value, "decimal_above_max_value")
        return None

    return check


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

    return check


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

    return check


def _out_of(param: str, kind: str, where: str, expected: str, value: Any, code: str) -> Problem:
    return wrong_value(
        param, f"Invalid '{param}': {kind} {where} value. Expected a value {expected}, but got {value} instead.", code
    )
