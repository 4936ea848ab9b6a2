"""The HTTP/1.1 server: a protocol per connection, llhttp for what strangers send, a bound and a deadline on everything.

Why not ASGI: a request is answered from here without a task, a future or a copy, which halves its cost, and the server
under it must limit the size of headers and the time they take (uvicorn with httptools limits neither). The figures are
in docs/gateway.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol, cast

import httptools

from pressroom.gateway._descriptors import connections_allowed
from pressroom.gateway._http_request import Heads, Request
from pressroom.gateway._incoming import Incoming

_log = logging.getLogger(__name__)

HEAD_LIMIT = 65_536
HEADERS_LIMIT = 128
# Seconds: for a whole head to come; between two pieces of a body; for the next request on an idle connection; for a
# client to take anything of an answer it has been sent; to discard what a refused client goes on sending.
_HEAD_S = 30.0
_BODY_S = 60.0
# Bytes a second that a body must come at, taken over all of it but for its first minute. Less is no client that sends,
# but one that holds on to a connection.
_BODY_RATE = 1_000
_IDLE_S = 75.0
_STALL_S = 300.0
_LINGER_S = 10.0
_TICK_S = 0.5
# Bodies over this count towards what all of them together may take, which is this often the largest one, or this much.
_LARGE = 1 << 20
_LARGEST_AT_ONCE = 8
_HELD_AT_LEAST = 256 << 20
# Below this a copy costs less than a second buffer does on its way through the event loop.
_JOINED = 65_536
_NEVER = float("inf")
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_LAST_CHUNK = b"0\r\n\r\n"


class Exchange(Protocol):
    """Who answers a request later. Until `finish`, it hears of the client."""

    def client_gone(self) -> None:
        """The client closed the connection; nothing can be sent any more."""

    def client_slow(self) -> None:
        """The client does not keep up: send no more until `client_ready`."""

    def client_ready(self) -> None: ...

    def shut_down(self) -> None:
        """The time to finish is over: end the answer."""


class Application(Protocol):
    """Who answers requests: at once with `HttpConnection.respond`, or later, after `HttpConnection.hold`."""

    def handle(self, connection: HttpConnection, request: Request) -> None: ...

    def refuse(self, connection: HttpConnection, status: int, message: str, path: bytes) -> None:
        """Answer what never became a request, or failed without a reason, with `HttpConnection.respond`. `path` is what
        it was for, b"" where that is not known."""


class Listener:
    """What the connections of one server share: the application, the clock, the limits.

    Requests whose path begins with one of `streamed` are handled when their head has come; their body, of any length,
    is then taken from `Request.incoming`. More connections than the system has descriptors for are not kept: the one
    that is idle longest makes room, or the one that has taken longest over sending its request. Large bodies that are
    kept at one time are bounded together, too: what is over that is a 503.
    """

    def __init__(self, application: Application, *, body_limit: int, streamed: tuple[bytes, ...] = ()) -> None:
        self.application = application
        self.body_limit = body_limit
        self.held = 0
        self.held_limit = max(_HELD_AT_LEAST, _LARGEST_AT_ONCE * body_limit)
        self.streamed = streamed
        self.heads = Heads()
        self._most_connections = connections_allowed()
        self.connections: set[HttpConnection] = set()
        self.stopping = False
        self.now = 0.0
        self.date = b""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tick()

    def connect(self) -> HttpConnection:
        """A protocol for a new connection."""
        return HttpConnection(self)

    def admit(self, connection: HttpConnection) -> None:
        """Take the connection among the others; where there is no room, it or an idle one is closed."""
        self.connections.add(connection)
        if len(self.connections) > self._most_connections:
            others = [each for each in self.connections if each is not connection]
            spare = [each for each in others if each.idle] or [each for each in others if each.unfinished]
            # What has waited longest for a request runs out first.
            min(spare, key=lambda each: each.deadline, default=connection).abort()

    def stop(self) -> None:
        """Answer what is being asked, take no more requests, close what is idle."""
        self.stopping = True
        for connection in list(self.connections):
            connection.close_when_idle()

    def end(self) -> None:
        """End whatever still runs, each with an error that says so."""
        for connection in list(self.connections):
            connection.shut_down()

    def abort(self) -> None:
        """Close what is left, at once."""
        for connection in list(self.connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self.now = self._loop.time()
        self.date = f"date: {formatdate(usegmt=True)}\r\n".encode()
        for connection in list(self.connections):
            if self.now >= connection.deadline:
                connection.time_out()
        self._timer = self._loop.call_later(_TICK_S, self._tick)


class _Refused(Exception):
    pass


class HttpConnection(asyncio.Protocol):
    """One client's connection: requests one after another, each answered before the next is looked at."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None  # the one whose head or body is coming
        self._head_done = False
        self._head_bytes = 0
        self._header_lines = 0
        self._header_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._unframed = 0  # bytes since the last of the body: extensions of chunks, trailers
        self._body_until = 0.0  # when a body must have come of which nothing more does
        self._refusal = (0, "")
        self._waiting: deque[Request] = deque()  # complete, and not begun
        self._current: Request | None = None  # the one being answered
        self._exchange: Exchange | None = None
        self._chunked = False
        self._discarding = False
        self._reading_paused = False
        self._slow = False
        self._unsent = 0
        self.deadline = listener.now + _IDLE_S

    # What the loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are, without saying so
        self._listener.admit(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.connections.discard(self)
        for request in (self._request, self._current, *self._waiting):
            self._let_go(request)
        self._waiting.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def eof_received(self) -> None:
        """The client has left: whoever closes one side of an HTTP connection does not wait for the answer."""

    def pause_writing(self) -> None:
        self._slow = True
        self.deadline = self._listener.now + _STALL_S
        if self._exchange is not None:
            self._exchange.client_slow()

    def resume_writing(self) -> None:
        self._slow = False
        self.deadline = _NEVER if self._current is not None else self._listener.now + _IDLE_S
        if self._exchange is not None:
            self._exchange.client_ready()

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        whole = self._request is None and self._current is None and not self._waiting
        if whole:
            request = self._listener.heads.known(data)
            if request is not None:
                self._waiting.append(request)
                self._next()
                return
        if not self._head_done:
            self._head_bytes += len(data)
        elif self._request is not None:
            self._unframed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # It asks for another protocol; it gets its answer in this one, and then the connection ends.
            last = self._waiting[-1] if self._waiting else None
            if last is None:
                self._refuse(400, "CONNECT and HTTP/2 without TLS negotiation are not spoken here.")
                return
            last.keep_alive = False
            self._discarding = True
        except httptools.HttpParserError as error:
            status, message = self._refusal
            self._refuse(status or 400, message or f"This is not a valid HTTP/1.1 request: {error}.")
            return
        if self._waiting:
            if whole and self._request is None and len(self._waiting) == 1:
                self._listener.heads.remember(data, self._waiting[0])
            self._next()
        elif self._request is not None:
            if self._unframed > HEAD_LIMIT:
                self._refuse(431, f"The trailers, or the extensions of a chunk, are over {HEAD_LIMIT} bytes.")
            elif self._head_done and (self._current is None or self._request is self._current):
                self.deadline = self._listener.now + _BODY_S
                if self._request.incoming is None:
                    self.deadline = min(self.deadline, self._body_until + self._body_bytes / _BODY_RATE)
            elif self._head_bytes > HEAD_LIMIT:
                self._refuse(431, f"The headers of the request are over {HEAD_LIMIT} bytes.")

    # What llhttp tells.

    def on_message_begin(self) -> None:
        self.deadline = self._listener.now + _HEAD_S if self._current is None else self.deadline
        self._request = Request(b"")
        self._head_done = False
        self._header_lines = self._header_bytes = 0
        self._body = []
        self._body_bytes = 0

    def on_url(self, target: bytes) -> None:
        assert self._request is not None
        self._request.target += target
        self._header_bytes += len(target)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer of a chunked body: nobody asked for it
        assert self._request is not None
        headers = self._request.headers
        name = name.lower()
        self._header_lines += 1
        self._header_bytes += len(name) + len(value)
        if self._header_lines > HEADERS_LIMIT or self._header_bytes > HEAD_LIMIT:
            raise self._refused(431, f"The headers are over {HEADERS_LIMIT} lines or {HEAD_LIMIT} bytes.")
        if name in headers:
            if name == b"host":
                raise self._refused(400, "The request has more than one Host header.")
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        request, parser = self._request, self._parser
        assert request is not None
        self._head_done = True
        self._head_bytes = 0
        self._body_until = self._listener.now + _BODY_S
        self._unframed = 0
        request.method = parser.get_method()
        request.version = parser.get_http_version()
        request.keep_alive = request.version == "1.1" and parser.should_keep_alive()
        self._set_path(request)
        headers = request.headers
        streamed = request.path.startswith(self._listener.streamed)
        if not streamed:
            length = headers.get(b"content-length")
            if length is not None and int(length) > self._listener.body_limit:
                raise self._refused(413, self._too_large())
        if request.version == "1.1" and b"host" not in headers:
            raise self._refused(400, "The request has no Host header.")
        expected = headers.get(b"expect")
        if expected is not None:
            if expected.lower() != b"100-continue":
                raise self._refused(417, "Only 'Expect: 100-continue' is understood.")
            if self._current is None and not self._waiting:
                self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if streamed:
            request.incoming = Incoming(self)
            self._waiting.append(request)

    def on_body(self, data: bytes) -> None:
        self._unframed = 0
        if self._request is not None and self._request.incoming is not None:
            self._request.incoming.data(data)
            return
        self._body_bytes += len(data)
        if self._body_bytes > self._listener.body_limit:
            raise self._refused(413, self._too_large())
        self._body.append(data)
        if self._body_bytes > _LARGE:
            self._hold()

    def on_message_complete(self) -> None:
        request, body = self._request, self._body
        assert request is not None
        self._request = None
        self._body = []
        self._head_done = False
        if request.incoming is not None:
            if request is self._current:
                self.deadline = _NEVER
            request.incoming.end()
            return
        request.body = body[0] if len(body) == 1 else b"".join(body)
        self._waiting.append(request)

    # What the application does.

    @property
    def date(self) -> bytes:
        """The Date header line of now."""
        return self._listener.date

    def hold(self, exchange: Exchange) -> None:
        """The answer to the current request comes later, from `exchange`."""
        self._exchange = exchange
        if self._slow:
            exchange.client_slow()

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """Send a whole answer. `headers` are complete lines without Content-Length, Date and Connection."""
        request = self._current
        if request is not None and request.incoming is not None and not request.incoming.complete:
            request.keep_alive = False  # answered before it was sent to its end
        closing = request is None or not request.keep_alive or self._listener.stopping
        head = b"%b%bcontent-length: %d\r\n%b%b\r\n" % (
            _STATUS[status],
            headers,
            len(body),
            self._listener.date,
            b"connection: close\r\n" if closing else b"",
        )
        if request is not None and request.method == b"HEAD":
            self._write(head)
        elif len(body) < _JOINED:
            self._write(head + body)
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.writelines((head, body))
        self.finish()

    def start_stream(self, status: int, headers: bytes) -> None:
        """Send the head of an answer whose pieces follow with `send_piece`, and whose end is `end_stream`."""
        request = self._current
        assert request is not None
        self._chunked = request.version == "1.1"
        if not self._chunked or self._listener.stopping:
            request.keep_alive = False  # in HTTP/1.0 the end of the connection is the end of the answer
        self._write(
            b"%b%b%b%b%b\r\n"
            % (
                _STATUS[status],
                headers,
                self._listener.date,
                b"transfer-encoding: chunked\r\n" if self._chunked else b"",
                b"" if request.keep_alive else b"connection: close\r\n",
            )
        )

    def start_sized(self, status: int, headers: bytes, length: int) -> None:
        """Send the head of an answer of `length` bytes, whose pieces follow with `send_piece`, and whose end is
        `end_stream`. A HEAD request gets no pieces."""
        request = self._current
        assert request is not None
        self._chunked = False
        if self._listener.stopping or not (request.incoming is None or request.incoming.complete):
            request.keep_alive = False
        self._write(
            b"%b%bcontent-length: %d\r\n%b%b\r\n"
            % (
                _STATUS[status],
                headers,
                length,
                self._listener.date,
                b"" if request.keep_alive else b"connection: close\r\n",
            )
        )

    def send_piece(self, data: bytes) -> None:
        """Send the next piece of the answer; `data` is not empty."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end_stream(self) -> None:
        """The answer is complete."""
        if self._chunked:
            self._write(_LAST_CHUNK)
        self.finish()

    def finish(self) -> None:
        """The current request is answered; the next one may begin."""
        request, self._current, self._exchange = self._current, None, None
        self._let_go(request)
        if request is not None and request.incoming is not None and not request.incoming.complete:
            request.keep_alive = False
            request.incoming.complete = True
            self._request = None
            self._discarding = True
            self.adjust_reading()
        if request is None or not request.keep_alive or self._listener.stopping:
            self._close()
            return
        self.deadline = self._listener.now + _IDLE_S
        if self._request is not None:  # its body had no time of its own so far
            self._body_until = self._listener.now + _BODY_S - self._body_bytes / _BODY_RATE
        if self._waiting:
            # Not at once: a client that sends thousands of requests in one packet takes turns with the others.
            asyncio.get_running_loop().call_soon(self._next)

    def abort(self) -> None:
        """Close without another byte."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def peer(self) -> str:
        """The address of the client, without its port; empty where there is none."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(name[0]) if isinstance(name, tuple | list) and name else ""

    # What the listener does.

    @property
    def idle(self) -> bool:
        return self._current is None and not self._waiting and self._request is None

    @property
    def unfinished(self) -> bool:
        """Whether nothing has come but a part of a request."""
        return self._current is None and not self._waiting and self._request is not None

    def close_when_idle(self) -> None:
        if self.idle:
            self._close()

    def shut_down(self) -> None:
        if self._exchange is not None:
            self._exchange.shut_down()
        self._close()

    def time_out(self) -> None:
        assert self._transport is not None
        unsent, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        if self._unsent and self._unsent != unsent:
            self.deadline = self._listener.now + _STALL_S  # slow, but it takes what it is sent
        elif self._request is not None and self._current in (None, self._request) and not self._discarding:
            incoming = self._request.incoming
            if incoming is not None and incoming.held:
                self.deadline = self._listener.now + _BODY_S  # it is not the client who lets us wait
            else:
                self._refuse(408, "The request did not come to its end in time.")
        else:
            self.abort()

    def _next(self) -> None:
        """Begin the next complete request, if none is being answered."""
        transport = self._transport
        if self._current is not None or not self._waiting or transport is None or transport.is_closing():
            self.adjust_reading()
            return
        request = self._current = self._waiting.popleft()
        self.deadline = self._listener.now + _BODY_S if request is self._request else _NEVER
        if self._reading_paused or self._waiting or request.incoming is not None:
            self.adjust_reading()
        try:
            self._listener.application.handle(self, request)
        except Exception:  # the edge of the server: one request's fault must not end the others  # noqa: BLE001
            _log.exception("a request for %r failed", request.path)
            if self._exchange is not None:
                self.abort()  # part of an answer may be out
                return
            request.keep_alive = False
            message = "The gateway failed on this request; its log says why."
            self._listener.application.refuse(self, 500, message, request.path)
        if self._waiting and self._current is not None:
            self._next()

    def adjust_reading(self) -> None:
        """Read on, or let the client wait: a client may send ahead within bounds, and what is read is kept until its
        turn."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        incoming = self._current.incoming if self._current is not None else None
        paused = bool(self._waiting) or (incoming is not None and incoming.full)
        if paused and not self._reading_paused:
            self._reading_paused = True
            transport.pause_reading()
        elif self._reading_paused and not paused:
            self._reading_paused = False
            transport.resume_reading()

    def _set_path(self, request: Request) -> None:
        target = request.target
        if not target.startswith(b"/") and target != b"*":
            # The absolute form, as proxies send it: its authority stands in for the Host header (RFC 9112, 3.2.2).
            try:
                url = httptools.parse_url(target)
            except httptools.HttpParserInvalidURLError:
                url = None
            if url is None or not url.host:
                raise self._refused(400, "The target of the request is neither a path nor a URL.")
            request.headers[b"host"] = url.host + (b":%d" % url.port if url.port else b"")
            target = url.path or b"/"
        request.path = target.partition(b"?")[0]

    def _hold(self) -> None:
        """Count the body that is coming among all that are kept."""
        request, listener = self._request, self._listener
        assert request is not None
        more = self._body_bytes - request.held
        request.held += more
        listener.held += more
        if listener.held > listener.held_limit:
            raise self._refused(503, "Too many large requests are being sent at once. Try again in a moment.")

    def _let_go(self, request: Request | None) -> None:
        if request is not None and request.held:
            self._listener.held -= request.held
            request.held = 0

    def _too_large(self) -> str:
        return (
            f"The body of the request is over {self._listener.body_limit} bytes. "
            "The setting gateway.max_body_bytes is the limit."
        )

    def _refused(self, status: int, message: str) -> Exception:
        self._refusal = (status, message)
        return _Refused(message)

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be read on from, once what came before it is answered."""
        self._discarding = True
        request, self._request = self._request, None
        self._body = []
        self._let_go(request)
        if self._current is not None or self._waiting:
            last = self._waiting[-1] if self._waiting else self._current
            assert last is not None
            last.keep_alive = False
            if request is not None and request.incoming is not None:
                self.deadline = _NEVER
                request.incoming.break_off(status, message)
            self._next()
            return
        path = (request.path or request.target.partition(b"?")[0]) if request is not None else b""
        self._listener.application.refuse(self, status, message, path)

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def _close(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._discarding and transport.can_write_eof():
            # The client may still be sending. Closing now would reset the connection and lose it the answer.
            self.deadline = self._listener.now + _LINGER_S
            transport.write_eof()
        else:
            transport.close()
