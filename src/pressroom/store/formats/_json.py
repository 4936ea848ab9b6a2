"""JSON from strangers: an object or an error, bounded in memory, no key twice."""

from __future__ import annotations

import json
from typing import Any

from pressroom.store.formats._naming import Named

# In memory a value takes up to fifty times its length as text; the bytes alone do not bound what a parser allocates.
_MOST_VALUES = 4_000_000


class _Repeated(ValueError):
    """A key that occurs twice in one object."""


def parsed_object(named: Named, raw: bytes, what: str) -> dict[str, Any]:
    """The object that `raw` is. A key that occurs twice is refused, because readers differ in which one they take.

    Raises:
        MalformedWeightsError: it is not a JSON object; `what` is what the message calls it.
    """
    if raw.count(b",") + raw.count(b"{") + raw.count(b"[") > _MOST_VALUES:
        raise named.malformed(f"{what} has more than {_MOST_VALUES} values")
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except _Repeated as error:
        raise named.malformed(f"{what} has the key {str(error)!r} twice") from error
    except (ValueError, RecursionError) as error:
        raise named.malformed(f"{what} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise named.malformed(f"{what} is not a JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _Repeated(key)
        seen.add(key)
    raise AssertionError("a shorter dict has a repeated key")
