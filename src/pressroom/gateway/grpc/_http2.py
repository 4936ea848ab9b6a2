"""HTTP/2 on one connection (RFC 9113), as far as gRPC needs it: frames in and out, streams, flow control, and bounds on
what a client may make this server keep or do.

Why not grpcio: its server for asyncio takes 217 µs of CPU for a call that is answered at once, before anything is done
for it (docs/gateway.md has the figures). Here a call comes as two frames, is handed on in the same call of the event
loop, and its answer goes out as one write.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, cast

from pressroom.gateway.grpc import _frames as h2
from pressroom.gateway.grpc._call import STREAM_WINDOW, Call
from pressroom.gateway.grpc._heads import Head, Malformed, head_of
from pressroom.gateway.grpc._hpack import Decoder, HpackError

if TYPE_CHECKING:
    from pressroom.gateway.grpc._door import Door

_log = logging.getLogger(__name__)

MOST_STREAMS = 1_024  # calls at once of one connection
HEADERS_LIMIT = 16_384
_WINDOW = 1 << 24
# A block of headers in its compressed form, which may be one that is over the limit above and is told so.
_BLOCK_LIMIT = 1 << 17
# Frames that cost a client nothing and move no message, in half a second.
_IDLE_FRAMES = 200
_RESETS = 1_000
# Settings make the windows of all calls be looked at.
_SETTINGS_COST = 10
# Bytes of acknowledgements and the like that wait for a client that reads nothing, and of what one that is sent away
# goes on sending.
_UNREAD_LIMIT = 1 << 18
# Different heads of calls that are remembered, and the longest that is.
_HEADS, _HEAD_BYTES = 64, 1_024
_GREETING = h2.settings({
    h2.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
    h2.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
    h2.MAX_HEADER_LIST_SIZE: HEADERS_LIMIT,
}) + h2.window_update(0, _WINDOW - h2.DEFAULT_WINDOW)  # fmt: skip
_HTTP1 = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 66\r\n\r\n"
    b"This port speaks gRPC (HTTP/2 without TLS); HTTP/1.1 has another.\n"
)


class _Broken(Exception):
    """The client broke the protocol: the connection ends."""

    def __init__(self, reason: int, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Http2Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.calls: dict[int, Call] = {}
        #: Of what is sent: what the client takes in one frame, on a new stream, and at this moment on all streams.
        self.frame_limit = h2.DEFAULT_FRAME
        self.stream_window = h2.DEFAULT_WINDOW
        self.window = h2.DEFAULT_WINDOW
        #: Whether the client does not read what was sent.
        self.slow = False
        #: When the loop's clock heard of it last, and since when it has no calls.
        self.heard = self.idle_since = door.now
        self.pinged = False
        #: When it took something of what waits for it.
        self.took = door.now
        self._transport: asyncio.Transport | None = None
        self._rest = b""  # of a frame that has not come whole
        self._greeted = False
        #: Whether it speaks HTTP/2: its first settings came.
        self.settled = False
        self._decoder = Decoder()
        self._heads: dict[bytes, tuple[int, Head]] = {}
        self._block = bytearray()  # headers that go on in the next frame
        self._block_stream = 0
        self._block_flags = 0
        self._last = 0  # the highest stream so far
        self._leaving = False  # no more calls are taken
        #: Whether it is sent away: nothing it says counts any more.
        self.over = False
        self._taken = 0  # bytes that came since the client was told that it may send more
        self._blocked: OrderedDict[int, Call] = OrderedDict()  # calls that have more to send than the connection takes
        self._idle_frames = self._resets = 0
        self._unread = self._unsent = 0

    # What the loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.door.admit(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.over = True
        self.door.connections.discard(self)
        calls, self.calls = self.calls, {}
        self.door.calls -= len(calls)
        self._blocked.clear()
        for call in list(calls.values()):
            call.lost()

    def pause_writing(self) -> None:
        self.slow = True
        self._unread = 0
        self.took = self.door.now

    def resume_writing(self) -> None:
        self.slow = False
        self._go_on()

    def data_received(self, data: bytes) -> None:
        if self.over:
            self._unread += len(data)
            if self._unread > _UNREAD_LIMIT:
                self.abort()
            return
        self.heard = self.door.now
        self.pinged = False
        if self._rest:
            data = self._rest + data
        try:
            at = 0 if self._greeted else self._greet(data)
            if at < 0:
                return
            self._rest = data[self._frames(data, at) :]
        except _Broken as error:
            self.end(error.reason, str(error))
        except HpackError as error:
            self.end(h2.COMPRESSION_ERROR, str(error))

    def _greet(self, data: bytes) -> int:
        """Where the frames begin; -1 where they have not."""
        preface = h2.PREFACE
        if len(data) < len(preface) and preface.startswith(data):
            self._rest = data
            return -1
        if not data.startswith(preface):
            line = data[:64].split(b"\r\n", 1)[0]
            if b" /" in line or b" HTTP/" in line:
                self.write(_HTTP1)
            self._part()
            return -1
        self._greeted = True
        self.write(_GREETING)
        return len(preface)

    def _frames(self, data: bytes, at: int) -> int:
        """Take all whole frames from `at` on; where the rest begins."""
        end = len(data)
        unpack = h2.HEAD.unpack_from
        while end - at >= h2.HEAD_BYTES:
            high, low, kind, flags, stream = unpack(data, at)
            size = high << 16 | low
            if size > h2.DEFAULT_FRAME:
                raise _Broken(h2.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            begin = at + h2.HEAD_BYTES
            at = begin + size
            if at > end:
                return begin - h2.HEAD_BYTES
            stream &= h2.MOST
            if self._block_stream and (kind != h2.CONTINUATION or stream != self._block_stream):
                raise _Broken(h2.PROTOCOL_ERROR, "headers were not continued")
            if kind == h2.DATA:
                self._data(data[begin:at], flags, stream)
            elif kind == h2.HEADERS:
                self._headers(data[begin:at], flags, stream)
            else:
                self._other(kind, data[begin:at], flags, stream)
            if self.over:
                return end
        return at

    # Calls.

    def _headers(self, payload: bytes, flags: int, stream: int) -> None:
        if not stream & 1:
            raise _Broken(h2.PROTOCOL_ERROR, f"headers on stream {stream}")
        if flags & (h2.PADDED | h2.PRIORITIZED):
            payload = _unpadded(payload, flags)
            if flags & h2.PRIORITIZED:
                if len(payload) < 5:
                    raise _Broken(h2.FRAME_SIZE_ERROR, "a priority is cut short")
                payload = payload[5:]
        if flags & h2.END_HEADERS:
            self._head(payload, flags, stream)
            return
        self._block_stream, self._block_flags = stream, flags
        self._block = bytearray(payload)

    def _continued(self, payload: bytes, flags: int, stream: int) -> None:
        if not self._block_stream:
            raise _Broken(h2.PROTOCOL_ERROR, "a continuation of nothing")
        if not payload:
            self._count_idle()
        self._block += payload
        if len(self._block) > _BLOCK_LIMIT:
            raise _Broken(h2.ENHANCE_YOUR_CALM, f"headers over {_BLOCK_LIMIT} bytes")
        if flags & h2.END_HEADERS:
            self._block_stream, block = 0, bytes(self._block)
            self._block = bytearray()
            self._head(block, self._block_flags, stream)

    def _head(self, block: bytes, flags: int, stream: int) -> None:
        if not self.settled:
            raise _Broken(h2.PROTOCOL_ERROR, "headers before settings")
        known = self._heads.get(block)
        if known is not None and known[0] == self._decoder.changes:
            head = known[1]
        else:
            before = self._decoder.changes
            try:
                head = head_of(self._decoder.decode(block, HEADERS_LIMIT))
            except Malformed:
                self._last = max(self._last, stream)
                self._reset(stream, h2.PROTOCOL_ERROR)
                return
            # A block that changes the table does so each time it comes.
            if len(block) <= _HEAD_BYTES and before == self._decoder.changes:
                if len(self._heads) >= _HEADS:
                    self._heads.clear()
                self._heads[block] = (self._decoder.changes, head)
        if stream <= self._last:
            call = self.calls.get(stream)
            if call is not None:
                if not flags & h2.END_STREAM:
                    raise _Broken(h2.PROTOCOL_ERROR, "headers twice")
                if call.complete:
                    self._reset(stream, h2.STREAM_CLOSED)
                else:
                    call.received(b"", True)  # trailers, which say nothing in a request
            return
        self._last = stream
        if not head.path and head.refusal is None:
            self._reset(stream, h2.PROTOCOL_ERROR)  # trailers of nothing
            return
        if self._leaving or len(self.calls) >= MOST_STREAMS:
            self.write_control(h2.reset(stream, h2.REFUSED_STREAM))
            return
        call = Call(self, stream, self.stream_window)
        self.calls[stream] = call
        self.door.calls += 1
        call.complete = bool(flags & h2.END_STREAM)
        call.guarded(self.door.begin, self, call, head)
        if flags & h2.END_STREAM:
            call.received(b"", True)

    def _data(self, payload: bytes, flags: int, stream: int) -> None:
        size = len(payload)
        self._taken += size
        if self._taken > _WINDOW:
            raise _Broken(h2.FLOW_CONTROL_ERROR, "more data than there was leave for")
        if self._taken >= _WINDOW // 2:
            self.write_control(h2.window_update(0, self._taken))
            self._taken = 0
        if flags & h2.PADDED:
            payload = _unpadded(payload, flags)
        if not payload and not flags & h2.END_STREAM:
            self._count_idle()
        call = self.calls.get(stream)
        if call is not None:
            last = bool(flags & h2.END_STREAM)
            if call.complete:
                self._reset(stream, h2.STREAM_CLOSED)
                return
            if not last and call.came(size) > STREAM_WINDOW:
                self._reset(stream, h2.FLOW_CONTROL_ERROR)
                return
            call.received(payload, last)
        elif stream > self._last or not stream & 1:
            raise _Broken(h2.PROTOCOL_ERROR, f"data on stream {stream}, which is none")

    # Everything else.

    def _other(self, kind: int, payload: bytes, flags: int, stream: int) -> None:
        if not self.settled and kind != h2.SETTINGS:
            raise _Broken(h2.PROTOCOL_ERROR, "something before settings")
        if kind == h2.WINDOW_UPDATE:
            self._more_window(payload, stream)
        elif kind == h2.SETTINGS:
            self._settings(payload, flags, stream)
        elif kind == h2.PING:
            if len(payload) != 8 or stream:
                raise _Broken(h2.FRAME_SIZE_ERROR if len(payload) != 8 else h2.PROTOCOL_ERROR, "a ping is malformed")
            if not flags & h2.ACK:
                self._count_idle()
                self.write_control(h2.frame(h2.PING, payload, flags=h2.ACK))
        elif kind == h2.RST_STREAM:
            self._was_reset(payload, stream)
        elif kind == h2.CONTINUATION:
            self._continued(payload, flags, stream)
        elif kind == h2.GOAWAY:
            if stream:
                raise _Broken(h2.PROTOCOL_ERROR, "a farewell on a stream")
            self.leave()
        elif kind == h2.PUSH_PROMISE:
            raise _Broken(h2.PROTOCOL_ERROR, "a client cannot push")
        else:  # priorities, and what later versions may bring
            if kind == h2.PRIORITY and (len(payload) != 5 or not stream):
                raise _Broken(h2.FRAME_SIZE_ERROR if stream else h2.PROTOCOL_ERROR, "a priority is malformed")
            self._count_idle()

    def _settings(self, payload: bytes, flags: int, stream: int) -> None:
        if stream:
            raise _Broken(h2.PROTOCOL_ERROR, "settings on a stream")
        if len(payload) % 6 or (flags & h2.ACK and payload):
            raise _Broken(h2.FRAME_SIZE_ERROR, "settings are cut short")
        if flags & h2.ACK:
            return
        if self.settled:
            self._count_idle(_SETTINGS_COST)
        self.settled = True
        window = self.stream_window
        for name, value in struct.iter_unpack(">HL", payload):
            if name == h2.INITIAL_WINDOW_SIZE:
                if value > h2.MOST:
                    raise _Broken(h2.FLOW_CONTROL_ERROR, "a window is too large")
                window = value
            elif name == h2.MAX_FRAME_SIZE:
                if not h2.DEFAULT_FRAME <= value <= h2.LARGEST_FRAME:
                    raise _Broken(h2.PROTOCOL_ERROR, f"frames of {value} bytes")
                self.frame_limit = value
            elif name == h2.ENABLE_PUSH and value > 1:
                raise _Broken(h2.PROTOCOL_ERROR, "a setting is neither 0 nor 1")
        self.write_control(h2.SETTINGS_ACK)
        change, self.stream_window = window - self.stream_window, window
        if change:
            for call in list(self.calls.values()):
                call.window += change
                if call.window > h2.MOST:
                    raise _Broken(h2.FLOW_CONTROL_ERROR, "a window is too large")
                if change > 0:
                    call.pump()

    def _more_window(self, payload: bytes, stream: int) -> None:
        if len(payload) != 4:
            raise _Broken(h2.FRAME_SIZE_ERROR, "a window is malformed")
        more = int.from_bytes(payload, "big") & h2.MOST
        call = self.calls.get(stream) if stream else None
        if stream and call is None:
            if stream > self._last:
                raise _Broken(h2.PROTOCOL_ERROR, f"a window of stream {stream}, which is none")
            return
        if call is None:
            self.window += more
            if not more or self.window > h2.MOST:
                raise _Broken(h2.PROTOCOL_ERROR if not more else h2.FLOW_CONTROL_ERROR, "a window is out of bounds")
            self._go_on()
            return
        call.window += more
        if not more or call.window > h2.MOST:
            self._reset(stream, h2.PROTOCOL_ERROR if not more else h2.FLOW_CONTROL_ERROR)
        else:
            call.pump()

    def _was_reset(self, payload: bytes, stream: int) -> None:
        if len(payload) != 4:
            raise _Broken(h2.FRAME_SIZE_ERROR, "a reset is malformed")
        if stream > self._last or not stream:
            raise _Broken(h2.PROTOCOL_ERROR, f"a reset of stream {stream}, which is none")
        self._count_reset()
        call = self.calls.get(stream)
        if call is not None:
            self.forget(call)
            call.lost()

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > _RESETS:
            raise _Broken(h2.ENHANCE_YOUR_CALM, "too many calls are cancelled")

    def _count_idle(self, cost: int = 1) -> None:
        self._idle_frames += cost
        if self._idle_frames > _IDLE_FRAMES:
            raise _Broken(h2.ENHANCE_YOUR_CALM, "too many frames that move nothing")

    # What calls do.

    def write(self, data: bytes) -> None:
        """Send what flow control lets through."""
        transport = self._transport
        if transport is not None and not self.over and not transport.is_closing():
            transport.write(data)

    def write_control(self, data: bytes) -> None:
        """Send what needs no leave. A client that makes much of it and reads nothing is cut off."""
        if self.slow:
            self._unread += len(data)
            if self._unread > _UNREAD_LIMIT:
                self.abort()
                return
        self.write(data)

    def moved(self) -> None:
        """A message went out: what a client does then is no idleness."""
        self._idle_frames = 0

    def wait_for_window(self, call: Call) -> None:
        self._blocked[call.id] = call

    def cancel(self, call: Call) -> None:
        """End the stream of a call whose answer does not go out."""
        self.write_control(h2.reset(call.id, h2.CANCEL))
        self.forget(call)
        call.lost()

    def forget(self, call: Call) -> None:
        """The stream of a call is closed."""
        self._blocked.pop(call.id, None)
        if self.calls.pop(call.id, None) is not None:
            self.door.calls -= 1
        if not self.calls:
            self.idle_since = self.door.now
            if self._leaving:
                self._part()

    def _reset(self, stream: int, reason: int) -> None:
        """End a stream at once, for what the client did."""
        self._count_reset()
        self.write_control(h2.reset(stream, reason))
        call = self.calls.get(stream)
        if call is not None:
            self.forget(call)
            call.lost()

    def _go_on(self) -> None:
        """There is room again: each call that waited for it gets its turn, and goes to the end of the queue."""
        while self._blocked and not self.slow and self.window > 0:
            self._blocked.popitem(last=False)[1].pump()

    # What the door does.

    def tick(self) -> None:
        """Every half second."""
        self._idle_frames = self._resets = 0

    def unsent_moved(self) -> bool:
        """Whether the client took anything of what waits for it since this was asked last."""
        before, self._unsent = self._unsent, self.unsent
        return self._unsent != before

    def ping(self) -> None:
        """Ask whether the client is still there."""
        self.pinged = True
        self.write(h2.frame(h2.PING, b"pressing"))

    @property
    def unsent(self) -> int:
        """Bytes that were written and that the client has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def leave(self) -> None:
        """Take no more calls; close when the last one has ended."""
        if self._leaving:
            return
        self._leaving = True
        if self._greeted:
            self.write(h2.go_away(self._last, h2.NO_ERROR))
        if not self.calls:
            self._part()

    def end(self, reason: int, why: str) -> None:
        """Send the client away."""
        _log.debug("a gRPC connection ends: %s", why)
        self.write(h2.go_away(self._last, reason, why.encode()[:200]))
        self._part()
        calls, self.calls = self.calls, {}
        self.door.calls -= len(calls)
        self._blocked.clear()
        for call in calls.values():
            call.lost()

    def _part(self) -> None:
        """Everything is said. The client may still be sending: to close now would reset the connection, and lose it
        what it has not read. It closes, or is closed before long."""
        self.over = True
        self.took = self.door.now
        self._unread = 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & h2.PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise _Broken(h2.PROTOCOL_ERROR, "there is more padding than frame")
    return payload[1 : len(payload) - payload[0]]
