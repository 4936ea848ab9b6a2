"""One request's way through the gateway: to the engine, and its answer back. A state machine of callbacks."""

from __future__ import annotations

import re
from time import perf_counter
from typing import TYPE_CHECKING

from pressroom.gateway._usage import token_counts
from pressroom.gateway.problems import Problem, server_error
from pressroom.gateway.protocols._engine_errors import translated
from pressroom.gateway.protocols.openai import CHAT, COMPLETION, Endpoint
from pressroom.gateway.upstream import Call, Failure, Upstream

if TYPE_CHECKING:
    from pressroom.gateway._http_server import HttpConnection
    from pressroom.gateway._response import Head
    from pressroom.gateway.metrics import Series
    from pressroom.gateway.routes import Lane, Route

# An answer that is not streamed is kept until it is whole, so that an engine that dies within it is still an error.
_ANSWER_LIMIT = 64 * 2**20
# The end of a stream that is kept for its figures: the last frame with `usage` and `timings` is under 2 kB.
_TAIL = 8_192
_TAIL_LIMIT = 65_536
_DONE = b"data: [DONE]"
_HEADER_SAFE = re.compile(r"[\x21-\x7e]{1,128}")
_CLIENT_GONE = 499
_DELTA = b'"delta":{'


class Prepared:
    """What is the same for every request on a route: made once."""

    __slots__ = ("address", "request_heads", "response_headers", "series", "stream_headers")

    def __init__(self, route: Route, series: Series) -> None:
        self.address = (route.host, route.port)
        self.series = series
        self.request_heads = {
            endpoint.path: (
                f"POST {endpoint.path.decode()} HTTP/1.1\r\nHost: {route.host}:{route.port}\r\n"
                "Content-Type: application/json\r\nContent-Length: "
            ).encode()
            for endpoint in (CHAT, COMPLETION)
        }
        version = b""
        if _HEADER_SAFE.fullmatch(route.digest):
            version = b"pressroom-version: %b\r\n" % route.digest.encode()
        self.response_headers = version + b"content-type: application/json\r\n"
        self.stream_headers = (
            version + b"content-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
        )


class Completion(Call):
    """A request that passed every check. `start` sends it; it ends by itself, exactly once."""

    __slots__ = (
        "_began",
        "_body",
        "_client",
        "_endpoint",
        "_first",
        "_head",
        "_id",
        "_lane",
        "_pieces",
        "_prepared",
        "_size",
        "_stream",
        "_streaming",
        "_upstream",
    )

    def __init__(
        self,
        client: HttpConnection,
        upstream: Upstream,
        lane: Lane,
        endpoint: Endpoint,
        *,
        body: bytes,
        stream: bool,
        request_id: bytes,
        began: float,
    ) -> None:
        super().__init__()
        self._client = client
        self._upstream = upstream
        self._lane = lane
        self._prepared: Prepared = lane.prepared
        self._endpoint = endpoint
        self._body = body
        self._stream = stream
        self._id = request_id
        self._began = began
        self._first = 0.0
        self._head: Head | None = None
        self._streaming = False
        self._pieces: list[bytes] = []
        self._size = 0

    def start(self) -> None:
        """Send it to the engine. The lane has been entered already."""
        prepared, body = self._prepared, self._body
        prepared.series.in_flight += 1
        self._client.hold(self)
        head = prepared.request_heads[self._endpoint.path] + b"%d\r\n\r\n" % len(body)
        self._upstream.send(prepared.address, head, body, self)

    # What the engine says.

    def on_head(self, head: Head) -> None:
        self._head = head
        if self._stream and head.status == 200 and head.content_type.startswith(b"text/event-stream"):
            self._streaming = True
            self._client.start_stream(200, self._prepared.stream_headers + self._id)

    def on_data(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._streaming:
            if not self._first:
                self._first = perf_counter()
                if self._endpoint is CHAT:
                    data = with_role(data)
            self._client.send_piece(data)
            if self._size > _TAIL_LIMIT:
                self._pieces = [self._tail()]
                self._size = len(self._pieces[0])
        elif self._size > _ANSWER_LIMIT:
            self._upstream.cancel(self)
            self.on_failed(Failure.MALFORMED, f"its answer is over {_ANSWER_LIMIT} bytes")

    def on_end(self) -> None:
        head = self._head
        assert head is not None
        if self._streaming:
            tail = self._tail()
            if not tail.rstrip().endswith(_DONE) and b'"error":' not in tail:
                self.on_failed(Failure.CUT, "its stream ended before it was complete")
                return
            self._leave(200, tail)
            self._client.end_stream()
            return
        answer = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if head.status == 200:
            self._leave(200, answer)
            self._client.respond(200, self._prepared.response_headers + self._id, answer)
        else:
            self._refuse(translated(head.status, answer, param=self._endpoint.conversation))

    def on_failed(self, failure: Failure, detail: str) -> None:
        problem = _problem(failure, detail)
        if not self._streaming:
            self._refuse(problem)
            return
        tail = self._tail()
        self._leave(502, tail)
        # The engine may have died within a frame: end it, so that the error is a frame of its own.
        lead = b"" if not tail or tail.endswith(b"\n\n") else b"\n\n"
        self._client.send_piece(lead + problem.event())
        self._client.end_stream()

    # What the client does.

    def client_gone(self) -> None:
        self._upstream.cancel(self)
        self._prepared.series.disconnects += 1
        self._leave(_CLIENT_GONE, self._tail())

    def client_slow(self) -> None:
        if self.connection is not None:
            self.connection.pause()

    def client_ready(self) -> None:
        if self.connection is not None:
            self.connection.resume()

    def shut_down(self) -> None:
        self._upstream.cancel(self)
        self.on_failed(Failure.CUT, "the gateway is stopping")

    def _tail(self) -> bytes:
        return b"".join(self._pieces)[-_TAIL:]

    def _refuse(self, problem: Problem) -> None:
        self._leave(problem.status, b"")
        self._client.respond(problem.status, problem.headers() + self._id, problem.body())

    def _leave(self, status: int, answer: bytes) -> None:
        """Write the figures down and give the place back."""
        series, endpoint = self._prepared.series, self._endpoint.name
        self._lane.load.running -= 1
        series.in_flight -= 1
        series.count(endpoint, status)
        series.took(endpoint, perf_counter() - self._began)
        if self._first:
            series.first_tokens.observe(self._first - self._began)
        if self.retried:
            series.retries += 1
        if answer:
            prompt, generated = token_counts(answer)
            series.prompt_tokens += prompt
            series.generation_tokens += generated


def _problem(failure: Failure, detail: str) -> Problem:
    if failure is Failure.UNREACHABLE:
        return server_error(503, f"The engine cannot be reached: {detail}.", code="engine_unavailable", retry_after_s=1)
    if failure is Failure.SILENT:
        return server_error(504, f"The engine was too slow: {detail}.", code="engine_timeout")
    return server_error(502, f"The engine failed: {detail}.", code="engine_error")


def with_role(data: bytes) -> bytes:
    """The beginning of a chat stream with a role in its first delta, as the protocol has it.

    llama.cpp leaves the role out where the first token is only part of a character (an emoji, most of Chinese).
    """
    frame = data[: data.find(b"\n\n")]
    place = frame.find(_DELTA)
    if place < 0 or b'"role"' in frame:
        return data
    place += len(_DELTA)
    comma = b"" if data[place : place + 1] == b"}" else b","
    return data[:place] + b'"role":"assistant"' + comma + data[place:]
