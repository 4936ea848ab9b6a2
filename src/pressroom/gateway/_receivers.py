"""Who takes an answer: a client's connection, and what lies between it and the engine where a shape must change."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway import _sse
from pressroom.gateway._saying import said
from pressroom.gateway.asking import Asked, InOnePiece, Receiver
from pressroom.gateway.problems import server_error

if TYPE_CHECKING:
    from pressroom.gateway._generation import House
    from pressroom.gateway._grant import Grant
    from pressroom.gateway._http_server import HttpConnection
    from pressroom.gateway.cache._recording import Recording
    from pressroom.gateway.problems import Problem
    from pressroom.gateway.routes import Route


_CLIENT_GONE = 499
# Of an answer whose text is kept.
_CONTENT_LIMIT = 1 << 20


@lru_cache(maxsize=1024)
def _headers(digest: str, branch: str, cache: str) -> tuple[bytes, bytes]:
    """The header lines of a whole answer and of a stream from the version with this digest: which of several routes
    answered, and whether the answer was kept from before."""
    version = said(digest, branch, cache)
    stream = b"content-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
    return version + b"content-type: application/json\r\n", version + stream


class HttpReceiver:
    """Writes an answer to its client as it comes: the Receiver of the answer, and the Exchange of the connection."""

    __slots__ = ("_asked", "_client", "_id", "_slow", "_streaming")

    def __init__(self, client: HttpConnection, request_id: bytes) -> None:
        self._client = client
        self._id = request_id
        self._streaming = False
        self._slow = False
        self._asked: Asked | None = None

    def asked(self, asked: Asked) -> None:
        """What was asked for this answer."""
        self._asked = asked
        if self._slow:
            asked.pause()

    # What the answer does. At its end it lets go of what was asked, which knows it: no circle is left whose memory only
    # the collector finds.

    def whole(self, body: bytes, route: Route) -> None:
        self._asked = None
        self._client.respond(200, _headers(route.digest, route.branch, route.cache)[0] + self._id, body)

    def begin(self, route: Route) -> None:
        self._streaming = True
        self._client.start_stream(200, _headers(route.digest, route.branch, route.cache)[1] + self._id)

    def data(self, data: bytes) -> None:
        self._client.send_piece(data)

    def end(self) -> None:
        self._asked = None
        self._client.end_stream()

    def failed(self, problem: Problem) -> None:
        self._asked = None
        if self._streaming:
            self._client.send_piece(problem.event())
            self._client.end_stream()
        else:
            self._client.respond(problem.status, problem.headers() + self._id, problem.body())

    # What the client does.

    def client_gone(self) -> None:
        if self._asked is not None:
            self._asked.cancel()

    def client_slow(self) -> None:
        self._slow = True
        if self._asked is not None:
            self._asked.pause()

    def client_ready(self) -> None:
        self._slow = False
        if self._asked is not None:
            self._asked.resume()

    def shut_down(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
        self.failed(server_error(502, "The engine failed: the gateway is stopping.", code="engine_error"))


class Vector(InOnePiece):
    """Takes the one vector of a request for an embedding; `then` gets it, or None."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[list[float] | None], None]) -> None:
        self._then = then

    def whole(self, body: bytes, route: Route) -> None:
        try:
            vector = orjson.loads(body)["data"][0]["embedding"]
        except (ValueError, LookupError, TypeError):
            vector = None
        self._then(vector if isinstance(vector, list) else None)

    def failed(self, problem: Problem) -> None:
        self._then(None)


class Guard(Asked):
    """Between a client and what works for it: says of a request with several parts when the client has its end."""

    __slots__ = ("_asked", "_first", "_grant", "_house", "_kept", "_over", "_receiver", "_recording", "_size")

    def __init__(
        self,
        house: House,
        receiver: Receiver,
        grant: Grant,
        recording: Recording | None = None,
        *,
        content: bool = False,
    ) -> None:
        self._house = house
        self._first = 0.0
        self._kept: list[bytes] | None = [] if content else None
        self._size = 0
        self._receiver = receiver
        self._grant = grant
        self._recording = recording
        self._asked: Asked | None = None
        self._over = False
        grant.guarded = True

    def asked(self, asked: Asked) -> Guard:
        """What was asked for it."""
        if not self._over:
            self._asked = asked
        return self

    def whole(self, body: bytes, route: Route) -> None:
        if self._kept is not None:
            self._keep(body)
        self._end(200)
        self._receiver.whole(body, route)

    def begin(self, route: Route) -> None:
        self._first = perf_counter()
        self._receiver.begin(route)

    def data(self, data: bytes) -> None:
        if self._kept is not None:
            self._keep(data)
        self._receiver.data(data)

    def end(self) -> None:
        self._end(200)
        if self._recording is not None:
            self._recording.usage = self._grant.usage()
        self._receiver.end()

    def failed(self, problem: Problem) -> None:
        self._end(problem.status)
        self._receiver.failed(problem)

    def cancel(self) -> None:
        if not self._over:
            asked = self._asked
            self._end(_CLIENT_GONE)
            if asked is not None:
                asked.cancel()

    def pause(self) -> None:
        if self._asked is not None:
            self._asked.pause()

    def resume(self) -> None:
        if self._asked is not None:
            self._asked.resume()

    def _keep(self, data: bytes) -> None:
        """Keep it for the ledger, as much as that looks at."""
        assert self._kept is not None
        if self._size < _CONTENT_LIMIT:
            self._kept.append(data)
            self._size += len(data)

    def _end(self, status: int) -> None:
        if not self._over:
            self._house.told(self._grant.row, status, self._grant.began, self._first)
        self._over = True
        self._asked = None
        if self._kept:
            self._grant.row.answer = b"".join(self._kept)
            self._kept = None
        self._grant.end(status)


class Reshaping:
    """Passes an answer on with some of its JSON changed. `reshape` gets the whole answer or one event, and returns what
    goes out in its place: usually one value. Events without any of `marks` are not even parsed."""

    __slots__ = ("_events", "_marks", "_receiver", "_reshape")

    def __init__(
        self, receiver: Receiver, reshape: Callable[[dict[str, Any]], list[dict[str, Any]]], *marks: bytes
    ) -> None:
        self._receiver = receiver
        self._reshape = reshape
        self._marks = marks
        self._events = _sse.Events()

    def whole(self, body: bytes, route: Route) -> None:
        if any(mark in body for mark in self._marks):
            changed = self._reshape(orjson.loads(body))
            if len(changed) == 1:  # what takes an event apart has nothing to do on a whole answer
                body = orjson.dumps(changed[0])
        self._receiver.whole(body, route)

    def begin(self, route: Route) -> None:
        self._receiver.begin(route)

    def data(self, data: bytes) -> None:
        out = []
        for found in self._events.feed(data):
            if found != _sse.DONE and any(mark in found for mark in self._marks):
                out += [_sse.event(value) for value in self._reshape(orjson.loads(found))]
            else:
                out.append(_sse.framed(found))
        if out:
            self._receiver.data(b"".join(out))

    def end(self) -> None:
        self._receiver.end()

    def failed(self, problem: Problem) -> None:
        self._receiver.failed(problem)


_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


def with_usage(body: bytes) -> bytes:
    """The JSON object of a request for a stream, with the wish for its usage; `stream_options` is not in it yet."""
    return body.rstrip()[:-1] + b',"stream_options":{"include_usage":true}}'


# The event with the usage is much shorter.
_USAGE_LIMIT = 16_384


class WithoutUsage:
    """Passes a stream on without the event of its usage, which the gateway asked for and the client did not."""

    __slots__ = ("_held", "_receiver")

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._held = b""

    def whole(self, body: bytes, route: Route) -> None:
        self._receiver.whole(body, route)

    def begin(self, route: Route) -> None:
        self._receiver.begin(route)

    def data(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        if not data.endswith(b"\n\n"):
            # An event that has not come whole may be the one; a long one is not.
            end = data.rfind(b"\n\n") + 2
            begun = data[end:] if end > 1 else data
            if len(begun) < _USAGE_LIMIT:
                self._held = begun
                data = data[: len(data) - len(begun)]
        if _NO_CHOICES.search(data) is not None:
            data = b"".join(frame for frame in _frames(data) if not _is_usage(frame))
        if data:
            self._receiver.data(data)

    def end(self) -> None:
        self._rest()
        self._receiver.end()

    def failed(self, problem: Problem) -> None:
        self._rest()
        self._receiver.failed(problem)

    def _rest(self) -> None:
        if self._held:
            self._receiver.data(self._held)
            self._held = b""


def _frames(data: bytes) -> list[bytes]:
    """The events, each with the empty line that ends it; the last may have none."""
    parts = data.split(b"\n\n")
    return [part + b"\n\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _is_usage(frame: bytes) -> bool:
    if _NO_CHOICES.search(frame) is None:
        return False
    try:
        record = orjson.loads(frame.partition(b"data:")[2])
    except ValueError:
        return False
    return isinstance(record, dict) and not record.get("choices") and bool(record.get("usage"))


def usage_apart(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The usage of a stream in an event of its own with no choices, as OpenAI sends it."""
    usage = record.get("usage")
    if not usage or not record.get("choices"):
        return [record]
    # llama.cpp puts it beside the last choice of a text completion.
    last = {**record, "choices": [], "usage": usage}
    return [{key: value for key, value in record.items() if key not in ("usage", "timings")}, last]


def completion_logprobs(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Log probabilities of a text completion in that endpoint's own form, where they come in the one of chats."""
    for choice in record.get("choices") or ():
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict) and "content" in logprobs:
            choice["logprobs"] = _as_lists(logprobs["content"] or [])
    return [record]


def _as_lists(content: list[dict[str, Any]]) -> dict[str, Any]:
    offsets, at = [], 0
    for token in content:
        offsets.append(at)
        at += len(token["token"])
    return {
        "tokens": [token["token"] for token in content],
        "token_logprobs": [token["logprob"] for token in content],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in token.get("top_logprobs") or ()} for token in content
        ],
        "text_offset": offsets,
    }
