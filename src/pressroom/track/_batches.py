"""Metrics on their way: gathered, and written at least once a second by a thread of its own."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pressroom.kernel.errors import PressroomError

T = TypeVar("T")

# How long a value waits at most. A write of MLflow's takes about 5 ms whether it holds one value or hundreds.
_EVERY_S = 1.0


class Batches(Generic[T]):
    """Takes items from any thread and hands them to `write`, `most` at a time, in their order.

    A write that failed is tried again with the next; the error is raised from `add`, `flush` or `close`.
    """

    def __init__(self, write: Callable[[Sequence[T]], None], *, most: int) -> None:
        self._write = write
        self._most = most
        self._items: list[T] = []
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._failed: PressroomError | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, items: Sequence[T]) -> None:
        with self._changed:
            assert not self._closed
            failed, self._failed = self._failed, None
            self._items.extend(items)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pressroom-metrics", daemon=True)
                self._thread.start()
                atexit.register(self._at_exit)
            if len(self._items) >= self._most:
                self._changed.notify()
            waiting = len(self._items)
        if failed is not None:
            raise failed
        if waiting >= 10 * self._most:
            self.flush()  # whoever logs faster than the place writes waits here, instead of filling the memory

    def flush(self) -> None:
        """Return when everything added before is written."""
        with self._writing:
            while True:
                with self._changed:
                    batch = self._items[: self._most]
                if not batch:
                    return
                self._write(batch)
                with self._changed:
                    del self._items[: len(batch)]
                    self._failed = None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        atexit.unregister(self._at_exit)
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.flush()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._items) >= self._most, timeout=_EVERY_S)
                if self._closed:
                    return
            try:
                self.flush()
            except PressroomError as error:
                with self._changed:
                    self._failed = error
                    self._changed.wait_for(lambda: self._closed, timeout=_EVERY_S)

    def _at_exit(self) -> None:
        """The process ends and nobody finished the run: what was logged is kept nevertheless."""
        self.flush()
