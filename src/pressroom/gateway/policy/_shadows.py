"""Copies of requests for another branch: its answers are compared with those that were sent, and thrown away."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway import _sse

if TYPE_CHECKING:
    from pressroom.gateway.asking import Asked
    from pressroom.gateway.policy._plan import Way
    from pressroom.gateway.policy._steered import Steered
    from pressroom.gateway.problems import Problem
    from pressroom.gateway.routes import Route

#: Copies under way at once, over all models.
MOST = 64
_REMEMBERED = 256
# Of each of two answers; longer ones are not compared (bytes).
_LONGEST = 262_144
# A loop that comes to a callback later than this (seconds) has enough to do.
_BUSY_S = 0.05
# Where there is no limit for the whole of an answer.
_TOTAL_S = 300.0
_ODD = (ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What came of one copy. `against` answered the client. `length_ratio` is that of the characters of the copy's
    answer to the other's (0.0 where they were not compared); `failed` is why there is no comparison."""

    at: float
    branch: str
    against: str
    equal: bool
    length_ratio: float
    seconds: float
    against_seconds: float
    failed: str = ""


class Shadows:
    """How many copies are under way."""

    __slots__ = ("under_way",)

    def __init__(self) -> None:
        self.under_way = 0

    @property
    def full(self) -> bool:
        return self.under_way >= MOST


def recent() -> deque[Comparison]:
    """Room for the last comparisons."""
    return deque(maxlen=_REMEMBERED)


class _Answer:
    """One of two answers as it came."""

    __slots__ = ("ended", "pieces", "size", "streamed")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self.streamed = False
        #: When it was complete, in seconds of the clock of `Steerings`; None before.
        self.ended: float | None = None

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if self.size <= _LONGEST:
            self.pieces.append(data)
        else:
            self.pieces.clear()

    def end(self, body: bytes | None, now: float) -> None:
        if body is not None:
            self.streamed = False
            self.add(body)
        self.ended = now

    def took(self, began: float) -> float:
        return max(0.0, self.ended - began) if self.ended is not None else 0.0

    def text(self) -> str | None:
        """What it says; None where that cannot be read or was too long to keep."""
        if self.size > _LONGEST:
            return None
        try:
            return _text(b"".join(self.pieces), streamed=self.streamed)
        except _ODD:
            return None


class Copy:
    """A copy of one request: the Receiver of the branch that is tried out, and the listener at the answer that is
    sent. It ends by itself, or with `cancel`."""

    __slots__ = ("_asked", "_began", "_main", "_over", "_own", "_running", "_steered", "_timer", "way")

    def __init__(self, steered: Steered, way: Way) -> None:
        self._steered = steered
        self.way = way
        self._asked: Asked | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._main = _Answer()
        self._own = _Answer()
        self._running = False
        self._over = False
        self._began = steered.steering.clock()
        # After the request itself is on its way.
        asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        if self._over:
            return
        steering = self._steered.steering
        mark = self.way.mark
        if steering.clock() - self._began > _BUSY_S or steering.shadows.full:
            mark.shadows_skipped += 1
            self._over = True
            self._steered.copy = None
            return
        self._running = True
        steering.shadows.under_way += 1
        mark.shadows += 1
        total = steering.policy.limits.total_s or _TOTAL_S
        self._timer = asyncio.get_running_loop().call_later(total, self._too_long)
        asked = self._steered.start(self.way.name, self, shadow=True)
        if self._own.ended is None and not self._over:
            self._asked = asked

    # The answer that is sent.

    def heard(self, receiver: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """As `receiver`, and listens."""
        main = self._main
        main.streamed = True

        def data(piece: bytes) -> None:
            main.add(piece)
            receiver(piece)

        return data

    def answered(self, body: bytes | None = None) -> None:
        """The answer is complete: `body`, or what was heard."""
        if not self._over:
            self._main.end(body, self._steered.steering.clock())
            self._compare()

    def cancel(self) -> None:
        """There is nothing to compare with: the client left, or nobody answered it."""
        if self._over:
            return
        asked, self._asked = self._asked, None
        self._close()
        if asked is not None:
            asked.cancel()

    # The answer that is not.

    def whole(self, body: bytes, route: Route) -> None:
        self._done(body)

    def begin(self, route: Route) -> None:
        self._own.streamed = True

    def data(self, data: bytes) -> None:
        self._own.add(data)

    def end(self) -> None:
        self._done(None)

    def failed(self, problem: Problem) -> None:
        self._steered.asking.refused = False
        if not self._over:
            self._asked = None
            self._note(failed=problem.code or str(problem.status))

    def _done(self, body: bytes | None) -> None:
        if not self._over:
            self._asked = None
            self._own.end(body, self._steered.steering.clock())
            self._compare()

    def _too_long(self) -> None:
        self._timer = None
        asked, self._asked = self._asked, None
        if not self._over:
            self._note(failed="timeout" if self._own.ended is None else "not answered")
        if asked is not None:
            asked.cancel()

    def _compare(self) -> None:
        if self._main.ended is None or self._own.ended is None:
            return
        main, own = self._main.text(), self._own.text()
        if main is None or own is None:
            self._note(failed="unreadable")
        else:
            self._note(equal=main == own, ratio=len(own) / len(main) if main else float(not own))

    def _note(self, *, equal: bool = False, ratio: float = 0.0, failed: str = "") -> None:
        mark = self.way.mark
        if failed:
            mark.shadows_failed += 1
        else:
            mark.compared += 1
            mark.equal += equal
        winner = self._steered.winner
        self._steered.steering.comparisons.append(
            Comparison(
                at=time.time(),
                branch=self.way.name,
                against=winner.way.name if winner is not None else "",
                equal=equal,
                length_ratio=ratio,
                seconds=self._own.took(self._began),
                against_seconds=self._main.took(self._began),
                failed=failed,
            )
        )
        self._close()

    def _close(self) -> None:
        self._over = True
        self._main.pieces.clear()
        self._own.pieces.clear()
        if self._running:
            self._running = False
            self._steered.steering.shadows.under_way -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _text(raw: bytes, *, streamed: bool) -> str:
    """What the choices of an answer say, one after another, calls of tools with it."""
    said: dict[int, list[str]] = {}
    if streamed:
        for found in _sse.Events().feed(raw):
            if found != _sse.DONE:
                _say(orjson.loads(found), "delta", said)
    else:
        _say(orjson.loads(raw), "message", said)
    return "\n".join("".join(pieces) for _, pieces in sorted(said.items()))


def _say(record: dict[str, Any], name: str, said: dict[int, list[str]]) -> None:
    for choice in record.get("choices") or ():
        pieces = said.setdefault(choice.get("index") or 0, [])
        message = choice.get(name) or choice
        pieces.append(message.get("content") or message.get("text") or "")
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            pieces += (function.get("name") or "", function.get("arguments") or "")
