"""What a lower part says without knowing who listens: the command line draws it, a log keeps it.

An event is a frozen record. Subscribers run in the emitting thread, in the order they subscribed; one that raises is
logged and does not disturb the work that spoke.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """The root of all events."""


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """Work under way: `done` of `total` units (`total` None: not known). `task` stays the same from start to end."""

    task: str
    done: int
    total: int | None = None
    unit: str = "B"


@dataclass(frozen=True, slots=True)
class Note(Event):
    """One sentence a person should see."""

    text: str


E = TypeVar("E", bound=Event)


class Events:
    """A small bus: `subscribe` to a type of event, `emit` one. Safe to use from several threads."""

    def __init__(self) -> None:
        self._subscribers: list[tuple[type[Event], Callable[[Any], None]]] = []
        self._lock = threading.Lock()

    def subscribe(self, kind: type[E], listener: Callable[[E], None]) -> Callable[[], None]:
        """Call `listener` for each event of `kind` or below; returns a function that ends it."""
        entry = (kind, listener)
        with self._lock:
            self._subscribers = [*self._subscribers, entry]

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = [e for e in self._subscribers if e is not entry]

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Hand the event to every listener of its type."""
        for kind, listener in self._subscribers:
            if isinstance(event, kind):
                try:
                    listener(event)
                except Exception:  # noqa: BLE001  a listener's fault must not end the work that spoke
                    _log.exception("a listener failed on %r", event)
