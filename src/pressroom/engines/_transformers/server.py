"""HTTP/1.1 for one model on 127.0.0.1: connections, limits, and answers whole or in pieces."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools
import orjson

from pressroom.engines._transformers.refusal import Refusal

_log = logging.getLogger(__name__)

_MOST_HEAD = 64 << 10
_MOST_BODY = 64 << 20
# Requests sent ahead on one connection while it is being answered.
_MOST_AHEAD = 8
_IDLE_S = 300.0
# For a request to arrive in whole, and for a client to take anything of its answer.
_SLOW_S = 120.0
_LINGER_S = 0.5
_REASONS = {
    200: b"OK", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed",
    413: b"Content Too Large", 431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
    503: b"Service Unavailable",
}  # fmt: skip


class Reply(Protocol):
    """What is under way on a connection."""

    def left(self) -> None:
        """The client is gone."""

    def cut(self) -> None:
        """The client has closed its side: stop, and answer with what that came to."""

    def writable(self) -> None:
        """The client has taken what was sent; more may follow."""


#: Answers a request on its connection, then or later: (method, path, body, connection).
Handler = Callable[[str, str, bytes, "Connection"], None]


class Server:
    """Listens on a free port of 127.0.0.1."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: set[Connection] = set()

    async def listen(self) -> int:
        """Open the port and return it."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: Connection(self), "127.0.0.1", 0, backlog=2048)
        self._watching = loop.create_task(self._watch())
        return int(self._listening.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Take no more connections, and end those there are."""
        self._listening.close()
        self._watching.cancel()
        for connection in list(self.connections):
            connection.abort()

    async def _watch(self) -> None:
        """Deadlines of all connections, in one go."""
        while True:
            await asyncio.sleep(5)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.check(now)


class Connection(asyncio.Protocol):
    """One client. Requests on it are answered one after the other."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)  # type: ignore[no-untyped-call,unused-ignore]
        self._transport: asyncio.Transport | None = None
        self._ahead: deque[tuple[str, str, bytes, bool]] = deque()
        self._reply: Reply | None = None
        self._answering = self._streaming = self._closing = False
        self._stays = True
        self._flows = True
        self._active = time.monotonic()
        self._begin()

    def _begin(self) -> None:
        self._path = b""
        self._parts: list[bytes] = []
        self._head = self._size = 0
        self._in_head = self._arriving = False
        self._problem: Refusal | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are, without saying so
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        self._ahead.clear()
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.left()

    def eof_received(self) -> bool:
        """True where the connection stays, for what is still to be said on it."""
        self._ahead.clear()
        if self._reply is None or self._closing:
            return False
        self._stays = False
        self.cut()
        return True

    def pause_writing(self) -> None:
        self._flows = False

    def resume_writing(self) -> None:
        self._flows = True
        self._active = time.monotonic()
        if self._reply is not None:
            self._reply.writable()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._active = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "This server speaks HTTP/1.1 only.")
        except httptools.HttpParserError:
            self._refuse(400, "That is not a valid HTTP request.")
        if self._in_head:
            self._head += len(data)
            if self._head > _MOST_HEAD:
                self._refuse(431, "The headers are too large.")

    # What the parser calls

    def on_message_begin(self) -> None:
        self._begin()
        self._in_head = self._arriving = True

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"origin":
            # Only web pages send it, and none has any business here; a plain POST of theirs needs no permission.
            self._problem = Refusal("Web pages may not ask this engine.", status=403)
        elif lowered == b"content-length" and value.isdigit() and (len(value) > 12 or int(value) > _MOST_BODY):
            self._problem = Refusal(f"The body is larger than {_MOST_BODY} bytes.", status=413)
        elif lowered == b"expect" and value.lower() == b"100-continue" and self._problem is None:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._problem is not None and self._problem.status == 413:
            self._refuse(413, self._problem.message)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > _MOST_BODY:
            self._refuse(413, f"The body is larger than {_MOST_BODY} bytes.")
        elif not self._closing:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._closing:
            return
        self._arriving = False
        if self._problem is not None:
            self._refuse(self._problem.status, self._problem.message)
            return
        path = self._path.partition(b"?")[0].decode("latin-1")
        method = self._parser.get_method().decode("latin-1")
        # The parser forgets it with the next request.
        request = (method, path, b"".join(self._parts), bool(self._parser.should_keep_alive()))
        self._parts = []
        if self._answering:
            if len(self._ahead) >= _MOST_AHEAD:
                self._refuse(400, "Too many requests were sent ahead.")
            else:
                self._ahead.append(request)
            return
        self._handle(request)

    # What answers call

    @property
    def open(self) -> bool:
        """Whether the client is still there."""
        return self._transport is not None and not self._closing

    @property
    def flows(self) -> bool:
        """Whether what is sent goes out; if not, `Reply.writable` is called when it does again."""
        return self._flows

    def expect(self, reply: Reply) -> None:
        """This is what answers the request: it is told when the client leaves."""
        self._reply = reply

    def answer(self, status: int, value: Any) -> None:
        """The whole answer, as JSON."""
        self.send(status, orjson.dumps(value))

    def send(self, status: int, body: bytes) -> None:
        """The whole answer, as bytes of JSON."""
        self._write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (status, _REASONS.get(status, b"Error"), len(body), body)
        )
        self._done()

    def refuse(self, problem: Refusal) -> None:
        """The whole answer: an error."""
        self.answer(problem.status, problem.body())

    def events(self, data: bytes) -> None:
        """The next events of a stream; its first ones begin the answer."""
        head = b""
        if not self._streaming:
            self._streaming = True
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
            head += b"transfer-encoding: chunked\r\n\r\n"
        self._write(head + b"%x\r\n%b\r\n" % (len(data), data))

    def end(self, *, broken: bool = False) -> None:
        """The stream is over; `broken`: before its time, and the connection with it."""
        self._write(b"0\r\n\r\n")
        if broken:
            self._closing = True
        self._done()

    def cut(self) -> None:
        """What is under way is to end with what it came to."""
        if self._reply is not None:
            self._reply.cut()

    def abort(self) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()

    def check(self, now: float) -> None:
        """Close it if it is idle, or too slow."""
        quiet = now - self._active
        stuck = self._arriving or not self._flows
        if (
            self._transport is not None
            and not (self._answering and self._flows)
            and quiet > (_SLOW_S if stuck else _IDLE_S)
        ):
            self._transport.abort() if stuck else self._transport.close()

    def _handle(self, request: tuple[str, str, bytes, bool]) -> None:
        method, path, body, self._stays = request
        self._answering = True
        try:
            self._server.handler(method, path, body, self)
        except Exception:  # noqa: BLE001
            # The edge of this process: one request fails, the others go on.
            _log.exception("a request failed")
            self.refuse(Refusal("The engine failed.", status=500, type="server_error"))

    def _done(self) -> None:
        self._answering = self._streaming = False
        self._reply = None
        self._active = time.monotonic()
        if self._transport is None:
            return
        if self._closing or not self._stays:
            self._closing = True
            self._transport.close()
        elif self._ahead:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._ahead and self.open and not self._answering:
            self._handle(self._ahead.popleft())

    def _refuse(self, status: int, message: str) -> None:
        """An error of the connection itself, which ends it."""
        if self._closing:
            return
        if self._streaming:
            # In the middle of another answer there is no place for it.
            self._closing = True
            if self._transport is not None:
                self._transport.abort()
            return
        self._closing = True
        body = orjson.dumps(Refusal(message, status=status).body())
        self._write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (status, _REASONS[status], len(body), body)
        )
        # A client that is still sending sees the answer only if its bytes are taken for a moment.
        asyncio.get_running_loop().call_later(_LINGER_S if self._arriving else 0.0, self._close)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
