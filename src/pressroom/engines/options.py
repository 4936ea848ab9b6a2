"""What an engine takes as options: checked before a deployment is written down, and by the engine when it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pressroom.kernel import did_you_mean


class Option(NamedTuple):
    """What a value must be, in words, and whether one is."""

    wanted: str
    fits: Callable[[Any], bool]


Known = Mapping[str, Option]


def wrong_option(engine: str, given: Mapping[str, Any], known: Known) -> tuple[str, str] | None:
    """What is wrong with the first option that is, and a hint; None where all are right.

    Neither text has a value in it: somebody may have put a secret there.
    """
    listed = f"Its options: {', '.join(known)}."
    for name, value in given.items():
        option = known.get(name)
        if option is None:
            return f"{engine} has no option {name!r}", did_you_mean(name, list(known), otherwise=listed)
        if not option.fits(value):
            return f"the option {name!r} of {engine} is not {option.wanted}", listed
    return None


def whole(low: int) -> Option:
    """A whole number of 32 bits."""
    return Option(f"a whole number, at least {low}", lambda value: type(value) is int and low <= value < 1 << 31)


def number(wanted: str, fits: Callable[[float], bool]) -> Option:
    """A number; `fits` is asked of those that are."""
    return Option(wanted, lambda value: type(value) in (int, float) and math.isfinite(value) and fits(value))


def text(wanted: str = "text") -> Option:
    """Text that is not empty and no flag."""
    return Option(wanted, lambda value: isinstance(value, str) and bool(value.strip()) and not value.startswith("-"))


def one_of(allowed: Iterable[str]) -> Option:
    names = tuple(allowed)
    return Option(f"one of {', '.join(names)}", lambda value: value in names)


FLAG = Option("true or false", lambda value: type(value) is bool)
