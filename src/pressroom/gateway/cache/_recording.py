"""An answer on its way to the client, kept when it was complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pressroom.gateway.asking import Receiver
    from pressroom.gateway.cache._cache import Cache
    from pressroom.gateway.cache._keys import Key
    from pressroom.gateway.problems import Problem
    from pressroom.gateway.routes import Route

#: Bytes of one answer, as it came.
ANSWER_LIMIT = 1 << 20


class Recording:
    """Passes everything on, first of all; keeps what came to a good end. `usage` may be set before `end` by whoever
    counted the tokens of a stream that does not say them."""

    __slots__ = ("_cache", "_key", "_pieces", "_receiver", "_route", "_size", "usage")

    def __init__(self, cache: Cache, key: Key, receiver: Receiver) -> None:
        self._cache = cache
        self._key = key
        self._receiver = receiver
        self._route: Route | None = None
        self._pieces: list[bytes] | None = None
        self._size = 0
        self.usage: dict[str, Any] | None = None

    def whole(self, body: bytes, route: Route) -> None:
        self._receiver.whole(body, route)
        if len(body) <= ANSWER_LIMIT:
            self._cache.keep(self._key, body, route)
        else:
            self._cache.passed_over(self._key)

    def begin(self, route: Route) -> None:
        self._route = route
        self._pieces = []
        self._receiver.begin(route)

    def data(self, data: bytes) -> None:
        pieces = self._pieces
        if pieces is not None:
            pieces.append(data)
            self._size += len(data)
            if self._size > ANSWER_LIMIT:
                self._pieces = None
        self._receiver.data(data)

    def end(self) -> None:
        # Whoever takes the answer may still find that it cannot be read. Then it raises, and nothing is kept.
        self._receiver.end()
        pieces, self._pieces = self._pieces, None
        if pieces is not None and self._route is not None:
            self._cache.keep_stream(self._key, pieces, self._route, self.usage)
        else:
            self._cache.passed_over(self._key)

    def failed(self, problem: Problem) -> None:
        self._pieces = None
        self._receiver.failed(problem)
