"""What a client may ask of the models themselves: which there are, and to load one or let it go.

The gateway only carries the wishes; whoever decides what runs implements `ModelControl`. Its calls may block (a load
takes as long as the engine takes to start), so they run on threads that hold nothing up.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from pressroom.engines.base import Capabilities
from pressroom.gateway.problems import Problem, server_error
from pressroom.gateway.protocols._v2_models import version_of
from pressroom.gateway.routes import Route, RouteTable
from pressroom.kernel import NotFoundError, PressroomError

_log = logging.getLogger(__name__)

# Each may wait for an engine that starts: enough for an operator's tools, few enough not to matter.
_MOST_CALLS = 16
_RETRY_S = 2

T = TypeVar("T")


class Standing(StrEnum):
    """Where a model is in its life, in the words of the model repository extension."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Servable:
    """A model that is served, or could be. `reason` says why it is not ready; `platform` is the engine that runs it,
    or would; `capabilities` are None where they are known only once it runs."""

    name: str
    version: str = "1"
    standing: Standing = Standing.UNAVAILABLE
    reason: str = ""
    platform: str = ""
    capabilities: Capabilities | None = None

    @property
    def ready(self) -> bool:
        return self.standing is Standing.READY

    def as_route(self) -> Route:
        """It as a route, to be described as one."""
        known = self.capabilities or Capabilities()
        return Route(
            model=self.name, ref=f":{self.version}", engine=self.platform, capabilities=known, ready=self.ready
        )

    def row(self) -> dict[str, str]:
        """It as a row of the repository's index."""
        return {"name": self.name, "version": self.version, "state": self.standing.value, "reason": self.reason}


class ModelControl(Protocol):
    """Decides what is served. Called from several threads at once; every call may block."""

    def index(self) -> list[Servable]:
        """Every model that is served or could be, by name."""

    def metadata(self, name: str) -> Servable:
        """The model called `name`.

        Raises:
            NotFoundError: there is none.
        """

    def load(self, name: str) -> None:
        """Serve `name`; returns when it answers, at once where it does already.

        Raises:
            NotFoundError: there is no such model.
            PressroomError: it cannot be served, and why.
        """

    def unload(self, name: str) -> None:
        """Serve `name` no longer; returns when its engine is gone, at once where it is not served.

        Raises:
            NotFoundError: there is no such model.
            PressroomError: it cannot be let go.
        """


def indexed(routes: RouteTable) -> list[Servable]:
    """The models of the table, where nobody knows of others."""
    return [
        Servable(
            name=route.model,
            version=version_of(route.ref),
            standing=Standing.READY if route.available else Standing.LOADING if route.coming else Standing.UNAVAILABLE,
            reason="" if route.ready else route.detail or "it is starting",
            platform=route.engine,
            capabilities=route.capabilities,
        )
        for route in routes.all()
    ]


def not_mounted(verb: str) -> str:
    """Why a model cannot be loaded or let go."""
    return f"This gateway cannot {verb} models: it was started without a control of what is served."


class ControlThreads:
    """Runs calls to a `ModelControl` on threads of their own, and brings what they return back to the event loop.

    The threads are daemons: a load that waits for its engine does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._running = 0

    def run(self, call: Callable[[], T], then: Callable[[T | Problem], None]) -> None:
        """Call `call` on a thread, then `then` on the loop with what it returned, or with what went wrong."""
        if self._running >= _MOST_CALLS:
            message = f"{_MOST_CALLS} models are being loaded or looked at already; try again in a moment."
            then(server_error(503, message, code="too_many_calls", retry_after_s=_RETRY_S))
            return
        loop = asyncio.get_running_loop()
        self._running += 1

        def done(found: T | Problem) -> None:
            self._running -= 1
            then(found)

        def work() -> None:
            found: T | Problem
            try:
                found = call()
            except PressroomError as error:
                status = 404 if isinstance(error, NotFoundError) else 400
                found = Problem(status, f"{error.message}. {error.hint}".strip(), code=error.code)
            except Exception:  # the edge of a thread: the request is answered, and the log has the rest  # noqa: BLE001
                _log.exception("a call to load, unload or list models failed")
                found = server_error(500, "The gateway failed on this request; its log says why.")
            with suppress(RuntimeError):  # the loop is closed: the gateway is gone
                loop.call_soon_threadsafe(done, found)

        threading.Thread(target=work, name="model-control", daemon=True).start()
