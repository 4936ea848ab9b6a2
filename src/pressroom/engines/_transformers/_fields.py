"""Single fields of a request, checked."""

from __future__ import annotations

import math
from typing import Any

from pressroom.engines._transformers.refusal import unsupported, wrong


def _wrong_type(name: str, expected: str) -> Exception:
    return wrong(name, f"Invalid type for '{name}': expected {expected}.", "invalid_type")


def flag(fields: dict[str, Any], name: str, *, default: bool = False) -> bool:
    """A boolean."""
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not bool:
        raise _wrong_type(name, "a boolean")
    return value


def integer(fields: dict[str, Any], name: str, low: int, high: int, default: int) -> int:
    """A whole number from low to high."""
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise _wrong_type(name, "an integer")
    if not low <= value <= high:
        raise wrong(name, f"Invalid '{name}': expected a value from {low} to {high}, but got {value} instead.")
    return value


def number(fields: dict[str, Any], name: str, low: float, high: float, default: float) -> float:
    """A number from low to high."""
    value = fields.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _wrong_type(name, "a number")
    if not low <= value <= high:
        raise wrong(name, f"Invalid '{name}': expected a value from {low:g} to {high:g}, but got {value} instead.")
    return float(value)


def strings(fields: dict[str, Any], name: str, most: int) -> tuple[str, ...]:
    """A string or a few of them."""
    value = fields.get(name)
    if value is None:
        return ()
    if type(value) is str:
        return (value,)
    if type(value) is not list or any(type(each) is not str for each in value):
        raise _wrong_type(name, "a string or an array of strings")
    if len(value) > most:
        raise wrong(name, f"Invalid '{name}': at most {most} are allowed, and there are {len(value)}.")
    return tuple(value)


def token_ids(fields: dict[str, Any], name: str, size: int) -> tuple[int, ...] | None:
    """An array of tokens of the model."""
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not list or any(type(each) is not int for each in value):
        raise _wrong_type(name, "an array of tokens")
    for each in value:
        if not 0 <= each < size:
            raise wrong(name, f"'{name}' names the token {each}; this model has the tokens 0 to {size - 1}.")
    return tuple(value)


def only(name: str, value: Any, allowed: Any) -> None:
    """The one value that asks for nothing special."""
    # 1 is not True here, and 1.0 is 1.
    if value != allowed or (type(value) is bool) != (type(allowed) is bool):
        raise unsupported(name, f"'{name}' other than {allowed!r}.")
