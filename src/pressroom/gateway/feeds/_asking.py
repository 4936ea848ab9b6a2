"""Requests of a feed to the gateway: one awaited call each, over pooled connections."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from pressroom.gateway import _sse
from pressroom.gateway._response import Head, ResponseParser
from pressroom.gateway.feeds._requests import Request
from pressroom.gateway.upstream import Call, EngineConnection, Failure, Upstream

# An answer that is longer is an error: nothing of it is of use cut off, and memory is bounded.
_ANSWER_LIMIT = 64 * 1024 * 1024
# A stream that the broker does not take as fast as it is written is held back from here on.
_HELD = 256 * 1024
_VERSION = re.compile(rb"(?i)\r\npressroom-version:[ \t]*([\x21-\x7e]{1,200})")


class Lost(Exception):
    """There is no (whole) answer. `reached`: whether the gateway may have begun to work on it."""

    def __init__(self, message: str, *, reached: bool) -> None:
        super().__init__(message)
        self.reached = reached


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """How an answer begins: `version` is the digest of the version that answers, empty for a refusal."""

    status: int
    version: str
    retry_after_s: int | None
    streamed: bool


class _Parser(ResponseParser):
    """Keeps the header block: the client of engines looks at no header but those of the framing."""

    __slots__ = ("block",)

    def __init__(self) -> None:
        super().__init__()
        self.block = b""

    def _take_head(self, block: bytes) -> None:
        self.block = block
        super()._take_head(block)


class _Connection(EngineConnection):
    def __init__(self, pool: Upstream, address: tuple[str, int]) -> None:
        super().__init__(pool, address)
        self._parser: _Parser = _Parser()

    @property
    def version(self) -> str:
        found = _VERSION.search(self._parser.block)
        return found[1].decode("ascii") if found else ""


class _Pool(Upstream):
    async def _open_connection(self, address: tuple[str, int]) -> EngineConnection:
        async with asyncio.timeout(self._connect_timeout_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self, address), *address
            )
        return connection


class Gateway:
    """Asks the gateway at `url`, with a key where there is one. Belongs to one event loop."""

    def __init__(self, url: str, *, key: str = "", connect_timeout_s: float = 5.0, silence_s: float = 660.0) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        host = f"[{self.address[0]}]" if ":" in self.address[0] else self.address[0]
        self._host = f"{host}:{self.address[1]}".encode()
        self._key = b"Authorization: Bearer %b\r\n" % key.encode("ascii") if key else b""
        self._pool = _Pool(connect_timeout_s=connect_timeout_s, first_byte_timeout_s=silence_s)

    def ask(self, request: Request, lines: bytes = b"") -> Exchange:
        """Send a request, with more header lines; what comes of it is in the Exchange."""
        head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b%b\r\n" % (
            request.path.encode(),
            self._host,
            len(request.body),
            self._key,
            lines,
        )
        exchange = Exchange(self._pool)
        self._pool.send(self.address, head, request.body, exchange)
        return exchange

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


class Exchange(Call):
    """One request under way. Await `reply`, then `body` or `events`; `close` in any case."""

    __slots__ = ("_ended", "_failed", "_pieces", "_pool", "_reply", "_size", "_turn")

    def __init__(self, pool: Upstream) -> None:
        super().__init__()
        self._pool = pool
        self._reply: Reply | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._ended = False
        self._failed: Lost | None = None
        self._turn = asyncio.Event()

    def on_head(self, head: Head) -> None:
        assert isinstance(self.connection, _Connection)
        streamed = head.content_type.startswith(b"text/event-stream")
        self._reply = Reply(
            status=head.status, version=self.connection.version, retry_after_s=head.retry_s, streamed=streamed
        )
        self._turn.set()

    def on_data(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        assert self._reply is not None
        if not self._reply.streamed and self._size > _ANSWER_LIMIT:
            self._pool.cancel(self)
            self._failed = Lost(f"its answer is over {_ANSWER_LIMIT} bytes", reached=True)
        elif self._reply.streamed and self._size > _HELD and self.connection is not None:
            self.connection.pause()
        self._turn.set()

    def on_end(self) -> None:
        self._ended = True
        self._turn.set()

    def on_failed(self, failure: Failure, detail: str) -> None:
        self._failed = Lost(
            f"the gateway did not answer to the end: {detail}", reached=failure is not Failure.UNREACHABLE
        )
        self._turn.set()

    async def reply(self) -> Reply:
        """How the answer begins. Raises Lost."""
        while self._reply is None:
            await self._wait()
        return self._reply

    async def body(self) -> bytes:
        """All of the answer. Raises Lost."""
        while not self._ended:
            await self._wait()
        return b"".join(self._pieces)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The records of a stream as they come, up to `[DONE]`. Raises Lost where it ends before that."""
        events = _sse.Events()
        while True:
            while not self._pieces:
                if self._ended:
                    raise Lost("the stream of the answer ended too early", reached=True)
                await self._wait()
            came = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
            if self.connection is not None:
                self.connection.resume()
            try:
                whole = events.feed(came)
            except ValueError as error:
                raise Lost(f"its answer cannot be read: {error}", reached=True) from None
            for data in whole:
                if data == _sse.DONE:
                    return
                try:
                    record = orjson.loads(data)
                except orjson.JSONDecodeError:
                    raise Lost("an event of its answer is not JSON", reached=True) from None
                if isinstance(record, dict):
                    yield record

    def close(self) -> None:
        """Not interested any more: what is still generated for it is stopped."""
        self._pool.cancel(self)

    async def _wait(self) -> None:
        if self._failed is not None:
            raise self._failed
        self._turn.clear()
        await self._turn.wait()
        if self._failed is not None:
            raise self._failed
