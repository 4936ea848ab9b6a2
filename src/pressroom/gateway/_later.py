"""A request that has to wait for something before an engine is asked."""

from __future__ import annotations

from collections.abc import Callable

from pressroom.gateway.asking import Asked


class Later(Asked):
    """Stands for what will be asked. `give_up` is called if the client leaves before that."""

    __slots__ = ("_asked", "_give_up", "_paused", "gone")

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._asked: Asked | None = None
        self._give_up = give_up
        self._paused = False
        #: Whether the client left before anything was asked.
        self.gone = False

    def became(self, asked: Asked) -> None:
        """This is asked now."""
        self._asked = asked
        if self._paused:
            asked.pause()

    def cancel(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
        elif not self.gone:
            self.gone = True
            self._give_up()

    def pause(self) -> None:
        self._paused = True
        if self._asked is not None:
            self._asked.pause()

    def resume(self) -> None:
        self._paused = False
        if self._asked is not None:
            self._asked.resume()
