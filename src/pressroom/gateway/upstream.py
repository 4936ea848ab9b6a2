"""An HTTP/1.1 client for engines on this machine: pooled connections, and everything a callback.

For trusted, local engines: no TLS, no redirects, no proxies. Per request there is no task and no future: a `Call` is
told what happens, on the event loop, in the order it happens. It is told of the end exactly once: `on_end`, or
`on_failed`, or nothing at all after `cancel`.
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from collections import deque
from enum import StrEnum
from typing import cast

from pressroom.gateway._descriptors import connections_allowed
from pressroom.gateway._response import Head, MalformedResponse, ResponseParser

# How often deadlines are looked at. Coarse: a timer for each request would cost more than the request's parsing.
_TICK_S = 0.25
# A connection that was made and then not wanted is closed after this long.
_UNCLAIMED_S = 5.0
# A pooled connection is given up this long before the engine says it would close it.
_IDLE_MARGIN_S = 1.0
# Below this a copy costs less than a second buffer does on its way through the event loop.
_JOINED = 65_536
_NEVER = float("inf")


class Failure(StrEnum):
    """Why there is no (whole) answer."""

    #: Nobody listens there, or not in time.
    UNREACHABLE = "unreachable"
    #: The connection ended before the first byte of an answer.
    LOST = "lost"
    #: No first byte in time.
    SILENT = "silent"
    #: No further byte in time.
    STALLED = "stalled"
    #: What came is not HTTP/1.1.
    MALFORMED = "malformed"
    #: The connection ended in the middle of the answer.
    CUT = "cut"


class Call(ABC):
    """One request to an engine, as its sender sees it."""

    __slots__ = ("connecting", "connection", "retried")

    def __init__(self) -> None:
        #: Set while an engine's connection, or a try to get one, works for this call.
        self.connection: EngineConnection | None = None
        self.connecting: asyncio.Task[None] | None = None
        #: Whether it was sent again because a pooled connection turned out to be closed.
        self.retried = False

    @abstractmethod
    def on_head(self, head: Head) -> None:
        """The status and the headers came."""

    @abstractmethod
    def on_data(self, data: bytes) -> None:
        """A piece of the body came."""

    @abstractmethod
    def on_end(self) -> None:
        """The answer is complete; its connection serves others again."""

    @abstractmethod
    def on_failed(self, failure: Failure, detail: str) -> None:
        """There will be no more; `detail` is for people."""


class EngineConnection(asyncio.Protocol):
    """One connection, used by one call at a time."""

    def __init__(self, pool: Upstream, address: tuple[str, int]) -> None:
        self._pool = pool
        self._address = address
        self._parser = ResponseParser()
        self._call: Call | None = None
        self._transport: asyncio.Transport | None = None
        self._request: tuple[bytes, bytes] = (b"", b"")
        self._reused = False
        self._paused = False
        self._served = 0
        self._heard = False
        self._silent_until = _NEVER
        self._said_all = False
        self.idle_until = float("inf")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are, without saying so
        self._pool.opened(self)

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing() and not self._said_all

    def send(self, head: bytes, body: bytes, call: Call) -> None:
        """Begin the request; `call` hears what becomes of it."""
        assert self._transport is not None and self._call is None
        self._call = call
        call.connection = self
        self._request = (head, body)
        self._reused = self._served > 0
        self._heard = False
        self._silent_until = self._pool.silence_ends
        self._parser.start(call)
        if len(body) < _JOINED:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def pause(self) -> None:
        """Read no more until `resume`: the engine feels it through TCP."""
        if not self._paused and self.usable:
            assert self._transport is not None
            self._paused = True
            self._silent_until = _NEVER  # it is the client that is slow
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self.usable:
            assert self._transport is not None
            self._paused = False
            self._silent_until = self._pool.silence_ends
            self._transport.resume_reading()

    def half_close(self) -> None:
        """Say that no more will be asked: an engine takes it for a client that is gone, and may still answer."""
        if self.usable:
            assert self._transport is not None
            self.resume()
            self._said_all = True
            self._transport.write_eof()

    def abort(self) -> None:
        """Close at once; the call hears nothing more. The engine sees the close and stops generating."""
        if self._call is not None:
            self._call.connection = None
            self._call = None
        self._parser.stop()
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:
            self.abort()  # nobody asked for anything
            return
        self._heard = True
        if not self._paused:
            self._silent_until = self._pool.silence_ends
        parser = self._parser
        try:
            parser.feed(data)
        except MalformedResponse as error:
            self._fail(Failure.CUT if parser.head else Failure.MALFORMED, f"what it sent is malformed: {error}")
            return
        if parser.done and self._call is call:
            self._finish(call)

    def eof_received(self) -> None:
        """The engine will send no more; returning None closes this side too."""

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.closed(self)
        call = self._call
        if call is None:
            return
        heard = self._heard
        if not heard and self._reused and not call.retried and not self._said_all:
            # The engine closed the pooled connection just as it was used: it never saw this request.
            self._call = call.connection = None
            call.retried = True
            self._pool.send_fresh(self._address, *self._request, call)
            return
        try:
            if error is not None:
                raise MalformedResponse(str(error))
            self._parser.eof()
        except MalformedResponse:
            self._fail(
                Failure.CUT if heard else Failure.LOST, "it closed the connection before its answer was complete"
            )
            return
        self._call = call.connection = None
        call.on_end()

    def time_out(self, now: float) -> None:
        """Give up what has waited too long."""
        if self._call is not None and now >= self._silent_until:
            if self._heard:
                self._fail(Failure.STALLED, "it fell silent in the middle of its answer")
            else:
                self._fail(Failure.SILENT, "it did not begin to answer in time")
        elif self._call is None and now >= self.idle_until:
            self.abort()

    def _finish(self, call: Call) -> None:
        head = self._parser.head
        assert head is not None and self._transport is not None
        self._call = call.connection = None
        self._request = (b"", b"")
        self._served += 1
        self.resume()
        spent = head.requests and self._served >= head.requests
        # An answer that came before the whole request was sent leaves the rest of it in the way.
        clean = not self._parser.overrun and not self._transport.get_write_buffer_size()
        if head.keep_alive and not spent and clean and self.usable:
            self._pool.release(self, self._address, keep_s=head.idle_s - _IDLE_MARGIN_S)
        else:
            self._transport.abort()
            if head.status == 200 and not self._said_all:
                self._pool.replace(self._address)
        call.on_end()

    def _fail(self, failure: Failure, detail: str) -> None:
        call = self._call
        self.abort()
        if call is not None:
            call.on_failed(failure, detail)


class Upstream:
    """The connections to every engine, at most `most` at once (None: as many as there are descriptors for). Belongs to
    one event loop."""

    def __init__(self, *, connect_timeout_s: float, first_byte_timeout_s: float, most: int | None = None) -> None:
        self._most = connections_allowed() if most is None else most
        self._opening = 0
        self._connect_timeout_s = connect_timeout_s
        # A tick longer, so that no time is looked up for each piece of a stream.
        self._silence_s = first_byte_timeout_s + _TICK_S
        #: When an engine that says nothing from now on has been silent for too long; kept up to date by the tick.
        self.silence_ends = _NEVER
        self._idle: dict[tuple[str, int], deque[EngineConnection]] = {}
        self._open: set[EngineConnection] = set()
        self._sparing: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def send(self, address: tuple[str, int], head: bytes, body: bytes, call: Call) -> None:
        """Send `head` and `body` to the engine at `address`; what becomes of it is told to `call`, never before this
        method returns."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        idle = self._idle.get(address)
        now = loop.time()
        while idle:
            # The one used last: it is warm, and the others get the chance to grow idle and close.
            connection = idle.pop()
            if connection.usable and now < connection.idle_until:
                connection.send(head, body, call)
                return
            connection.abort()
        self._connect(address, head, body, call)

    def send_fresh(self, address: tuple[str, int], head: bytes, body: bytes, call: Call) -> None:
        """As `send`, over a new connection."""
        for connection in self._idle.pop(address, ()):
            connection.abort()  # if one was closed by the engine, the others were, or will be
        self._connect(address, head, body, call)

    def cancel(self, call: Call) -> None:
        """The sender is no longer interested: the engine is told at once, by closing its connection."""
        if call.connecting is not None:
            call.connecting.cancel()
            call.connecting = None
        if call.connection is not None:
            call.connection.abort()

    def half_close(self, call: Call) -> bool:
        """As `cancel`, but what the engine still says comes to the call, and then its end. False where it was not asked
        yet: then it is to be cancelled."""
        if call.connection is None or not call.connection.usable:
            return False
        call.connection.half_close()
        return True

    def close(self) -> None:
        """Close every connection."""
        for task in list(self._sparing):
            task.cancel()
        for connection in list(self._open):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def opened(self, connection: EngineConnection) -> None:
        assert self._loop is not None
        now = self._loop.time()
        connection.idle_until = now + _UNCLAIMED_S
        self._open.add(connection)
        if self._timer is None:
            self.silence_ends = now + self._silence_s
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def closed(self, connection: EngineConnection) -> None:
        self._open.discard(connection)

    def release(self, connection: EngineConnection, address: tuple[str, int], *, keep_s: float) -> None:
        assert self._loop is not None
        connection.idle_until = self._loop.time() + keep_s
        idle = self._idle.get(address)
        if idle is None:
            idle = self._idle[address] = deque()
        idle.append(connection)

    def replace(self, address: tuple[str, int]) -> None:
        """A connection was used up (llama.cpp ends each after 100 requests): open the next one before it is needed."""
        assert self._loop is not None
        if not self._idle.get(address):
            task = self._loop.create_task(self._open_spare(address))
            self._sparing.add(task)
            task.add_done_callback(self._sparing.discard)

    async def _open_spare(self, address: tuple[str, int]) -> None:
        try:
            connection = await self._open_connection(address)
        except OSError:
            return  # whoever needs one will be told
        self.release(connection, address, keep_s=_UNCLAIMED_S - _IDLE_MARGIN_S)

    async def _open_connection(self, address: tuple[str, int]) -> EngineConnection:
        assert self._loop is not None
        if len(self._open) + self._opening >= self._most and not self._close_idle():
            raise OSError(errno.EMFILE, f"{self._most} connections to engines are open, and there may be no more")
        self._opening += 1
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await self._loop.create_connection(lambda: EngineConnection(self, address), *address)
        finally:
            self._opening -= 1
        return connection

    def _close_idle(self) -> bool:
        """Close a connection that nobody uses, of whichever engine; False where there is none."""
        for idle in self._idle.values():
            if idle:
                idle.popleft().abort()
                return True
        return False

    def _connect(self, address: tuple[str, int], head: bytes, body: bytes, call: Call) -> None:
        assert self._loop is not None
        call.connecting = self._loop.create_task(self._connected(address, head, body, call))

    async def _connected(self, address: tuple[str, int], head: bytes, body: bytes, call: Call) -> None:
        assert self._loop is not None
        try:
            connection = await self._open_connection(address)
        except OSError as error:  # a TimeoutError is one
            reason = "it took too long" if isinstance(error, TimeoutError) else error.strerror or str(error)
            call.connecting = None
            call.on_failed(Failure.UNREACHABLE, f"no connection to {address[0]}:{address[1]}: {reason}")
            return
        call.connecting = None
        connection.send(head, body, call)

    def _tick(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        self.silence_ends = now + self._silence_s
        for connection in list(self._open):
            connection.time_out(now)
        for address, idle in list(self._idle.items()):
            alive = deque(connection for connection in idle if connection.usable)
            if alive:
                self._idle[address] = alive
            else:
                del self._idle[address]
        self._timer = self._loop.call_later(_TICK_S, self._tick) if self._open else None
