"""What an asker tells of an answer, for a coroutine that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc  # type: ignore[import-untyped]

from pressroom.gateway.asking import Asked, Asker
from pressroom.gateway.control import ControlThreads
from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols._v2_answers import Answer, Embeddings, answer, embeddings
from pressroom.gateway.protocols._v2_gather import Gathering

if TYPE_CHECKING:
    from pressroom.gateway.protocols._v2_requests import Job
    from pressroom.gateway.routes import Route

T = TypeVar("T")
Found = list[Answer] | Embeddings | Problem

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


async def refuse(context: Any, problem: Problem) -> NoReturn:
    """End the call with an error. Where another try makes sense, gRPC's own retries are told when."""
    metadata: tuple[tuple[str, str], ...] = ()
    if problem.retry_after_s is not None:
        metadata = (
            ("retry-after", str(problem.retry_after_s)),
            ("grpc-retry-pushback-ms", str(1000 * problem.retry_after_s)),
        )
    await context.abort(_CODES.get(problem.status, grpc.StatusCode.INTERNAL), problem.message, metadata)
    raise AssertionError("abort raises")


class Whole:
    """The Receiver of the whole answer to a job: `then` gets it, or what went wrong, once."""

    __slots__ = ("_job", "_then")

    def __init__(self, job: Job, then: Callable[[Found], None]) -> None:
        self._job = job
        self._then = then

    def ask(self, asker: Asker, door: str) -> Asked:
        """Ask for all of it. `then` may be called before this returns."""
        job = self._job
        if len(job.fields) == 1:
            return asker.ask(job.fields[0], job.endpoint, self, door=door)
        gathering = Gathering(asker, job, door=door, done=self._gathered, failed=self.failed)
        gathering.start()
        return gathering

    def whole(self, body: bytes, route: Route) -> None:
        job = self._job
        found = embeddings(body, len(job.fields[0]["input"])) if job.embeds else answer(body)
        self._then([found] if isinstance(found, Answer) else found)

    def failed(self, problem: Problem) -> None:
        self._then(problem)

    def begin(self, route: Route) -> None:
        raise AssertionError("nothing here asks for a stream")

    def data(self, data: bytes) -> None:
        raise AssertionError("nothing here asks for a stream")

    def end(self) -> None:
        raise AssertionError("nothing here asks for a stream")

    def _gathered(self, bodies: list[bytes]) -> None:
        answers: list[Answer] = []
        for body in bodies:
            found = answer(body)
            if isinstance(found, Problem):
                self._then(found)
                return
            answers.append(found)
        self._then(answers)


async def answered(asker: Asker, job: Job, *, door: str) -> Found:
    """The answer to a job. Cancelled, it cancels what the engine does."""
    future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()

    def done(found: Found) -> None:
        if not future.done():  # it may have been cancelled a moment ago
            future.set_result(found)

    asked = Whole(job, done).ask(asker, door)
    try:
        return await future
    except asyncio.CancelledError:
        asked.cancel()
        raise


def called(threads: ControlThreads, call: Callable[[], T]) -> Awaitable[T | Problem]:
    """What a call gives that may block."""
    future: asyncio.Future[T | Problem] = asyncio.get_running_loop().create_future()

    def done(found: T | Problem) -> None:
        if not future.done():
            future.set_result(found)

    threads.run(call, done)
    return future
