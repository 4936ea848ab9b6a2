"""Requests that wait for an engine: it starts, wakes, or was lost and is being started again."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pressroom.gateway._generation import Generation

# How often those that wait look again without being told: an engine that was lost for a moment is tried after this.
_LOOK_S = 0.25
# Sent on in one turn of the event loop, so that a thousand that waited do not hold up everybody else.
_AT_ONCE = 32


class WaitingRoom:
    """The requests that wait, by model and in the order they came. Belongs to one event loop; `changed` may be called
    from any thread."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._waiting: dict[str, dict[Generation, None]] = {}
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return self._count >= self._most

    def of(self, model: str) -> int:
        """How many wait for `model`."""
        return len(self._waiting.get(model, ()))

    def admit(self, generation: Generation) -> bool:
        """Let it wait; False where too many do. It is started again when its routes changed, and from time to time."""
        if self.full:
            return False
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._waiting.setdefault(generation.model, {})[generation] = None
        self._count += 1
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_S, self._look)
        return True

    def leave(self, generation: Generation) -> None:
        """Its client left; nothing happens where it does not wait."""
        waiting = self._waiting.get(generation.model)
        if waiting is not None and generation in waiting:
            del waiting[generation]
            self._count -= 1
            if not waiting:
                del self._waiting[generation.model]

    def changed(self, model: str) -> None:
        """The routes of `model` changed. From any thread."""
        if self._loop is not None and model in self._waiting:
            self._loop.call_soon_threadsafe(self._send_on, model)

    def close(self) -> None:
        """Nobody is sent on any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send_on(self, model: str, turns: int = -1) -> None:
        """Start those that wait for `model`, in order, each at most once."""
        waiting = self._waiting.get(model)
        if not waiting:
            return
        turns = len(waiting) if turns < 0 else turns
        for _ in range(min(turns, _AT_ONCE)):
            if not waiting:
                break
            generation = next(iter(waiting))
            self.leave(generation)
            generation.start()  # it comes back to the end of the row where there is still no engine
        turns -= _AT_ONCE
        if turns > 0:
            assert self._loop is not None
            self._loop.call_soon(self._send_on, model, turns)

    def _look(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(_LOOK_S, self._look)  # first: whatever happens below, the others are seen
        now = monotonic()
        for model, waiting in list(self._waiting.items()):
            for generation in [each for each in waiting if now >= each.deadline]:
                if generation in waiting:  # the end of one may be the end of another, where they answer one request
                    self.leave(generation)
                    generation.waited_too_long()
            self._send_on(model)
        if not self._count:
            self.close()
