"""Ctrl-C and SIGTERM while a server is up: the first asks for an orderly end, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class _Ending(Protocol):
    def ended(self) -> bool: ...


class Stopped(threading.Event):
    """Set by the first signal."""

    #: From when on a signal is an orderly end and not an interruption.
    serving = False

    def wait_with(self, server: _Ending) -> None:
        """Return when a signal came or the server ended by itself."""
        while not self.wait(0.2) and not server.ended():
            pass


@contextmanager
def until_stopped() -> Iterator[Stopped]:
    """Handle signals for the block: KeyboardInterrupt in the middle of work, a set event while serving."""
    stopped = Stopped()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stopped.is_set():
            os._exit(128 + number)  # the engines end with us: their lifeline closes
        stopped.set()
        if not stopped.serving:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
