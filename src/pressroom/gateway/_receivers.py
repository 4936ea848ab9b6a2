"""Who takes an answer: a client's connection, and what lies between it and the engine where a shape must change."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway import _sse
from pressroom.gateway.asking import Asked, Receiver
from pressroom.gateway.problems import server_error

if TYPE_CHECKING:
    from pressroom.gateway._http_server import HttpConnection
    from pressroom.gateway.problems import Problem
    from pressroom.gateway.routes import Route


_HEADER_SAFE = re.compile(r"[\x21-\x7e]{1,128}")


@lru_cache(maxsize=1024)
def _headers(digest: str) -> tuple[bytes, bytes]:
    """The header lines of a whole answer and of a stream from the version with this digest."""
    version = b"pressroom-version: %b\r\n" % digest.encode() if _HEADER_SAFE.fullmatch(digest) else b""
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

    # What the answer does.

    def whole(self, body: bytes, route: Route) -> None:
        self._client.respond(200, _headers(route.digest)[0] + self._id, body)

    def begin(self, route: Route) -> None:
        self._streaming = True
        self._client.start_stream(200, _headers(route.digest)[1] + self._id)

    def data(self, data: bytes) -> None:
        self._client.send_piece(data)

    def end(self) -> None:
        self._client.end_stream()

    def failed(self, problem: Problem) -> None:
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
