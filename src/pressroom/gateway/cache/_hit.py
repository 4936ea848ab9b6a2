"""An answer that was given before: as it is kept, and given again."""

from __future__ import annotations

import itertools
import secrets
from time import time
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway.cache._shapes import events
from pressroom.gateway.protocols.openai import CHAT, EMBEDDING

if TYPE_CHECKING:
    from pressroom.gateway.asking import Receiver
    from pressroom.gateway.cache._keys import Where
    from pressroom.gateway.cache._meaning import Group
    from pressroom.gateway.protocols.openai import Endpoint
    from pressroom.gateway.routes import Route

# Unique over restarts without asking the system for randomness for each answer.
_RUN = secrets.token_hex(8)
_numbers = itertools.count(1)


class Entry:
    """One answer. `rest` is its JSON without what is new each time; `at` and `used` are seconds of the monotonic
    clock, `size` is in bytes."""

    __slots__ = ("at", "dated", "group", "place", "rest", "route", "size", "text", "usage", "used", "where")

    def __init__(
        self, where: Where, rest: bytes, route: Route, *, dated: bool, usage: bool, at: float, size: int, text: str
    ) -> None:
        self.where = where
        self.rest = rest
        #: Who answered, marked as an answer that was kept.
        self.route = route
        #: Whether it has an id and a time.
        self.dated = dated
        self.usage = usage
        self.at = at
        self.used = at
        self.size = size
        self.text = text
        #: Where its vector is, if it has one.
        self.group: Group | None = None
        self.place = 0


class Hit:
    """An answer to give. `kind` is `exact` or `meaning`; `similarity` is the cosine of the two questions, 1 where they
    are equal. `route` says who answered when it was new."""

    __slots__ = ("_endpoint", "_rest", "_with_usage", "dated", "kind", "route", "similarity", "streamed")

    def __init__(
        self,
        entry: Entry,
        endpoint: Endpoint,
        *,
        streamed: bool,
        with_usage: bool,
        kind: str,
        route: Route,
        similarity: float,
    ) -> None:
        self._rest = entry.rest
        self._endpoint = endpoint
        self._with_usage = with_usage
        self.dated = entry.dated
        self.streamed = streamed
        self.kind = kind
        self.route = route
        self.similarity = similarity

    def give(self, receiver: Receiver) -> None:
        """Give the answer in the form the client asked for, with an id and a time of its own."""
        if not self.streamed:
            receiver.whole(self.body(), self.route)
            return
        record, id = orjson.loads(self._rest), self._id()
        receiver.begin(self.route)
        receiver.data(events(record, self._endpoint, id=id, created=int(time()), with_usage=self._with_usage))
        receiver.end()

    def body(self) -> bytes:
        """The whole answer as JSON."""
        if not self.dated:
            return self._rest
        return b'{"id":"%b","created":%d,%b' % (self._id().encode(), int(time()), self._rest[1:])

    def usage(self) -> dict[str, Any]:
        """The tokens that the answer took when it was new; empty where nobody said."""
        found = orjson.loads(self._rest).get("usage")
        return found if type(found) is dict else {}

    def _id(self) -> str:
        kind = "chatcmpl" if self._endpoint is CHAT else "embd" if self._endpoint is EMBEDDING else "cmpl"
        return f"{kind}-{_RUN}{next(_numbers):08x}"
