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
_LAST_S = 5.0


class Scribe:
    """Hands each deployment's newest observation to `write`, in a thread of its own; what cannot be written is tried
    again until something newer is there. All methods may be called from any thread."""

    def __init__(self, write: Callable[[Observed], None]) -> None:
        self._write = write
        self._waiting: dict[str, Observed] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="scribe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, seen: Observed) -> None:
        """Let `seen` be written soon."""
        with self._changed:
            self._waiting[seen.name] = seen
            self._changed.notify_all()

    def close(self) -> None:
        """Write what is left, for some seconds at most."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            deadline = time.monotonic() + _LAST_S
            while (self._waiting or self._busy) and self._thread.is_alive() and time.monotonic() < deadline:
                self._changed.wait(0.1)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                name = next(iter(self._waiting))
                seen = self._waiting.pop(name)
                self._busy = True
            failed = False
            try:
                self._write(seen)
            except PressroomError as error:
                failed = True
                _log.error("what is seen of %s cannot be written down: %s", name, error)
            except Exception:  # the edge of a thread: the next try may succeed  # noqa: BLE001
                failed = True
                _log.exception("what is seen of %s cannot be written down", name)
            with self._changed:
                self._busy = False
                if failed:
                    self._waiting.setdefault(name, seen)
                    if self._closing:
                        return
                self._changed.notify_all()
            if failed:
                time.sleep(_AGAIN_S)
