"""When a server that fails is asked again, and when a run gives up."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass

# Failures in a row, of one thing that is asked for, before a run may give up.
_LEAST = 3
# A run that has worked for hours waits as long as this for a network that is down; one that just began does not.
_LONGEST_S = 120.0
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 15.0


@dataclass(slots=True)
class _Series:
    """Failures in a row: since this thing, and since anything at all, brought something new."""

    own: int = 0
    silent: int = 0
    last: float = 0.0
    until: float = 0.0


class Patience:
    """Counts failures by what was asked for. Not thread-safe."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._news: float | None = None
        self._series: dict[Hashable, _Series] = {}

    def news(self, key: Hashable) -> None:
        """Something new came."""
        self._news = time.monotonic()
        self._series.pop(key, None)

    def wait(self, key: Hashable) -> float:
        """Seconds until this may be asked for again."""
        series = self._series.get(key)
        return series.until - time.monotonic() if series else 0.0

    def failed(self, key: Hashable, *, wait_s: float = 0.0, alone: bool = True) -> bool:
        """It failed; the server wants to be asked again after `wait_s`. Returns whether to give up.

        Where nothing came at all in this run, it gives up as soon as nothing else is asked for (`alone`). After that it
        is as patient as it has worked so far.
        """
        if self._news is None and alone:
            return True
        now = time.monotonic()
        series = self._series.setdefault(key, _Series())
        series.own += 1
        series.silent = series.silent + 1 if (self._news or 0.0) <= series.last else 1
        series.last = now
        series.until = now + max(wait_s, min(_FIRST_PAUSE_S * 2 ** (series.own - 1), _LONGEST_PAUSE_S))
        worked = (self._news or self._began) - self._began
        return series.silent >= _LEAST and now - (self._news or self._began) >= min(_LONGEST_S, worked)
