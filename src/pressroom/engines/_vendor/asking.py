"""One request to the vendor, tried until it works or is known not to: pauses, circuit breaker, deadline."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import orjson

from pressroom.engines._vendor.breaker import Breaker
from pressroom.engines._vendor.connection import Connection, too_late
from pressroom.engines._vendor.keys import Key
from pressroom.engines._vendor.options import Options
from pressroom.engines._vendor.protocol import Asked, Protocol, StreamReader
from pressroom.engines._vendor.refusals import Refusal, malformed
from pressroom.engines._vendor.words import as_chunks

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 8.0
# A vendor that asks for a longer pause than this is not waited for: the client hears how long it is.
_MOST_PATIENCE_S = 15.0


class Begun:
    """A streamed answer whose first pieces are there. `pieces` gives them and the rest, as many at once as came
    together; it raises Refusal where the answer breaks off, after what came before."""

    def __init__(
        self,
        first: list[dict[str, Any]],
        rest: AsyncIterator[list[bytes]] | None,
        reader: StreamReader,
        breaker: Breaker,
        broken: Refusal | None = None,
    ) -> None:
        self._first = first
        self._rest = rest
        self._reader = reader
        self._breaker = breaker
        self._broken = broken

    @property
    def usage(self) -> dict[str, Any] | None:
        return self._reader.usage

    @property
    def complete(self) -> bool:
        return self._reader.complete

    async def pieces(self) -> AsyncIterator[list[dict[str, Any]]]:
        found, broken = self._first, self._broken
        try:
            while True:
                if found:
                    yield found
                if broken is not None:
                    raise broken
                if self._rest is None or self._reader.complete:
                    break
                events = await anext(self._rest, None)
                if events is None:
                    break
                found, broken = _read(self._reader, events)
            self._reader.end()
        except Refusal as refusal:
            if refusal.down:
                self._breaker.failed(trying=False)
            raise


class Vendor:
    """Asks one model of one vendor. A `deadline` is of the loop's clock."""

    def __init__(
        self, protocol: Protocol, connection: Connection, options: Options, key: Key, breaker: Breaker
    ) -> None:
        self.protocol = protocol
        self.breaker = breaker
        self._connection = connection
        self._options = options
        self._key = key

    async def close(self) -> None:
        await self._connection.close()

    async def whole(self, asked: Asked, deadline: float) -> dict[str, Any]:
        """The answer of a request that is not streamed. Raises Refusal."""

        async def once() -> dict[str, Any]:
            async with self._sent(asked) as response:
                return asked.whole(_object(await self._connection.whole(response)))

        return await self._tried(once, deadline)

    @asynccontextmanager
    async def streamed(self, asked: Asked, deadline: float) -> AsyncIterator[Begun]:
        """The answer of a streamed request, once its first pieces are there; until then it may be tried again.

        Leaving the block before the end closes the connection to the vendor, which stops. Raises Refusal.
        """

        async def once() -> tuple[AsyncExitStack, aiohttp.ClientResponse, Begun]:
            async with AsyncExitStack() as stack:
                response = await stack.enter_async_context(self._sent(asked))
                begun = await self._begun(asked, response, deadline)
                return stack.pop_all(), response, begun
            raise AssertionError("nothing above suppresses an error")

        stack, response, begun = await self._tried(once, deadline)
        async with stack:
            yield begun
            if begun.complete:
                await self._connection.drain(response)

    async def _begun(self, asked: Asked, response: aiohttp.ClientResponse, deadline: float) -> Begun:
        reader = asked.reader()
        if response.content_type != "text/event-stream":
            # Asked to stream, and answered whole.
            answer = asked.whole(_object(await self._connection.whole(response)))
            reader.usage, reader.complete = answer.get("usage"), True
            return Begun(as_chunks(answer), None, reader, self.breaker)
        events = self._connection.events(response, deadline)
        async for together in events:
            first, broken = _read(reader, together)
            if first or reader.complete:
                return Begun(first, events, reader, self.breaker, broken)
            if broken is not None:
                raise broken
        reader.end()
        raise malformed("its stream is empty")

    def _sent(self, asked: Asked) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = self.protocol.headers(self._key.current())
        return self._connection.post(asked.path, orjson.dumps(asked.body), headers)

    async def _tried(self, once: Callable[[], Awaitable[_Answer]], deadline: float) -> _Answer:
        """What `once` gives, after up to `retries` failures that may pass."""
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            trying = self.breaker.enter()
            try:
                answer = await self._in_time(once, deadline)
            except Refusal as refusal:
                idle = refusal.silent and attempt == 0 and self._options.retries > 0
                if idle:
                    self.breaker.left(trying=trying)
                elif refusal.down:
                    self.breaker.failed(trying=trying)
                else:
                    self.breaker.worked()
                pause = 0.0 if idle else _pause(attempt, refusal)
                tries = refusal.again and attempt < self._options.retries
                if not tries or pause > min(_MOST_PATIENCE_S, deadline - loop.time()):
                    _log.warning("refused with %d %s: %s", refusal.status, refusal.code, refusal.message)
                    raise
                attempt += 1
                _log.warning("%s Trying again in %.1f s (%d)", refusal.message, pause, attempt)
            except BaseException:
                # The client left, or there is a fault of ours.
                self.breaker.left(trying=trying)
                raise
            else:
                self.breaker.worked()
                return answer
            await asyncio.sleep(pause)

    async def _in_time(self, once: Callable[[], Awaitable[_Answer]], deadline: float) -> _Answer:
        try:
            async with asyncio.timeout_at(deadline):
                return await once()
        except TimeoutError as error:
            raise too_late(self._options) from error


def _read(reader: StreamReader, events: list[bytes]) -> tuple[list[dict[str, Any]], Refusal | None]:
    """The pieces that events come to, up to the one that is an error, and that error."""
    pieces: list[dict[str, Any]] = []
    try:
        for event in events:
            pieces += reader.read(event)
    except Refusal as refusal:
        return pieces, refusal
    return pieces, None


def _pause(attempt: int, refusal: Refusal) -> float:
    """Seconds until the next try: what the vendor asks for, else longer each time, and never the same for all."""
    usual = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311  not a secret
    return max(usual, float(refusal.wait_s or 0))


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise malformed("it is not JSON") from None
    if not isinstance(found, dict):
        raise malformed("it is not an object")
    return found
