"""Answers of KServe V2 that come in one piece, for REST and for gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pressroom.gateway.asking import Asked, Asker, InOnePiece
from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols._v2_answers import Answer, Embeddings, answer, embeddings
from pressroom.gateway.protocols._v2_gather import Gathering

if TYPE_CHECKING:
    from pressroom.gateway.admission import Client
    from pressroom.gateway.protocols._v2_requests import Job
    from pressroom.gateway.routes import Route

Found = list[Answer] | Embeddings | Problem


class Whole(InOnePiece):
    """The Receiver of the whole answer to a job: `then` gets it, or what went wrong, once."""

    __slots__ = ("_job", "_then", "route")

    def __init__(self, job: Job, then: Callable[[Found], None]) -> None:
        #: Who answered, once it is known; None where there were several answers.
        self.route: Route | None = None
        self._job = job
        self._then = then

    def ask(self, asker: Asker, door: str, client: Client, id: str = "") -> Asked:
        """Ask for all of it. `then` may be called before this returns."""
        job = self._job
        if len(job.fields) == 1:
            return asker.ask(job.fields[0], job.endpoint, self, door=door, client=client, id=id)
        gathering = Gathering(asker, job, door=door, client=client, id=id, done=self._gathered, failed=self.failed)
        gathering.start()
        return gathering

    def whole(self, body: bytes, route: Route) -> None:
        job, self.route = self._job, route
        found = embeddings(body, len(job.fields[0]["input"])) if job.embeds else answer(body)
        self._then([found] if isinstance(found, Answer) else found)

    def failed(self, problem: Problem) -> None:
        self._then(problem)

    def _gathered(self, bodies: list[bytes]) -> None:
        answers: list[Answer] = []
        for body in bodies:
            found = answer(body)
            if isinstance(found, Problem):
                self._then(found)
                return
            answers.append(found)
        self._then(answers)
