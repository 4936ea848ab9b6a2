"""Questions alike in meaning: their vectors, the nearest of them, and the wait for the vector of a new one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.gateway.cache._hit import Entry
    from pressroom.gateway.cache._keys import Where

_LEAST_ROWS = 4
_MOST_DIMENSIONS = 16_384


class Embed(Protocol):
    """Asks `deployment` for the vector of `text`, and calls `then` once with it on the event loop, or with None where
    there is none. `then` may be called before this returns."""

    def __call__(self, deployment: str, text: str, then: Callable[[Sequence[float] | None], None], /) -> None: ...


def unit(values: Sequence[float] | None) -> NDArray[Any] | None:
    """A vector of length 1 in this direction; None where it has none."""
    if not values or len(values) > _MOST_DIMENSIONS:
        return None
    try:
        length = math.hypot(*values)  # unlike a sum of squares, not beyond what a double holds
        if not 0.0 < length < math.inf:
            return None
        return (np.asarray(values, dtype=np.float64) / length).astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        return None


class Group:
    """Questions that may be compared: equal in everything but their last words."""

    __slots__ = ("_rows", "entries", "where")

    def __init__(self, where: Where) -> None:
        self.where = where
        self.entries: list[Entry] = []
        self._rows: NDArray[Any] = np.empty((0, 0), dtype=np.float32)

    def add(self, entry: Entry, vector: NDArray[Any]) -> bool:
        """Let `entry` be found by `vector`; False where it does not fit to the others."""
        place, rows = len(self.entries), self._rows
        if place and rows.shape[1] != len(vector):
            return False
        if place == len(rows):
            grown = np.empty((max(_LEAST_ROWS, 2 * place), len(vector)), dtype=np.float32)
            if place:
                grown[:place] = rows
            rows = self._rows = grown
        rows[place] = vector
        self.entries.append(entry)
        entry.group, entry.place = self, place
        return True

    def remove(self, entry: Entry) -> None:
        """Let it be found no more."""
        last = self.entries.pop()
        if last is not entry:
            self._rows[entry.place] = self._rows[last.place]
            self.entries[entry.place] = last
            last.place = entry.place
        entry.group = None

    def nearest(self, vector: NDArray[Any], threshold: float) -> Iterator[tuple[Entry, float]]:
        """Those at least this near, the nearest first, with their cosine. The group may change meanwhile."""
        count = len(self.entries)
        if not count or self._rows.shape[1] != len(vector):
            return
        cosines = self._rows[:count] @ vector
        near = np.flatnonzero(cosines >= threshold)
        entries = self.entries.copy() if len(near) else []
        for place in near[np.argsort(-cosines[near], kind="stable")]:
            yield entries[place], min(float(cosines[place]), 1.0)


class Seeking:
    """One question that waits for its vector. `found` is called once with it, or with None where it does not come in
    time; one that comes later is given to `late`."""

    __slots__ = ("_found", "_late", "_over", "_timer")

    def __init__(
        self, found: Callable[[NDArray[Any] | None, bool], None], late: Callable[[NDArray[Any]], None]
    ) -> None:
        self._found = found
        self._late = late
        self._over = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self, embed: Embed, deployment: str, text: str, timeout_s: float) -> None:
        """Ask for the vector."""
        embed(deployment, text, self._came)
        if not self._over:
            self._timer = asyncio.get_running_loop().call_later(timeout_s, self._too_late)

    def _came(self, values: Sequence[float] | None) -> None:
        vector = unit(values)
        if self._over:
            if vector is not None:
                self._late(vector)
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._found(vector, False)

    def _too_late(self) -> None:
        self._over = True
        self._found(None, True)
