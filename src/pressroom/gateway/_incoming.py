"""The body of a request while it comes: handed on piece by piece, and held back while its taker says so."""

from __future__ import annotations

from typing import Protocol

# What may wait for a taker before the client has to.
_AHEAD = 1 << 20


class Taker(Protocol):
    """Who takes the body of a request while it comes. One of the last two is called, once, if the client stays."""

    def body_data(self, data: bytes) -> None: ...

    def body_end(self) -> None: ...

    def body_broken(self, status: int, message: str) -> None:
        """No more will come, and what came is not all: the framing is wrong, or it took too long."""


class Reader(Protocol):
    """The connection that a body comes over."""

    def adjust_reading(self) -> None:
        """Read on, or let the client wait."""


class Incoming:
    """The body of a request, handed on as it comes, and held back while its taker says so."""

    __slots__ = ("_ahead", "_broken", "_connection", "_size", "_taker", "complete", "held")

    def __init__(self, connection: Reader) -> None:
        self._connection = connection
        self._taker: Taker | None = None
        self._ahead: list[bytes] = []  # what came before somebody took it
        self._size = 0
        self._broken: tuple[int, str] | None = None
        self.complete = False
        self.held = False

    @property
    def full(self) -> bool:
        """Whether the client must wait before it sends more."""
        return not self.complete and (self.held or (self._taker is None and self._size > _AHEAD))

    def take(self, taker: Taker) -> None:
        """Hand everything to `taker`, from its first byte on."""
        self._taker = taker
        ahead, self._ahead = self._ahead, []
        for data in ahead:
            taker.body_data(data)
        if self._broken is not None:
            taker.body_broken(*self._broken)
        elif self.complete:
            taker.body_end()

    def hold(self, held: bool) -> None:
        """Let no more come, or let it come again. What was read already still comes."""
        self.held = held
        self._connection.adjust_reading()

    def data(self, data: bytes) -> None:
        if self._taker is not None:
            self._taker.body_data(data)
        else:
            self._ahead.append(data)
            self._size += len(data)

    def end(self) -> None:
        self.complete = True
        if self._taker is not None:
            self._taker.body_end()

    def break_off(self, status: int, message: str) -> None:
        self.complete = True
        self._broken = (status, message)
        if self._taker is not None:
            self._taker.body_broken(status, message)
