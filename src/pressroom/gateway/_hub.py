"""The hub's door: carries its requests to worker threads and its answers back, without a thread for a slow client.

A thread is taken to look at a request, to take one block of a body, to read one piece of an answer: work that ends by
itself. While a client is waited for, there is nothing but this object. Long work (a commit, hashing a file that nobody
has hashed yet) has threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import orjson

from pressroom.gateway._origin import is_loopback
from pressroom.kernel import PressroomError
from pressroom.registry.hub.base import Answer, HubRequest, HubService, Later, Sink

if TYPE_CHECKING:
    from pressroom.gateway._http_request import Request
    from pressroom.gateway._http_server import HttpConnection
    from pressroom.gateway.metrics import HubSeries

_log = logging.getLogger(__name__)

#: Bodies of requests under it are taken as they come, however long they are.
STREAMED = (b"/api/",)
# Addresses of models and commits, as somebody opens them in a browser; none that begins like the gateway's own paths.
_PAGE = re.compile(
    rb"/(?!(?:v\d+|health\w*|livez|readyz|metrics|openai|favicon\.ico)(?:/|$))[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?"
    rb"(?:/(?:commit|tree)/[\w.-]+)?"
)
_PLACES = (b"/resolve/", b"/raw/", b".git/info/lfs/")

_QUICK_THREADS = 8
_SLOW_THREADS = 8
# Requests at once; each costs at most what it has read ahead.
_MOST_REQUESTS = 1_024
# Of an answer: large enough that the way to a thread and back does not count, small enough for many slow clients.
_PIECE = 512 << 10
# Of a body: what is gathered before a thread takes it, and what may gather while one does.
_BLOCK = 1 << 20
_AHEAD = 4 << 20
_RETRY_S = 2

T = TypeVar("T")


class HubDoor:
    """Mounts a hub. Belongs to one event loop."""

    def __init__(self, service: HubService, series: HubSeries) -> None:
        self.service = service
        self.series = series
        self.local = True
        self.running: set[HubExchange] = set()
        series.running = lambda: len(self.running)
        self.quick = ThreadPoolExecutor(_QUICK_THREADS, thread_name_prefix="hub")
        self.slow = ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="hub-long")

    @staticmethod
    def takes(method: bytes, path: bytes) -> bool:
        """Whether a request is the hub's."""
        if path.startswith(STREAMED) or any(place in path for place in _PLACES):
            return True
        return method in (b"GET", b"HEAD") and _PAGE.fullmatch(path) is not None

    def bound_to(self, host: str) -> None:
        self.local = is_loopback(host)

    def handle(self, connection: HttpConnection, request: Request, request_id: bytes) -> None:
        """Answer a request."""
        if len(self.running) >= _MOST_REQUESTS:
            self.series.finished(request.method, 503)
            connection.respond(
                503,
                b"content-type: application/json\r\nretry-after: %d\r\n" % _RETRY_S + request_id,
                b'{"error":"The hub has as many requests as it can take; try again in a moment."}',
            )
            return
        exchange = HubExchange(self, connection, request, request_id)
        self.running.add(exchange)
        exchange.start()

    def close(self) -> None:
        """Let no work begin any more; what runs ends by itself, and what is held is let go of."""
        self.quick.shutdown(wait=False)
        self.slow.shutdown(wait=False, cancel_futures=True)
        self.service.close()


class HubExchange:
    """One request of the hub: an Exchange, and the taker of its body."""

    def __init__(self, door: HubDoor, connection: HttpConnection, request: Request, request_id: bytes) -> None:
        self._door = door
        self._connection = connection
        self._request = request
        self._id = request_id
        self._loop = asyncio.get_running_loop()
        self._began = perf_counter()
        self._sink: Sink | None = None
        self._answer: Answer | None = None
        self._busy = False  # a thread works for this request
        self._over = False  # nothing can be sent any more, or everything was
        self._slow = False
        self._body = bytearray()
        self._body_ended = False
        self._broken: tuple[int, str] | None = None
        self._left = 0  # bytes of the stream still to be sent
        self._sent = 0
        self._received = 0

    def start(self) -> None:
        self._connection.hold(self)
        seen = self._seen()
        self._work(lambda: self._door.service.begin(seen), self._begun)

    # What the client does.

    def client_gone(self) -> None:
        self._leave(499)

    def client_slow(self) -> None:
        self._slow = True

    def client_ready(self) -> None:
        self._slow = False
        self._send_more()

    def shut_down(self) -> None:
        if self._answer is None:
            self._answered(_error(503, "the gateway is stopping"))
        else:
            self._leave(499)
            self._connection.abort()

    # What comes of the body.

    def body_data(self, data: bytes) -> None:
        if self._over:
            return
        self._body += data
        self._received += len(data)
        incoming = self._request.incoming
        if incoming is not None and not incoming.held and len(self._body) > _AHEAD:
            incoming.hold(True)
        if len(self._body) >= _BLOCK:
            self._take()

    def body_end(self) -> None:
        self._body_ended = True
        self._take()

    def body_broken(self, status: int, message: str) -> None:
        self._broken = (status, message)
        self._take()

    # What the threads bring.

    def _begun(self, found: Answer | Sink | Later) -> None:
        if isinstance(found, Later):
            if not self._over:
                self._work(found.make, self._answered, slow=True)
            return
        if isinstance(found, Answer):
            self._answered(found)
            return
        self._sink = found
        if self._over:
            self._abort_sink()
            return
        incoming = self._request.incoming
        if incoming is not None:
            incoming.take(self)
        else:
            self._body += self._request.body
            self.body_end()

    def _take(self) -> None:
        """Hand the next block of the body to the sink, or its end."""
        if self._busy or self._over or self._sink is None:
            return
        sink = self._sink
        if self._broken is not None:
            self._abort_sink()
            self._answered(_error(*self._broken))
        elif len(self._body) >= _BLOCK or (self._body_ended and self._body):
            data, self._body = bytes(self._body), bytearray()
            incoming = self._request.incoming
            if incoming is not None and incoming.held:
                incoming.hold(False)
            self._work(lambda: sink.write(data), lambda _: self._take())
        elif self._body_ended:
            self._work(sink.finish, self._finished, slow=sink.slow)

    def _finished(self, answer: Answer) -> None:
        self._sink = None
        self._answered(answer)

    def _answered(self, answer: Answer) -> None:
        if self._over:
            _close(answer)
            return
        self._answer = answer
        headers = _lines(answer) + self._id
        silent = self._request.method == b"HEAD" or answer.status == 304
        if answer.stream is None and answer.length is None:
            self._sent = 0 if silent else len(answer.body)
            self._leave(answer.status)
            self._connection.respond(answer.status, headers, answer.body)
            return
        length = answer.length or 0
        self._connection.start_sized(answer.status, headers, length)
        if silent or answer.stream is None or not length:
            self._leave(answer.status)
            self._connection.end_stream()
            return
        self._left = length
        self._send_more()

    def _send_more(self) -> None:
        answer = self._answer
        if self._busy or self._over or self._slow or answer is None or answer.stream is None:
            return
        stream, size = answer.stream, min(self._left, _PIECE)
        self._work(lambda: stream.read(size), self._read)

    def _read(self, data: bytes) -> None:
        if self._over:
            return
        assert self._answer is not None
        if not data or len(data) > self._left:
            _log.error("%r ended %d bytes before its length", self._request.path, self._left)
            self._leave(500)
            self._connection.abort()  # the only way to tell a client that this is not the whole file
            return
        self._left -= len(data)
        self._sent += len(data)
        self._connection.send_piece(data)
        if self._left:
            self._send_more()
        else:
            self._leave(self._answer.status)
            self._connection.end_stream()

    # The threads.

    def _work(self, call: Callable[[], T], then: Callable[[T], None], *, slow: bool = False) -> None:
        """Call it in a thread, then go on with what it gave, back on the loop."""
        self._busy = True
        executor: Executor = self._door.slow if slow else self._door.quick
        try:
            future = executor.submit(call)
        except RuntimeError:  # the door is closed
            self._busy = False
            self._leave(503)
            self._connection.abort()
            return

        def done() -> None:
            self._busy = False
            if future.cancelled():
                self._leave(503)
                self._connection.abort()
                return
            error = future.exception()
            if error is None:
                then(future.result())
            else:
                self._failed(error)
            if self._over:
                self._let_go()

        future.add_done_callback(lambda _: _on_loop(self._loop, done))

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, PressroomError):
            answer = self._door.service.refusal(error)
        else:
            # The edge of the server: one request's fault must not end the others.
            _log.error("a request for %r failed", self._request.path, exc_info=error)
            answer = _error(500, "The hub failed on this request; the gateway's log says why.")
        if self._answer is not None:  # part of it may be out
            self._leave(500)
            self._connection.abort()
            return
        self._abort_sink()
        self._answered(answer)

    def _leave(self, status: int) -> None:
        """It is over: write the figures down, and let go of everything no thread uses at this moment."""
        if self._over:
            return
        self._over = True
        self._door.running.discard(self)
        self._door.series.finished(self._request.method, status, self._received, self._sent)
        if not self._busy:
            self._let_go()

    def _let_go(self) -> None:
        self._body = bytearray()
        self._abort_sink()
        answer, self._answer = self._answer, None
        if answer is not None and answer.stream is not None:
            self._door_call(answer.stream.close)

    def _abort_sink(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            self._door_call(sink.abort)

    def _door_call(self, call: Callable[[], None]) -> None:
        """In a thread, with nobody waiting for it."""
        try:
            future = self._door.quick.submit(call)
        except RuntimeError:
            threading.Thread(target=call, name="hub-last", daemon=True).start()
            return
        future.add_done_callback(_log_failure)

    def _seen(self) -> HubRequest:
        request = self._request
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.items()}
        scheme = "https" if headers.get("x-forwarded-proto", "").lower() == "https" else "http"
        target = request.target.partition(b"?")
        return HubRequest(
            method=request.method.decode("latin-1"),
            path=request.path.decode("latin-1"),
            query=target[2].partition(b"#")[0].decode("latin-1"),
            headers=headers,
            origin=f"{scheme}://{headers.get('host', '')}",
            local=self._door.local,
            peer=self._connection.peer,
        )


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: the server is gone, and its connections with it
        loop.call_soon_threadsafe(call)


def _log_failure(future: Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _log.error("the hub could not let go of something", exc_info=error)


def _close(answer: Answer) -> None:
    if answer.stream is not None:
        answer.stream.close()


def _lines(answer: Answer) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items()).encode("latin-1")


def _error(status: int, message: str) -> Answer:
    headers = {"content-type": "application/json", "x-error-message": message}
    return Answer(status=status, headers=headers, body=orjson.dumps({"error": message}))
