"""Writes down what the server sees, beside its work: a database that is locked or full holds up nothing else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pressroom.deploy.base import Observed
from pressroom.kernel import PressroomError

_log = logging.getLogger(__name__)

_AGAIN_S = 1.0
_SAID_S = 60.0


class Scribe:
    """Hands each deployment's newest observation to `write`, in a thread of its own, and does what else is to be
    written; what cannot be is tried again until something newer is there. All methods may be called from any thread."""

    def __init__(self, write: Callable[[Observed], None]) -> None:
        self._write = write
        self._waiting: dict[str, Observed] = {}
        self._others: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._said: tuple[str, float] = ("", 0.0)
        self._thread = threading.Thread(target=self._run, name="scribe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, seen: Observed) -> None:
        """Let `seen` be written soon, unless a word on a newer wish waits already."""
        with self._changed:
            before = self._waiting.get(seen.name)
            if before is None or before.generation <= seen.generation:
                self._waiting[seen.name] = seen
                self._changed.notify_all()

    def also(self, subject: str, write: Callable[[], None]) -> None:
        """Let `write` be done soon, in place of what still waits on the same subject; before what was `put` later."""
        with self._changed:
            self._others[subject] = write
            self._changed.notify_all()

    def close(self) -> None:
        """Write what is left, and return when no more will be written: the database waits for its own lock, at most as
        long as it is set to."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._others:
                    if self._closing:
                        return
                    self._changed.wait()
                subject = next(iter(self._others), "")
                write = self._others.pop(subject) if subject else None
                seen = None if write is not None else self._waiting.pop(next(iter(self._waiting)))
            failed = False
            try:
                if write is not None:
                    write()
                elif seen is not None:
                    self._write(seen)
            except PressroomError as error:
                failed = True
                self._say(str(error))
            except Exception:  # the edge of a thread: the next try may succeed  # noqa: BLE001
                failed = True
                _log.exception("what is seen of %s cannot be written down", seen.name if seen else subject)
            if failed:
                with self._changed:
                    if write is not None:
                        self._others.setdefault(subject, write)
                    elif seen is not None:
                        self._waiting.setdefault(seen.name, seen)
                    if self._closing:
                        return
                time.sleep(_AGAIN_S)

    def _say(self, trouble: str) -> None:
        """Log what is wrong with the database: the same once a minute, not once a second."""
        now = time.monotonic()
        if trouble != self._said[0] or now > self._said[1] + _SAID_S:
            _log.error("what is seen of the deployments cannot be written down: %s", trouble)
            self._said = (trouble, now)
