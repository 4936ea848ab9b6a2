"""The door of files and batches in the gateway: requests go to worker threads, answers come back, the runner runs.

    /v1/files      POST (streamed), GET     /v1/files/{id}   GET, DELETE   /v1/files/{id}/content   GET
    /v1/batches    POST, GET                /v1/batches/{id} GET           /v1/batches/{id}/cancel  POST

The same below /openai, the prefix that KServe uses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import orjson

from pressroom.gateway._hub import HubDoor, HubExchange
from pressroom.gateway.batches import _shapes as shapes
from pressroom.gateway.batches._batches import Batches
from pressroom.gateway.batches._files import FileStore
from pressroom.gateway.batches._runner import Runner
from pressroom.gateway.batches._service import PREFIX, BatchService
from pressroom.gateway.batches.base import NOBODY, Asker
from pressroom.gateway.metrics import HubSeries
from pressroom.gateway.problems import Problem, server_error
from pressroom.kernel import LockedError, Workspace
from pressroom.registry.hub.base import Answer

if TYPE_CHECKING:
    from pressroom.gateway._http_request import Request
    from pressroom.gateway._http_server import HttpConnection
    from pressroom.gateway.admission import Caller

_log = logging.getLogger(__name__)

_ROOTS = tuple(f"{prefix}/v1/{kind}".encode() for prefix in ("", PREFIX) for kind in ("files", "batches"))
_BELOW = tuple(root + b"/" for root in _ROOTS)
#: Beginnings of the paths whose bodies are taken as they come; for `Listener(streamed=…)`.
STREAMED = tuple(root for root in _ROOTS if root.endswith(b"files"))
#: What is answered, for people who look for it.
PATHS = (
    "/v1/batches",
    "/v1/batches/{id}",
    "/v1/batches/{id}/cancel",
    "/v1/files",
    "/v1/files/{id}",
    "/v1/files/{id}/content",
)

# Requests at once; each costs at most what it has read ahead.
_MOST_REQUESTS = 128
_RETRY_S = 2


class BatchDoor(HubDoor):
    """Files and batches of one workspace. Belongs to one event loop; `close` ends the runner, too.

    Carries requests the way the hub's door does, with its own service behind it. `bound_to` says where the gateway
    answers: from then on batches run, each for the key that made it; `credential` is what lets the runner do so
    (`Access.internal`), '' where the gateway has no keys. Of several servers over one workspace, which tests have, one
    runs them.
    """

    def __init__(self, workspace: Workspace, *, credential: str = "", clock: Callable[[], float] = time.time) -> None:
        files = FileStore(workspace, clock=clock)
        batches = Batches(workspace, files)
        self._runner = Runner(files, batches, workspace.settings, credential=credential, clock=clock)
        self._held = ExitStack()
        self._runs = True
        try:
            self._held.enter_context(workspace.lock("batches", purpose="run the batches of this workspace"))
        except LockedError as error:
            self._runs = False
            _log.warning("batches run elsewhere: %s", error)
        else:
            results = {name for batch in batches.unfinished() for name in (batch.output, batch.errors)}
            files.sweep(keep=results)
        self.answering = BatchService(workspace, files, batches, wake=self._runner.wake, clock=clock)
        # Nobody scrapes the series: files and batches have no figures of their own.
        super().__init__(self.answering, HubSeries())

    @staticmethod
    def takes(method: bytes, path: bytes) -> bool:
        """Whether a request is about files or batches."""
        return path in _ROOTS or path.startswith(_BELOW)

    def bound_to(self, url: str) -> None:
        """The gateway answers at `url`: run batches through it. Called once."""
        if self._runs:
            self._runner.start(url)

    def handle(
        self, connection: HttpConnection, request: Request, request_id: bytes, caller: Caller | None = None
    ) -> None:
        """Answer a request; `caller` is who sent it, None for somebody without a key."""
        if len(self.running) >= _MOST_REQUESTS:
            problem = server_error(
                503, "There are as many requests about files as can be taken.", retry_after_s=_RETRY_S
            )
            connection.respond(problem.status, problem.headers() + request_id, problem.body())
            return
        asker = Asker.of(caller) if caller is not None else NOBODY
        exchange = _Exchange(self, connection, request, request_id, asker)
        self.running.add(exchange)
        exchange.start()

    def leave(self) -> None:
        """The gateway is about to stop: let no batch keep it busy. Returns at once."""
        self._runner.leave()

    def close(self) -> None:
        """Take no more requests, and leave what runs of the batches for the next server. Again, it does nothing."""
        self._runner.close()
        super().close()
        self._held.close()


class _Exchange(HubExchange):
    """A request about files or batches: the hub's way of carrying, OpenAI's way of saying no."""

    def __init__(
        self, door: BatchDoor, connection: HttpConnection, request: Request, request_id: bytes, asker: Asker
    ) -> None:
        super().__init__(door, connection, request, request_id)
        self._answering = door.answering
        self._asker = asker

    def start(self) -> None:
        self._connection.hold(self)
        seen = self._seen()
        self._work(lambda: self._answering.begin(seen, self._asker), self._begun)

    def _answered(self, answer: Answer) -> None:
        message = answer.headers.get("x-error-message")
        if message is not None:  # the carrier's own words: a body that was cut, a fault, the end of the server
            message = str(orjson.loads(answer.body)["error"])
            known = answer.status < 500
            answer = shapes.of_problem(
                Problem(answer.status, message) if known else server_error(answer.status, message)
            )
        super()._answered(answer)
