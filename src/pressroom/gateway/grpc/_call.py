"""One call of gRPC: its messages on a stream of HTTP/2, in both directions."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote_to_bytes

from pressroom.gateway.admission import ANONYMOUS
from pressroom.gateway.grpc import _frames as h2
from pressroom.gateway.grpc._heads import Code
from pressroom.gateway.grpc._hpack import literal

if TYPE_CHECKING:
    from pressroom.gateway.grpc._http2 import Http2Connection

_log = logging.getLogger(__name__)

#: Bytes that a client may send of one stream before it is told that they were taken.
STREAM_WINDOW = 1 << 18
# A compressed message may be this often its size, beside what it may be anyway.
_UNPACKED, _UNPACKED_FREE = 100, 1 << 20
# Calls that keep less than this are never ended for what all of them keep.
_SMALL = 1 << 16
# Seconds for a message to come where one is due.
_MESSAGE_S = 60.0
#: Seconds for a client to take anything of an answer.
STALL_S = 300.0
# Of a message to people, in bytes as it is sent: a client takes 16 kB of trailers at most.
_LONGEST_MESSAGE = 2_048
# Whether a message is compressed, and its length.
_PREFIX_BYTES = 5
# Bytes that may wait for the client before whoever makes them has to, and when that may go on.
_HIGH, _LOW = 1 << 16, 1 << 14
_STATUS_200 = b"\x88"
_CONTENT_TYPE = literal(b"content-type", b"application/grpc")
_HEADERS = _STATUS_200 + _CONTENT_TYPE
_GOOD_TRAILERS = literal(b"grpc-status", b"0")
# The frames of an answer that is one message, with the gaps for the number of the stream and the message.
_BEGIN = h2.frame(h2.HEADERS, _HEADERS, flags=h2.END_HEADERS)[:5]
_END = h2.frame(h2.HEADERS, _GOOD_TRAILERS, flags=h2.END_HEADERS | h2.END_STREAM)[:5]
#: How clients may compress their messages, and what zlib calls that.
ENCODINGS = {b"identity": 0, b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


class Handler(Protocol):
    """Who answers a call. It `hurries` where a message of the client is due at once."""

    hurries: bool

    def message(self, data: bytes) -> None:
        """The next message of the client."""

    def no_more(self) -> None:
        """There will be no more messages."""

    def gone(self) -> None:
        """Nobody waits for an answer any more."""

    def slow(self) -> None:
        """The client does not keep up: send no more until `ready`."""

    def ready(self) -> None: ...

    def stop(self) -> None:
        """The server stops: end what waits for more of the client."""


class Call:
    """A call under way. Until it is over, its `handler` hears of it."""

    __slots__ = (
        "_begun", "_buffer", "_connection", "_fresh", "_given", "_held", "_out", "_paused", "_read", "_slow", "_timer",
        "_told", "_trailers", "_unsent",
        "client", "complete", "encoding", "handler", "id", "message_limit", "moved", "over", "window",
    )  # fmt: skip

    def __init__(self, connection: Http2Connection, id: int, window: int) -> None:
        self._connection = connection
        self.id = id
        self.window = window
        self.handler: Handler = _NOBODY
        #: Who calls.
        self.client = ANONYMOUS
        self.encoding = 0
        #: Whether it has its status, sent or about to be.
        self.over = False
        self._buffer = bytearray()  # messages that have not come whole, or may not be given on yet
        self._read = 0  # bytes of them that were given on this moment
        self._given = 0  # bytes of messages that the handler has and keeps
        self._held = 0  # what is counted of all that is kept for it
        #: Whether the client has said everything.
        self.complete = False
        self.message_limit = connection.door.message_limit
        #: When anything went in or out last, in the door's time.
        self.moved = connection.door.now
        self._told = False  # the handler knows that there is no more
        self._paused = False
        self._fresh = 0  # bytes that came since the client was told that it may send more
        self._begun = False  # the headers of the answer are out
        self._out: deque[memoryview] = deque()
        self._unsent = 0
        self._slow = False
        self._trailers: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None

    # What the client sends.

    def came(self, size: int) -> int:
        """So many bytes came. Says how many did since the client had leave for more."""
        self._fresh += size
        fresh = self._fresh
        if fresh >= STREAM_WINDOW // 2 and not self._paused:
            self._give_leave()
        return fresh

    def received(self, data: bytes, last: bool) -> None:
        """Bytes of messages; `last` says that there will be no more."""
        self.complete = last
        self.moved = self._connection.door.now
        if not self.over:
            self.guarded(self._messages, data)

    def guarded(self, work: Callable[..., None], *given: Any) -> None:
        """Do something for this call."""
        try:
            work(*given)
        except Exception:  # the edge of the server: one call's fault must not end the others  # noqa: BLE001
            _log.exception("a gRPC call failed")
            self.refuse(Code.INTERNAL, "The gateway failed on this call; its log says why.")

    def _messages(self, data: bytes) -> None:
        buffer = self._buffer
        if buffer:
            buffer += data
        at, end = 0, len(buffer) or len(data)
        given: bytes | bytearray = buffer or data
        limit = self.message_limit
        while end - at >= _PREFIX_BYTES and not self._paused:
            size = int.from_bytes(given[at + 1 : at + _PREFIX_BYTES], "big")
            if size > limit:
                self.refuse(Code.RESOURCE_EXHAUSTED, f"A message of {size} bytes is over {self._what_limits()}.")
                return
            flag, begin = given[at], at + _PREFIX_BYTES
            if end - begin < size:
                break
            at = begin + size
            message_bytes = bytes(memoryview(given)[begin:at])
            if flag:
                opened = self._opened(flag, message_bytes, limit)
                if opened is None:
                    return
                message_bytes = opened
            self._read = at if buffer else 0
            self.handler.message(message_bytes)
            if self.over:
                return
        self._read = 0
        if buffer:
            del buffer[:at]
        elif at < end:
            buffer += data[at:] if at else data
        self._count()
        if self.complete and not self._told and not self.over and not (self._paused and buffer):
            if buffer:
                self.refuse(Code.INTERNAL, "The call ended in the middle of a message.")
            else:
                self._told = True
                self.handler.no_more()

    def _opened(self, flag: int, message: bytes, limit: int) -> bytes | None:
        if flag > 1 or not self.encoding:
            self.refuse(Code.INTERNAL, "A message is said to be compressed, and grpc-encoding does not say how.")
            return None
        stream = zlib.decompressobj(self.encoding)
        most = min(limit, _UNPACKED_FREE + _UNPACKED * len(message))
        try:
            found = stream.decompress(message, most + 1)
        except zlib.error:
            found = b""
        if len(found) > most:
            limits = self._what_limits() if most == limit else f"{_UNPACKED} times its size"
            self.refuse(Code.RESOURCE_EXHAUSTED, f"A message is over {limits} when it is not compressed.")
        elif not stream.eof or stream.unused_data:
            self.refuse(Code.INTERNAL, "A compressed message cannot be read.")
        else:
            return found
        return None

    def _what_limits(self) -> str:
        limit = self.message_limit
        if limit < self._connection.door.message_limit:
            return f"{limit} bytes, which is what this method takes"
        return f"{limit} bytes (the setting gateway.grpc_max_message_bytes)"

    def keep(self, size: int) -> None:
        """The handler keeps so many bytes of messages more, or less where it is negative."""
        if not self.over:
            self._given += size
            self._count()

    def _count(self) -> None:
        """Count what is kept for this call among all that is."""
        size = len(self._buffer) - self._read + self._given + self._unsent
        if size == self._held:
            return
        door = self._connection.door
        door.held += size - self._held
        grows, self._held = size > self._held, size
        if grows and size > _SMALL and door.held > door.held_limit:
            if self.over:
                self._connection.cancel(self)
            else:
                self.refuse(Code.UNAVAILABLE, "Too many large messages are under way. Try again in a moment.")

    @property
    def has_message(self) -> bool:
        """Whether a whole message has come that was not given on, because of `pause`."""
        buffer, at = self._buffer, self._read
        left = len(buffer) - at - _PREFIX_BYTES
        return left >= 0 and left >= int.from_bytes(buffer[at + 1 : at + _PREFIX_BYTES], "big")

    @property
    def has_part(self) -> bool:
        """Whether a message has begun to come."""
        return len(self._buffer) > self._read

    def pause(self) -> None:
        """Take no more messages until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Take messages again; those that have come are given on by the event loop in a moment."""
        if self._paused:
            self._paused = False
            if self._fresh >= STREAM_WINDOW // 2 and not self.complete:
                self._give_leave()
            if self._buffer or self.complete:
                asyncio.get_running_loop().call_soon(self._resumed)

    def _resumed(self) -> None:
        if not self._paused and not self.over:
            self.guarded(self._messages, b"")

    def _give_leave(self) -> None:
        self._connection.write_control(h2.window_update(self.id, self._fresh))
        self._fresh = 0

    # What it is answered.

    def send(self, message: bytes) -> None:
        """The next message of the answer."""
        if not self.over:
            self._connection.moved()
            self._queue(message)
            self.pump()
            if self._unsent > _HIGH and not self._slow:
                self._slow = True
                self.handler.slow()

    def reply(self, message: bytes) -> None:
        """The one message of the answer, and its end."""
        if self.over:
            return
        connection = self._connection
        connection.moved()
        size = len(message) + _PREFIX_BYTES
        most = min(self.window, connection.window, connection.frame_limit)
        if self._begun or not self.complete or connection.slow or size > most:
            self._queue(message)
            self.end()
            return
        self.over = True
        connection.window -= size
        stream = self.id.to_bytes(4, "big")
        connection.write(b"".join((
            _BEGIN, stream, _HEADERS,
            size.to_bytes(3, "big"), b"\0\0", stream, b"\0", len(message).to_bytes(4, "big"), message,
            _END, stream, _GOOD_TRAILERS,
        )))  # fmt: skip
        self._closed()

    def end(
        self,
        code: Code = Code.OK,
        message: str = "",
        metadata: Iterable[tuple[str, str]] = (),
        *,
        http_status: int = 200,
    ) -> None:
        """End the answer with a status. What was sent goes out before it."""
        if self.over:
            return
        trailers = literal(b"grpc-status", b"%d" % code) if code else _GOOD_TRAILERS
        if message:
            trailers += literal(b"grpc-message", _said(message))
        for name, value in metadata:
            trailers += literal(name.encode(), value.encode())
        if not self._begun and not self._out:
            status = _STATUS_200 if http_status == 200 else literal(b":status", b"%d" % http_status)
            trailers = status + _CONTENT_TYPE + trailers
            self._begun = True
        self.over = True
        self._trailers = trailers
        self.pump()

    def refuse(self, code: Code, message: str, metadata: Iterable[tuple[str, str]] = ()) -> None:
        """End the call, whatever is being done for it."""
        if not self.over:
            self._out.clear()
            self._unsent = 0
            self.end(code, message, metadata)
            self.handler.gone()

    def expire_in(self, seconds: float) -> None:
        """The client waits no longer than this."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expired)

    def _expired(self) -> None:
        if self.over:
            self._connection.cancel(self)  # it was answered, and the client does not take it
        else:
            self.refuse(Code.DEADLINE_EXCEEDED, "The deadline of the call is over.")

    def look_after(self, now: float) -> None:
        """End a call whose client does nothing for it: sends no message where one is due, or takes no answer."""
        if self._unsent or self._trailers is not None:
            if now - self.moved > STALL_S:
                self._connection.cancel(self)
        elif not self.complete and not self.over and self.handler.hurries and now - self.moved > _MESSAGE_S:
            self.refuse(Code.DEADLINE_EXCEEDED, f"Nothing came of the message for {_MESSAGE_S:.0f} s.")

    def lost(self) -> None:
        """The stream is closed: nobody hears anything more."""
        unfinished = not self.over
        self.over = True
        self._out.clear()
        self._let_go()
        self._trailers = None
        if unfinished:
            try:
                self.handler.gone()
            except Exception:  # as in guarded: the other calls of its connection are told, too  # noqa: BLE001
                _log.exception("a gRPC call failed as its client left")

    def pump(self) -> None:
        """Send what the client's windows let through."""
        connection, out = self._connection, self._out
        frames: list[bytes | memoryview] = []
        stream = self.id.to_bytes(4, "big")
        if not out and self._trailers is None:
            return
        if out and not self._begun:
            self._begun = True
            frames += (_BEGIN, stream, _HEADERS)
        while out:
            room = min(self.window, connection.window, connection.frame_limit)
            if connection.slow or room <= 0:
                if connection.slow or self.window > 0:
                    connection.wait_for_window(self)
                break
            piece = out[0]
            if len(piece) <= room:
                out.popleft()
            else:
                piece, out[0] = piece[:room], piece[room:]
            size = len(piece)
            self.window -= size
            connection.window -= size
            self._unsent -= size
            frames += (size.to_bytes(3, "big"), b"\0\0", stream, piece)
        if not out and self._trailers is not None:
            flags = h2.END_HEADERS | h2.END_STREAM
            frames.append(h2.frame(h2.HEADERS, self._trailers, flags=flags, stream=self.id))
            self._trailers = None
            connection.write(b"".join(frames))
            self._closed()
            return
        if frames:
            connection.write(b"".join(frames))
            self.moved = connection.door.now
            self._count()
        if self._slow and self._unsent < _LOW and not self.over:
            self._slow = False
            self.guarded(self.handler.ready)

    def _queue(self, message: bytes) -> None:
        self._out.append(memoryview(b"\0" + len(message).to_bytes(4, "big") + message))
        self._unsent += len(message) + _PREFIX_BYTES
        if self._unsent > _SMALL:
            self._count()

    def _closed(self) -> None:
        """Everything is said."""
        if not self.complete:
            # The client need not go on sending (RFC 9113, 8.1).
            self._connection.write_control(h2.reset(self.id, h2.NO_ERROR))
        self._connection.forget(self)
        self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._connection.door.held -= self._held
            self._held = 0
        self._unsent = self._given = 0
        if self._buffer:
            self._buffer = bytearray()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Nobody:
    """The handler of a call that is refused before anybody hears of it."""

    hurries = True

    def message(self, data: bytes) -> None: ...

    def no_more(self) -> None: ...

    def gone(self) -> None: ...

    def slow(self) -> None: ...

    def ready(self) -> None: ...

    def stop(self) -> None: ...


_NOBODY = _Nobody()
# All that needs no percent sign in a grpc-message.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def _said(message: str) -> bytes:
    """A message to people in the form of the protocol: UTF-8 with percent signs, no longer than a client takes."""
    found = quote(message[:_LONGEST_MESSAGE], safe=_PLAIN, errors="replace").encode()
    if len(found) <= _LONGEST_MESSAGE and len(message) <= _LONGEST_MESSAGE:
        return found
    cut = found[:_LONGEST_MESSAGE]
    if b"%" in cut[-2:]:
        cut = cut[: cut.rfind(b"%")]  # half of an escape
    return quote(unquote_to_bytes(cut).decode(errors="ignore") + "\u2026", safe=_PLAIN).encode()
