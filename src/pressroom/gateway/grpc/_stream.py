"""ModelStreamInfer: requests in, and for each a response a piece of its answer, in one call.

Requests of a call run side by side; their responses carry their ids. A reader that does not keep up makes the engines
wait, and nothing but what they have sent already is held here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway._v2_whole import Found, Whole
from pressroom.gateway.asking import Asked, Asker
from pressroom.gateway.grpc import _reading as reading
from pressroom.gateway.grpc import _wire as wire
from pressroom.gateway.grpc._call import Call
from pressroom.gateway.grpc._calls import SMALL
from pressroom.gateway.grpc._heads import Code
from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols._v2_answers import Answer, Stream, answer
from pressroom.gateway.protocols._v2_models import Faces
from pressroom.gateway.protocols._v2_tensors import Invalid

if TYPE_CHECKING:
    from pressroom.gateway.protocols._v2_requests import Job
    from pressroom.gateway.routes import Route, RouteTable

_DOOR = "v2.grpc.stream"
# Requests of one call at once; the next one is read when one of them has ended.
_AT_ONCE = 64


class Session:
    """The handler of one call."""

    hurries = False

    def __init__(self, call: Call, asker: Asker, routes: RouteTable, faces: Faces) -> None:
        self._call = call
        self._asker = asker
        self._routes = routes
        self._faces = faces
        self._running: dict[object, Asked | None] = {}
        self._sizes: dict[object, int] = {}  # of the large requests that run
        self._no_more = False
        self._stopping = False
        self._slow = False

    # What the call says.

    def message(self, data: bytes) -> None:
        size = len(data) if len(data) > SMALL else 0
        if size:
            self._call.keep(size)  # it lives on in what is asked of the engine
            if self._call.over:
                return
        if not self._take(data, size):
            self._call.keep(-size)
        if len(self._running) >= _AT_ONCE:
            self._call.pause()

    def no_more(self) -> None:
        self._no_more = True
        self._end_if_done()

    def gone(self) -> None:
        running, self._running = self._running, {}
        for asked in running.values():
            if asked is not None:
                asked.cancel()

    def slow(self) -> None:
        self._slow = True
        self._call.pause()  # what asks for more answers waits, too
        for asked in list(self._running.values()):
            if asked is not None:
                asked.pause()

    def ready(self) -> None:
        self._slow = False
        for asked in list(self._running.values()):
            if asked is not None:
                asked.resume()
        self._go_on()

    # What the server says.

    def stop(self) -> None:
        """Take no more requests than have come; what runs may end."""
        self._stopping = True
        self._end_if_done()

    def _go_on(self) -> None:
        if not self._slow and len(self._running) < _AT_ONCE:
            self._call.resume()

    def _end_if_done(self) -> None:
        if self._running or self._call.has_message:
            return
        if self._no_more:
            self._call.end()
        elif self._stopping and self._call.has_part:
            self._call.end(Code.UNAVAILABLE, "The server is stopping.")
        elif self._stopping:
            self._call.end()

    def _take(self, data: bytes, size: int) -> bool:
        """Ask for what a message wants; whether that is asked."""
        id = ""
        try:
            request = reading.parsed(data)
            id = request.id[:1024]
            face = reading.face_of(
                self._faces, self._routes, request.model_name, request.model_version, self._call.client
            )
            job, raw = reading.read(request, face)
            whole = job.stream is False or job.embeds
            if whole:
                self._ask_whole(job, raw, size)
            else:
                self._ask_stream(job, raw, size)
        except Invalid as error:
            self.send(wire.refusal(error.message, id))
            return False
        return True

    def _ask_whole(self, job: Job, raw: bool, size: int) -> None:
        key = object()

        def done(found: Found) -> None:
            self.send(
                wire.refusal(found.message, job.id or "", face=job.face)
                if isinstance(found, Problem)
                else wire.last(job, found, raw=raw, route=whole.route)
            )
            self.ended(key)

        self._running[key], self._sizes[key] = None, size
        whole = Whole(job, done)
        asked = whole.ask(self._asker, _DOOR, self._call.client)
        self.began(key, asked)

    def _ask_stream(self, job: Job, raw: bool, size: int) -> None:
        fields = job.streamed()
        receiver = _Streamed(self, job, raw)
        self._running[receiver], self._sizes[receiver] = None, size
        asked = self._asker.ask(fields, job.endpoint, receiver, door=_DOOR, client=self._call.client)
        self.began(receiver, asked)

    # What the requests say.

    def began(self, key: object, asked: Asked) -> None:
        if key in self._running:
            self._running[key] = asked
            if self._slow:
                asked.pause()

    def running(self, key: object) -> Asked | None:
        return self._running.get(key)

    def ended(self, key: object) -> None:
        self._running.pop(key, None)
        self._call.keep(-self._sizes.pop(key, 0))
        self._go_on()
        self._end_if_done()

    def send(self, data: bytes) -> None:
        self._call.send(data)

    def hold(self, asked: Asked) -> None:
        """A stream begins: it waits where the others do."""
        if self._slow:
            asked.pause()


class _Streamed:
    """The Receiver of one streamed answer."""

    __slots__ = ("_job", "_over", "_raw", "_route", "_session", "_stream", "_wants_text")

    def __init__(self, session: Session, job: Job, raw: bool) -> None:
        self._session = session
        self._job = job
        self._raw = raw
        self._wants_text = "text_output" in job.names
        self._stream = Stream()
        self._over = False
        self._route: Route | None = None

    def whole(self, body: bytes, route: Route) -> None:
        """The engine answered in one piece after all."""
        self._route = route
        found = answer(body)
        if isinstance(found, Problem):
            self.failed(found)
            return
        if self._wants_text:
            self._session.send(wire.piece(self._job, found.text, raw=self._raw))
        self._finish(found._replace(text=""))

    def begin(self, route: Route) -> None:
        self._route = route
        asked = self._session.running(self)
        if asked is not None:
            self._session.hold(asked)

    def data(self, data: bytes) -> None:
        if self._over:
            return
        stream, session = self._stream, self._session
        for text in stream.feed(data):
            if self._wants_text:
                session.send(wire.piece(self._job, text, raw=self._raw))
        if stream.error is not None:
            asked = session.running(self)
            if asked is not None:
                asked.cancel()
            self.failed(stream.error)

    def end(self) -> None:
        if not self._over:
            self._finish(self._stream.last())

    def failed(self, problem: Problem) -> None:
        if not self._over:
            self._over = True
            self._session.send(wire.refusal(problem.message, self._job.id or "", face=self._job.face))
            self._session.ended(self)

    def _finish(self, last: Answer) -> None:
        data = wire.last(self._job, [last], raw=self._raw, route=self._route)
        self._over = True
        self._session.send(data)
        self._session.ended(self)
