"""Requests of the V2 door under way: the Receiver of the answer, and the Exchange of the client's connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from pressroom.gateway import _sse
from pressroom.gateway import _v2_whole as _whole
from pressroom.gateway._entrance import id_of
from pressroom.gateway._saying import said
from pressroom.gateway.asking import Asked, Asker
from pressroom.gateway.problems import Problem, server_error
from pressroom.gateway.protocols import _v2_writing as writing
from pressroom.gateway.protocols._v2_answers import Answer, Embeddings, Stream, answer
from pressroom.gateway.protocols._v2_writing import Events

if TYPE_CHECKING:
    from pressroom.gateway._http_server import HttpConnection
    from pressroom.gateway.admission import Client
    from pressroom.gateway.protocols._v2_requests import Job
    from pressroom.gateway.routes import Route

JSON = b"content-type: application/json\r\n"
_STREAM = b"content-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"


def refuse(connection: HttpConnection, request_id: bytes, problem: Problem) -> None:
    """Answer with an error in this protocol's shape."""
    status = 400 if problem.status == 422 else problem.status  # its clients know 400
    connection.respond(status, problem.headers() + request_id, error(problem))


def error(problem: Problem) -> bytes:
    """The body of an error."""
    return orjson.dumps({"error": problem.message})


class _Exchange:
    """What both kinds do when the client does something."""

    __slots__ = ("_client", "_connection", "_id", "_job", "_slow", "asked")

    def __init__(self, connection: HttpConnection, request_id: bytes, client: Client, job: Job) -> None:
        self._connection = connection
        self._id = request_id
        self._client = client
        self._job = job
        self._slow = False
        self.asked: Asked | None = None

    def client_gone(self) -> None:
        if self.asked is not None:
            self.asked.cancel()

    def client_slow(self) -> None:
        self._slow = True
        if self.asked is not None:
            self.asked.pause()

    def client_ready(self) -> None:
        self._slow = False
        if self.asked is not None:
            self.asked.resume()

    def shut_down(self) -> None:
        if self.asked is not None:
            self.asked.cancel()
        self.failed(server_error(503, "The gateway is stopping."))

    def failed(self, problem: Problem) -> None:
        self.asked = None  # it knows this exchange: no circle is left for the collector
        refuse(self._connection, self._id, problem)


def _said(job: Job, route: Route | None) -> bytes:
    """The header lines that say who answered."""
    if route is None or route is job.face.route:
        return job.face.headers
    return said(route.digest, route.branch, route.cache)


class Whole(_Exchange):
    """One answer, or all the answers to several texts, sent when they are complete. Without `binary` it is an answer of
    `generate` in its own form."""

    __slots__ = ("_binary", "_whole")

    def __init__(
        self,
        connection: HttpConnection,
        request_id: bytes,
        client: Client,
        job: Job,
        binary: writing.Binary | None,
    ) -> None:
        super().__init__(connection, request_id, client, job)
        self._binary = binary
        self._whole: _whole.Whole | None = None

    def start(self, asker: Asker, door: str) -> None:
        """Ask. The answer may be out when this returns."""
        self._connection.hold(self)
        self._whole = whole = _whole.Whole(self._job, self._answered)
        self.asked = whole.ask(asker, door, self._client, id_of(self._id))

    def _answered(self, found: _whole.Found) -> None:
        whole, self._whole, self.asked = self._whole, None, None
        if isinstance(found, Problem):
            self.failed(found)
        else:
            self._send(found, whole.route if whole is not None else None)

    def _send(self, answers: list[Answer] | Embeddings, route: Route | None) -> None:
        job, connection = self._job, self._connection
        headers = _said(job, route) + self._id
        if self._binary is None:
            assert not isinstance(answers, Embeddings)
            connection.respond(200, JSON + headers, orjson.dumps(writing.generated(job, answers[0])))
            return
        body, follows = writing.rendered(job, answers, self._binary)
        if not follows:
            connection.respond(200, JSON + headers, body)
            return
        lines = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n" % len(body)
        connection.respond(200, lines + headers, b"".join((body, *follows)))


class Streamed(_Exchange):
    """An answer sent as it comes, an event a piece; the last one says `done`, why it ended, and what it took."""

    __slots__ = ("_begun", "_events", "_over", "_stream")

    def __init__(self, connection: HttpConnection, request_id: bytes, client: Client, job: Job, events: Events) -> None:
        super().__init__(connection, request_id, client, job)
        self._stream = Stream()
        self._events = events
        self._begun = False
        self._over = False

    def start(self, asker: Asker, door: str) -> None:
        """Ask. The answer may be out when this returns.

        Raises:
            Invalid: it cannot be streamed.
        """
        fields = self._job.streamed()
        self._connection.hold(self)
        self.asked = asker.ask(fields, self._job.endpoint, self, door=door, client=self._client, id=id_of(self._id))

    def whole(self, body: bytes, route: Route) -> None:
        """The engine answered in one piece after all."""
        found = answer(body)
        if isinstance(found, Problem):
            self.failed(found)
            return
        self.begin(route)
        self._finish(self._events.piece(found.text) + self._events.last(found._replace(text="")))

    def begin(self, route: Route) -> None:
        self._begun = True
        self._connection.start_stream(200, _said(self._job, route) + _STREAM + self._id)
        if self._slow and self.asked is not None:
            self.asked.pause()

    def data(self, data: bytes) -> None:
        if self._over:
            return
        stream = self._stream
        events = b"".join([self._events.piece(text) for text in stream.feed(data)])
        if events:
            self._connection.send_piece(events)
        if stream.error is not None:
            if self.asked is not None:
                self.asked.cancel()
            self.failed(stream.error)

    def end(self) -> None:
        if not self._over:
            self._finish(self._events.last(self._stream.last()))

    def failed(self, problem: Problem) -> None:
        if self._over:
            return
        if self._begun:
            self._finish(_sse.framed(error(problem)))
        else:
            self._over = True
            super().failed(problem)

    def _finish(self, events: bytes) -> None:
        self._over = True
        self.asked = None
        self._connection.send_piece(events)
        self._connection.end_stream()
