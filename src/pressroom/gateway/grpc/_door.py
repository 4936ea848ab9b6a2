"""What the connections of one gRPC server share: its methods, the clock, the limits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import NamedTuple

from pressroom.gateway._entrance import Entrance
from pressroom.gateway.grpc._call import ENCODINGS, STALL_S, Call, Handler
from pressroom.gateway.grpc._heads import Code, Head
from pressroom.gateway.grpc._http2 import Http2Connection
from pressroom.gateway.grpc._refusing import refuse
from pressroom.gateway.problems import Problem

_MOST_CALLS = 4_096
# Calls of one connection that are taken even when there are so many.
_FAIR_SHARE = 64
# What is kept for all calls may together take this often the largest message, or this much.
_LARGEST_AT_ONCE = 8
_HELD_AT_LEAST = 256 << 20
# Seconds: for one that is sent away to leave; for a client to say that it speaks HTTP/2; of silence before it is asked
# whether it is there, and then until it has said so; without a call.
_LINGER_S = 5.0
_GREETING_S = 20.0
_SILENCE_S = 60.0
_PONG_S = 20.0
_IDLE_S = 600.0
_TICK_S = 0.5
# How often calls are looked at.
_CALLS_S = 10.0


class Method(NamedTuple):
    """Who answers calls of a method, the bytes that one of its messages may have at most, and whether it is for
    everybody: what says that the server lives needs no key."""

    begin: Callable[[Call], Handler]
    most: int = sys.maxsize
    open: bool = False


class Door:
    """Finds the method of a call, and closes connections that nobody uses. Belongs to the running event loop."""

    def __init__(
        self,
        methods: dict[str, Method],
        *,
        message_limit: int,
        most_connections: int,
        entrance: Entrance | None = None,
    ) -> None:
        self._methods = {path.encode(): method for path, method in methods.items()}
        self._entrance = entrance or Entrance(None)
        self.message_limit = message_limit
        self.connections: set[Http2Connection] = set()
        #: Calls under way, and bytes that are kept for them: of messages that came, and of answers nobody took yet.
        self.calls = 0
        self.held = 0
        self.held_limit = max(_HELD_AT_LEAST, _LARGEST_AT_ONCE * message_limit)
        self.now = 0.0
        self._calls_at = 0.0
        self._most_connections = most_connections
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tick()

    def connect(self) -> Http2Connection:
        """A protocol for a new connection."""
        return Http2Connection(self)

    def admit(self, connection: Http2Connection) -> None:
        """Take the connection among the others; where there is no room, it is closed."""
        if len(self.connections) >= self._most_connections or self._stopping:
            connection.abort()
            return
        self.connections.add(connection)

    def begin(self, connection: Http2Connection, call: Call, head: Head) -> None:
        """Hand a call to its method, or refuse it."""
        if head.refusal is not None:
            code, message = head.refusal
            call.end(code, message, http_status=head.http_status)
            return
        method = self._methods.get(head.path)
        if method is None:
            path = head.path[:200].decode(errors="replace")
            call.end(Code.UNIMPLEMENTED, f"There is no method {path}. Reflection lists those there are.")
            return
        encoding = ENCODINGS.get(head.encoding)
        if encoding is None:
            name = head.encoding[:40].decode(errors="replace")
            known = ",".join(each.decode() for each in ENCODINGS)
            message = f"Messages compressed with {name} are not understood; {known} are."
            call.end(Code.UNIMPLEMENTED, message, (("grpc-accept-encoding", known),))
            return
        if self.calls > _MOST_CALLS and len(connection.calls) > _FAIR_SHARE:
            call.end(Code.RESOURCE_EXHAUSTED, f"There are {_MOST_CALLS} calls under way. Try again in a moment.")
            return
        if not method.open:
            found = self._entrance.of(head.said)
            if isinstance(found, Problem):
                refuse(call, found)
                return
            call.client = found
        call.encoding = encoding
        call.message_limit = min(self.message_limit, method.most)
        if head.timeout_s is not None:
            call.expire_in(head.timeout_s)
        call.handler = method.begin(call)

    def stop(self) -> None:
        """Take no more calls; connections close as theirs end."""
        self._stopping = True
        for connection in list(self.connections):
            for call in list(connection.calls.values()):
                call.handler.stop()
            connection.leave()

    def end(self) -> None:
        """End whatever still runs, each with an error that says so."""
        for connection in list(self.connections):
            for call in list(connection.calls.values()):
                call.refuse(Code.UNAVAILABLE, "The server is stopping.")

    @property
    def busy(self) -> bool:
        """Whether a connection has something to say, or has said what its client has not taken."""
        return any(not connection.over or connection.unsent for connection in self.connections)

    def abort(self) -> None:
        """Close what is left, at once."""
        for connection in list(self.connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self.now = self._loop.time()
        for connection in list(self.connections):
            self._look_after(connection)
        if self.now >= self._calls_at:
            self._calls_at = self.now + _CALLS_S
            for connection in list(self.connections):
                for call in list(connection.calls.values()):
                    call.look_after(self.now)
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _look_after(self, connection: Http2Connection) -> None:
        connection.tick()
        silent = self.now - connection.heard
        if connection.over or connection.slow:
            if connection.unsent_moved():
                connection.took = self.now
            elif self.now - connection.took > (STALL_S if connection.unsent else _LINGER_S):
                connection.abort()
        elif not connection.settled:
            if silent > _GREETING_S:
                connection.abort()
        elif silent > _SILENCE_S + _PONG_S and connection.pinged:
            connection.abort()
        elif silent > _SILENCE_S and not connection.pinged:
            connection.ping()
        elif not connection.calls and self.now - connection.idle_since > _IDLE_S:
            connection.leave()
