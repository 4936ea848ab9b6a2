"""Bodies of requests: gathered within a bound, or cut into lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson

from pressroom.registry.hub._refusals import bad_request, too_large
from pressroom.registry.hub.base import Answer, Sink

#: A body of JSON or of a form: a batch of the longest paths is well below.
MOST_BODY = 8 << 20


class Gathered(Sink):
    """Gathers the whole body, then answers."""

    def __init__(self, answer: Callable[[bytes], Answer], *, most: int = MOST_BODY) -> None:
        self._answer = answer
        self._most = most
        self._body = bytearray()

    def write(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._most:
            raise too_large(f"the body of the request is over {self._most} bytes")
        self._body += data

    def finish(self) -> Answer:
        return self._answer(bytes(self._body))


class Lines:
    """Cuts what comes into lines, none of them longer than `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rest = bytearray()
        self._seen = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that are complete now.

        Raises:
            HubError: 413, one is too long.
        """
        self._rest += data
        start = 0
        while (end := self._rest.find(b"\n", max(start, self._seen))) >= 0:
            self._check(end - start)
            yield bytes(self._rest[start:end])
            start = end + 1
        del self._rest[:start]
        self._seen = len(self._rest)
        self._check(len(self._rest))

    def last(self) -> bytes:
        """What came after the last line feed."""
        return bytes(self._rest)

    def _check(self, length: int) -> None:
        if length > self._most:
            raise too_large(f"a line of the request is over {self._most} bytes")


def parsed_object(body: bytes, what: str) -> dict[str, Any]:
    """The JSON object that the bytes are. Raises HubError (400) where they are not one."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise bad_request(f"{what} is JSON, but not an object")
    return value
