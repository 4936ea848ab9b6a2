"""Long texts are read piece by piece: one piece of one text in a turn of the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pressroom.gateway.asking import Asked, Receiver
from pressroom.gateway.problems import server_error

if TYPE_CHECKING:
    from pressroom.gateway.policy._rules import Reading
    from pressroom.gateway.policy.steering import Steering


_log = logging.getLogger(__name__)


class ReadingRoom:
    """The texts that are being read, in turns. Belongs to the event loop."""

    __slots__ = ("_readers",)

    def __init__(self) -> None:
        self._readers: deque[Reader] = deque()

    def read(
        self, reading: Reading, names: Iterable[str], steering: Steering, receiver: Receiver, then: Callable[[], Asked]
    ) -> Reader:
        """Look for `names`, and then ask with `then`; `receiver` is told where that cannot be done."""
        reader = Reader(reading.pieces(names), steering, receiver, then)
        self._readers.append(reader)
        if len(self._readers) == 1:
            asyncio.get_running_loop().call_soon(self._turn)
        return reader

    def _turn(self) -> None:
        reader = self._readers.popleft()
        more = reader.look()
        if more:
            self._readers.append(reader)
        if self._readers:
            asyncio.get_running_loop().call_soon(self._turn)
        if not more:
            reader.done()


class Reader(Asked):
    """A request whose text is being read; what is asked after that, once it is."""

    __slots__ = ("_asked", "_gone", "_paused", "_pieces", "_receiver", "_steering", "_then")

    def __init__(
        self, pieces: Iterator[None], steering: Steering, receiver: Receiver, then: Callable[[], Asked]
    ) -> None:
        self._pieces = pieces
        self._steering = steering
        self._receiver = receiver
        self._then = then
        self._asked: Asked | None = None
        self._gone = False
        self._paused = False
        steering.under_way += 1

    def look(self) -> bool:
        """Read a piece; False where there is none left."""
        if self._gone:
            return False
        try:
            for _ in self._pieces:
                return True
        except Exception:  # the edge of the loop: a client waits, and others after it  # noqa: BLE001
            _log.exception("a text could not be looked through")
            self.cancel()
            message = "The text of the request could not be checked, so it was sent to nobody."
            self._receiver.failed(server_error(500, message, code="gateway_error"))
        return False

    def done(self) -> None:
        """Ask, unless the client has left."""
        if self._gone:
            return
        self._gone = True
        self._steering.under_way -= 1
        self._asked = self._then()
        if self._paused:
            self._asked.pause()

    def cancel(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
        elif not self._gone:
            self._gone = True
            self._steering.under_way -= 1

    def pause(self) -> None:
        self._paused = True
        if self._asked is not None:
            self._asked.pause()

    def resume(self) -> None:
        self._paused = False
        if self._asked is not None:
            self._asked.resume()
