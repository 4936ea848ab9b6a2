"""The paths of this server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import orjson

from pressroom.engines._transformers.answer import Answer, Piece
from pressroom.engines._transformers.asked import Asked, Served, read
from pressroom.engines._transformers.embedding import Encoder, EncoderThread, Job
from pressroom.engines._transformers.refusal import Refusal, failed, unsupported
from pressroom.engines._transformers.replies import Request
from pressroom.engines._transformers.scheduler import Scheduler
from pressroom.engines._transformers.server import Connection

_log = logging.getLogger(__name__)

_POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize")
_GETS = ("/health", "/v1/models")
# Bytes of requests that have come and are not read yet.
_MOST_UNREAD = 256 << 20


class Reader:
    """Reads requests in a thread: a long prompt takes seconds to become tokens, and others must be heard meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="read")
        self._unread = 0

    def read(
        self, body: bytes, understand: Callable[[Any], Any], connection: Connection, then: Callable[[Any], None]
    ) -> None:
        """Understand the body and go on with `then`, or refuse it. Called and continued on the server's thread."""
        if self._unread + len(body) > _MOST_UNREAD:
            message = "Too many requests wait to be read by this engine."
            connection.refuse(Refusal(message, status=503, type="server_error", kind="engine_full"))
            return
        waiting = _Unread()
        connection.expect(waiting)
        self._unread += len(body)
        loop = asyncio.get_running_loop()

        def understood(future: Future[Any]) -> None:
            loop.call_soon_threadsafe(finish, future)

        def finish(future: Future[Any]) -> None:
            self._unread -= len(body)
            if waiting.gone:
                return
            error = future.exception()
            if error is None:
                then(future.result())
                if waiting.was_cut:
                    connection.cut()  # only now it is known how to say so
            elif isinstance(error, Refusal):
                connection.refuse(error)
            elif isinstance(error, RecursionError):
                connection.refuse(Refusal("The request is nested too deeply."))
            else:
                _log.error("a request could not be read", exc_info=error)
                connection.refuse(failed("the engine could not read the request"))

        self._pool.submit(lambda: None if waiting.gone else understand(_parsed(body))).add_done_callback(understood)


class _Unread:
    """A request that is not understood yet."""

    gone = False
    was_cut = False

    def left(self) -> None:
        self.gone = True

    def cut(self) -> None:
        self.was_cut = True

    def writable(self) -> None:
        pass


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(
            f"We could not parse the JSON body of your request: {error if body else 'it is empty'}."
        ) from error


class Routes:
    """What every model answers; `posts` are the endpoints of this one."""

    def __init__(self, name: str, counts: Callable[[], dict[str, int]]) -> None:
        self._name = name
        self._counts = counts
        self.posts: dict[str, Callable[[bytes, Connection], None]] = {}

    def handle(self, method: str, path: str, body: bytes, connection: Connection) -> None:
        """As `server.Handler`."""
        if path in _GETS:
            if method != "GET":
                connection.refuse(Refusal(f"{path} is asked with GET.", status=405))
            elif path == "/health":
                connection.answer(200, {"status": "ok", **self._counts()})
            else:
                model = {"id": self._name, "object": "model", "created": 0, "owned_by": "pressroom"}
                connection.answer(200, {"object": "list", "data": [model]})
        elif path in _POSTS:
            if method != "POST":
                connection.refuse(Refusal(f"{path} is asked with POST.", status=405))
            elif path not in self.posts:
                connection.refuse(unsupported("model", f"this model does not answer {path}."))
            else:
                self.posts[path](body, connection)
        else:
            connection.refuse(Refusal(f"There is nothing at {path[:200]}.", status=404))


class TextRoutes(Routes):
    """Chat and text completions of a causal model."""

    def __init__(self, served: Served, make_scheduler: Callable[[Any], Scheduler]) -> None:
        self._served = served
        self._scheduler = make_scheduler(self._tell)
        super().__init__(served.name, lambda: self._scheduler.counts)
        self._reader = Reader()
        self._loop = asyncio.get_running_loop()
        self._requests: dict[Answer, Request] = {}
        self.posts["/tokenize"] = self._count
        self.posts["/v1/completions"] = lambda body, connection: self._ask(body, connection, chat=False)
        if served.template is not None:
            self.posts["/v1/chat/completions"] = lambda body, connection: self._ask(body, connection, chat=True)
        self._scheduler.start()

    def _ask(self, body: bytes, connection: Connection, *, chat: bool) -> None:
        def understand(fields: Any) -> Request:
            asked: Asked = read(fields, self._served, chat=chat)
            # Grammars are compiled here, for each answer: off the server's thread too.
            return Request(asked, self._served, self._scheduler, connection)

        self._reader.read(body, understand, connection, lambda request: self._begin(request, connection))

    def _count(self, body: bytes, connection: Connection) -> None:
        """How many tokens the prompt of a request has, as vLLM's server says it."""

        def understand(fields: Any) -> int:
            chat = type(fields) is dict and "messages" in fields
            return sum(len(prompt) for prompt in read(fields, self._served, chat=chat).prompts)

        self._reader.read(body, understand, connection, lambda count: connection.answer(200, {"count": count}))

    def _begin(self, request: Request, connection: Connection) -> None:
        connection.expect(request)
        request.forget = lambda: self._forget(request)
        self._requests.update(dict.fromkeys(request.answers, request))
        if not self._scheduler.submit(request.answers):
            self._forget(request)
            connection.refuse(
                Refusal("Too many requests wait for this engine.", status=503, type="server_error", kind="engine_full")
            )

    def _forget(self, request: Request) -> None:
        for answer in request.answers:
            self._requests.pop(answer, None)

    def _tell(self, news: list[tuple[Answer, Piece]]) -> None:
        """From the model's thread."""
        self._loop.call_soon_threadsafe(self._take, news)

    def _take(self, news: list[tuple[Answer, Piece]]) -> None:
        for answer, piece in news:
            request = self._requests.get(answer)
            if request is None:
                continue
            request.take(answer, piece)
            if request.over:
                self._forget(request)


class EmbeddingRoutes(Routes):
    """Embeddings of a sentence encoder."""

    def __init__(self, name: str, encoder: Encoder) -> None:
        self._encoder = encoder
        self._thread = EncoderThread(encoder, self._tell, name)
        super().__init__(name, lambda: self._thread.counts)
        self._reader = Reader()
        self._loop = asyncio.get_running_loop()
        self._connections: dict[Job, Connection] = {}
        self.posts["/v1/embeddings"] = self._ask

    def _ask(self, body: bytes, connection: Connection) -> None:
        def begin(job: Job) -> None:
            connection.expect(_Embedding(job, lambda: self._connections.pop(job, None)))
            self._connections[job] = connection
            if not self._thread.submit(job):
                del self._connections[job]
                message = "Too many inputs wait for this engine."
                connection.refuse(Refusal(message, status=503, type="server_error", kind="engine_full"))

        self._reader.read(body, lambda fields: Job(self._encoder.read(fields)), connection, begin)

    def _tell(self, job: Job, outcome: bytes | Refusal) -> None:
        """From the model's thread."""
        self._loop.call_soon_threadsafe(self._take, job, outcome)

    def _take(self, job: Job, outcome: bytes | Refusal) -> None:
        connection = self._connections.pop(job, None)
        if connection is None:
            return
        if isinstance(outcome, Refusal):
            connection.refuse(outcome)
        else:
            connection.send(200, outcome)


class _Embedding:
    """A request for embeddings that is being worked on."""

    def __init__(self, job: Job, forget: Callable[[], object]) -> None:
        self._job = job
        self._forget = forget

    def left(self) -> None:
        self._job.gone = True
        self._forget()

    def cut(self) -> None:
        """It is answered all the same: that takes less than to stop it."""

    def writable(self) -> None:
        pass
