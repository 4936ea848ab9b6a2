"""The answers to a request with several texts: a few engine requests at a time, until there are all or one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pressroom.gateway.asking import Asked, Asker, InOnePiece

if TYPE_CHECKING:
    from pressroom.gateway.admission import Client
    from pressroom.gateway.problems import Problem
    from pressroom.gateway.protocols._v2_requests import Job
    from pressroom.gateway.routes import Route

# Enough for an engine with continuous batching to be busy; the rest of a long request waits here, not in its queue.
_AT_ONCE = 16


class Gathering(Asked):
    """Asks for each text of a job. Calls `done` with the bodies in the order of the texts, or `failed`, once."""

    def __init__(
        self,
        asker: Asker,
        job: Job,
        *,
        door: str,
        client: Client,
        id: str,
        done: Callable[[list[bytes]], None],
        failed: Callable[[Problem], None],
    ) -> None:
        self._asker = asker
        self._job = job
        self._door = door
        self._client = client
        self._id = id
        self._done = done
        self._failed = failed
        self._bodies: list[bytes] = [b""] * len(job.fields)
        self._running: dict[int, Asked | None] = {}
        self._next = 0
        self._left = len(job.fields)
        self._over = False
        self._starting = False

    def start(self) -> None:
        """Begin. `done` or `failed` may be called before this returns."""
        if self._starting:
            return  # an answer that came at once: the loop below goes on
        self._starting = True
        while not self._over and self._next < len(self._job.fields) and len(self._running) < _AT_ONCE:
            place, self._next = self._next, self._next + 1
            self._running[place] = None
            asked = self._asker.ask(
                self._job.fields[place],
                self._job.endpoint,
                _One(self, place),
                door=self._door,
                client=self._client,
                id=f"{self._id}-{place}" if self._id else "",
            )
            if place in self._running:
                self._running[place] = asked
        self._starting = False

    def cancel(self) -> None:
        self._over = True
        for asked in list(self._running.values()):
            if asked is not None:
                asked.cancel()
        self._running.clear()

    def pause(self) -> None:
        """Nothing comes in pieces here."""

    def resume(self) -> None:
        """Nothing was paused."""

    def came(self, place: int, body: bytes) -> None:
        del self._running[place]
        self._bodies[place] = body
        self._left -= 1
        if self._left:
            self.start()
        else:
            self._over = True
            self._done(self._bodies)

    def broke(self, place: int, problem: Problem) -> None:
        """One failed: all do, because half of what was asked is not an answer."""
        del self._running[place]
        if not self._over:
            self.cancel()
            self._failed(problem)


class _One(InOnePiece):
    """The Receiver of one answer."""

    __slots__ = ("_all", "_place")

    def __init__(self, parent: Gathering, place: int) -> None:
        self._all = parent
        self._place = place

    def whole(self, body: bytes, route: Route) -> None:
        self._all.came(self._place, body)

    def failed(self, problem: Problem) -> None:
        self._all.broke(self._place, problem)
