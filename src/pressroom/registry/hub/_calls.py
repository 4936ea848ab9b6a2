"""A request on its way through the hub, and the answers that several make in one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from pressroom.registry.hub._access import Who
from pressroom.registry.hub._bodies import Gathered
from pressroom.registry.hub._refusals import bad_request
from pressroom.registry.hub.base import Answer, HubRequest, Later, Sink

_PAGE = 1_000

Found = Answer | Sink | Later


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way: who sends it, and the repository it is about (`asked` is its id as the client wrote it)."""

    request: HubRequest
    who: Who
    query: Mapping[str, Sequence[str]]
    asked: str = ""
    name: str = ""
    rest: tuple[str, ...] = ()

    def about(self, asked: str, name: str, rest: tuple[str, ...] = ()) -> Call:
        """The same request, once it is known what it is about."""
        return Call(self.request, self.who, self.query, asked, name, rest)

    def flag(self, name: str) -> bool:
        values = self.query.get(name)
        return bool(values) and values[-1].lower() in ("1", "true", "yes", "on")  # type: ignore[index]

    def number(self, name: str, otherwise: int) -> int:
        values = self.query.get(name)
        if not values:
            return otherwise
        if not values[-1].isdecimal() or len(values[-1]) > 9:
            raise bad_request(f"{name} must be a number")
        return int(values[-1])


class Slow(Gathered):
    """Gathers the body for an answer that may take long."""

    slow = True


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(
        status=status, headers={"content-type": "application/json", **(headers or {})}, body=orjson.dumps(value)
    )


def page_of(call: Call, values: Sequence[Any]) -> tuple[Sequence[Any], dict[str, str]]:
    """The values of the page that is asked for, and the header that leads to the next one."""
    start, size = call.number("cursor", 0), min(max(call.number("limit", _PAGE), 1), _PAGE)
    following = start + size
    if following >= len(values):
        return values[start:following], {}
    fields = [(key, value) for key, known in call.query.items() if key != "cursor" for value in known]
    query = "&".join(f"{quote(key)}={quote(value)}" for key, value in [*fields, ("cursor", str(following))])
    header = f'<{call.request.origin}{call.request.path}?{query}>; rel="next"'
    return values[start:following], {"link": header}
