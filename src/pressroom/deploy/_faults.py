"""All that is wrong with a table, from a reader that stops at the first thing."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date, time
from typing import Any

from pressroom.kernel import PressroomError

# More than anybody mends at once.
_MOST = 50
_IN_LIST = re.compile(r"\[\[(\w+)\]\]\s*(\d+)?")
_IN_TABLE = re.compile(r"\[([\w.]+)\]\s*(?:\"([^\"]*)\"|(\w+))?")


def faults(
    read: Callable[[dict[str, Any]], object],
    table: dict[str, Any],
    place_of: Callable[[PressroomError], str],
    *,
    filler: Any = None,
) -> Iterator[PressroomError]:
    """What `read` raises of `table`, again and again without what was wrong so far. What is only wrong for want of what
    was taken out is not told. `place_of` says where an error is: `[retry] attempts`, `[[rule]] 2: only`, `cache.ttl_s`.
    `filler` stands in for what is taken out of a list, so that the others keep their numbers."""
    left = copy.deepcopy(table)
    cut: set[str] = set()
    for _ in range(_MOST):
        try:
            read(left)
        except PressroomError as error:
            path = _path(place_of(error))
            section = path[0] if path else ""
            there = _take_out(left, path, filler)
            # A section that is wrong as a whole after something was taken out is wrong for want of that.
            if section not in cut or (there and len(path) > 1):
                yield error
            if not there and left.pop(section, None) is None:
                return
            cut.add(section)
        else:
            return


def without_dates(table: Any, place: str = "") -> Iterator[str]:
    """Takes dates and times, which nothing here can be, out of tables and lists; yields the place of each."""
    inside: Sequence[tuple[Any, Any]] = ()
    if isinstance(table, dict):
        inside = list(table.items())
    elif isinstance(table, list):
        inside = list(enumerate(table))
    for key, value in reversed(inside):
        if isinstance(key, str):
            joint = ": " if place.endswith(tuple("0123456789")) and place.startswith("[[") else "."
            where = f"{place}{joint}{key}" if place else key
        else:  # what is in a list is the list's, but for tables with a header each
            where = f"[[{place}]] {key + 1}" if isinstance(value, dict) and place.isalpha() else place
        if isinstance(value, date | time):
            del table[key]
            yield where
        else:
            yield from without_dates(value, where)


def _path(place: str) -> tuple[str, ...]:
    """Keys from the top."""
    found = _IN_LIST.match(place)
    if found:
        return (found[1], found[2]) if found[2] else (found[1],)
    found = _IN_TABLE.match(place)
    if found:
        key = found[2] or found[3]
        return (*found[1].split("."), *((key,) if key else ()))
    return tuple(place.split("."))


def _take_out(table: dict[str, Any], path: tuple[str, ...], filler: Any) -> bool:
    """Whether it was there."""
    at: Any = table
    for key in path[:-1]:
        at = at.get(key) if isinstance(at, dict) else None
    if not path:
        return False
    last = path[-1]
    if isinstance(at, list) and last.isdigit() and 1 <= int(last) <= len(at) and at[int(last) - 1] is not filler:
        at[int(last) - 1] = filler
        return True
    return isinstance(at, dict) and at.pop(last, None) is not None
