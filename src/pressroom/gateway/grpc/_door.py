"""What the connections of one gRPC server share: its methods, the clock, the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pressroom.gateway.grpc._call import ENCODINGS, Call, Handler
from pressroom.gateway.grpc._heads import Code, Head
from pressroom.gateway.grpc._http2 import Http2Connection

Method = Callable[[Call], Handler]

_MOST_CALLS = 4_096
# Messages that have not come whole may together take this often the largest one, or this much.
_LARGEST_AT_ONCE = 8
_HELD_AT_LEAST = 256 << 20
# Seconds: for a client to say that it speaks HTTP/2; of silence before it is asked whether it is there, and then until
# it has said so; without a call; for one that reads nothing to take anything.
_GREETING_S = 20.0
_SILENCE_S = 60.0
_PONG_S = 20.0
_IDLE_S = 600.0
_STALL_S = 300.0
_TICK_S = 0.5


class Door:
    """Finds the method of a call, and closes connections that nobody uses. Belongs to the running event loop."""

    def __init__(self, methods: dict[str, Method], *, message_limit: int, most_connections: int) -> None:
        self._methods = {path.encode(): method for path, method in methods.items()}
        self.message_limit = message_limit
        self.connections: set[Http2Connection] = set()
        #: Calls under way, and bytes of their messages that have not come whole.
        self.calls = 0
        self.held = 0
        self.held_limit = max(_HELD_AT_LEAST, _LARGEST_AT_ONCE * message_limit)
        self.now = 0.0
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

    def begin(self, call: Call, head: Head) -> None:
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
        if self.calls > _MOST_CALLS:
            call.end(Code.RESOURCE_EXHAUSTED, f"There are {_MOST_CALLS} calls under way. Try again in a moment.")
            return
        call.encoding = encoding
        if head.timeout_s is not None:
            call.expire_in(head.timeout_s)
        call.handler = method(call)

    def stop(self) -> None:
        """Take no more calls; connections close as theirs end."""
        self._stopping = True
        for connection in list(self.connections):
            connection.leave()

    def end(self) -> None:
        """End whatever still runs, each with an error that says so."""
        for connection in list(self.connections):
            for call in list(connection.calls.values()):
                call.refuse(Code.UNAVAILABLE, "The server is stopping.")

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
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _look_after(self, connection: Http2Connection) -> None:
        connection.tick()
        silent = self.now - connection.heard
        if connection.over or connection.slow:
            if connection.unsent_moved():
                connection.took = self.now
            elif self.now - connection.took > (_PONG_S if connection.over else _STALL_S):
                connection.abort()
        elif not connection.greeted:
            if silent > _GREETING_S:
                connection.abort()
        elif silent > _SILENCE_S + _PONG_S and connection.pinged:
            connection.abort()
        elif silent > _SILENCE_S and not connection.pinged:
            connection.ping()
        elif not connection.calls and self.now - connection.idle_since > _IDLE_S:
            connection.leave()
