"""The visit of a request to one branch, with all its tries there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from pressroom.gateway.problems import Problem, server_error

if TYPE_CHECKING:
    from pressroom.gateway.asking import Asked
    from pressroom.gateway.policy._plan import Way
    from pressroom.gateway.policy._steered import Steered
    from pressroom.gateway.routes import Route

# What may pass: the same branch is asked again.
_PASSING = frozenset((429, 500, 502, 503, 504))
# Whose fault it is not: another branch may do better.
_NOT_THE_CLIENTS = frozenset((408, 409, 429))
# From a vendor: the operator's key, account or address is wrong.
_OPERATORS = frozenset((401, 402, 403, 404, 405, 410))
_OPERATORS_CODES = frozenset(("vendor_refused_key", "vendor_unpaid", "vendor_not_found"))
# Not the request is wrong, this branch cannot do it; another may.
_BEYOND = frozenset(("unsupported_parameter", "context_length_exceeded"))
# Asking again at once cannot help.
_LASTING = frozenset((*_OPERATORS_CODES, "vendor_circuit_open", "vendor_tls", "insufficient_quota"))
# A Retry-After of more than this (seconds) is not waited for: the next branch is asked.
_PATIENCE_S = 3.0

_LIVE, _OVER, _CANCELLED = 0, 1, 2


def _nothing(data: bytes) -> None:
    """What a cancelled branch still says."""


class Leg:
    """The visit to one branch, as the Receiver of what it says."""

    __slots__ = ("_inside", "_steered", "_tries", "asked", "data", "limit", "pause", "probes", "state", "way")

    def __init__(self, steered: Steered, way: Way) -> None:
        #: None once it is over: nothing is heard any more, and no cycle is left for the collector.
        self._steered: Steered | None = steered
        self.way = way
        self.asked: Asked | None = None
        self.limit: asyncio.TimerHandle | None = None
        self.pause: asyncio.TimerHandle | None = None
        self.probes = False
        self.state = _LIVE
        self._inside = False
        self._tries = 0
        #: Once it has begun this is the client's own, so that a piece of a stream costs nothing here.
        self.data: Callable[[bytes], None] = _nothing

    def send(self) -> None:
        """Ask the branch, for the first time or once more."""
        self.pause = None
        steered = self._steered
        assert steered is not None
        self._inside = True
        asked = steered.start(self.way.name, self)
        self._inside = False
        if self.state == _CANCELLED:
            asked.cancel()
        elif self.state == _LIVE:
            self.asked = asked
            if steered.paused and steered.winner is self:
                asked.pause()

    def cancel(self) -> None:
        """Another was faster, or the client left."""
        asked = self.asked
        self.close(_CANCELLED)
        if asked is not None:
            asked.cancel()

    def close(self, state: int = _OVER) -> None:
        """It is over; no timer of it is left."""
        self.state = state
        self._steered = None
        self.asked = None
        self.data = _nothing
        if self.limit is not None:
            self.limit.cancel()
            self.limit = None
        if self.pause is not None:
            self.pause.cancel()
            self.pause = None
        if self.probes:
            self.probes = self.way.mark.probing = False

    def too_slow(self) -> None:
        """It did not begin in time."""
        self.limit = None
        steered = self._steered
        if steered is None:
            return
        policy = steered.steering.policy
        self.way.mark.fails(policy.breaker, steered.steering.clock())
        asked, self.asked = self.asked, None
        self.state = _CANCELLED
        if asked is not None:
            asked.cancel()
        message = f"The engine was too slow: no answer began in {policy.limits.first_token_s:g} seconds."
        steered.lost(self, server_error(504, message, code="engine_timeout"), final=False)

    # What the branch says.

    def whole(self, body: bytes, route: Route) -> None:
        steered = self._steered
        if steered is None:
            return
        if steered.winner is None:
            steered.won(self)
        if steered.copy is not None:
            steered.copy.answered(body)
        self._worked()
        steered.ended()
        # One that cannot be read raises, and `failed` follows.
        steered.receiver.whole(body, route)
        self.close()

    def begin(self, route: Route) -> None:
        steered = self._steered
        if steered is None:
            return
        steered.won(self)
        self.data = steered.receiver.data if steered.copy is None else steered.copy.heard(steered.receiver.data)
        mark = self.way.mark
        if mark.open_until:  # it answers again; it is believed when it has answered to the end
            mark.open_until = 0.0
            mark.failures = max(0, steered.steering.policy.breaker.failures - 1)
        steered.receiver.begin(route)

    def end(self) -> None:
        steered = self._steered
        if steered is None:
            return
        if steered.copy is not None:
            steered.copy.answered()
        self._worked()
        steered.ended()
        steered.receiver.end()
        self.close()

    def failed(self, problem: Problem) -> None:
        steered = self._steered
        if steered is None:
            return
        steering = steered.steering
        mark = self.way.mark
        if steered.winner is self:
            mark.fails(steering.policy.breaker, steering.clock())
            self.close()
            steered.refuse(problem)
            return
        self.asked = None
        asking = steered.asking
        refused = self._inside or asking.refused
        asking.refused = False
        status, code = problem.status, problem.code
        operators = code in _OPERATORS_CODES or (self.way.elsewhere and not refused and status in _OPERATORS)
        blamed = operators or status >= 500 or status == 429
        if not refused:
            if blamed:
                mark.fails(steering.policy.breaker, steering.clock())
            else:
                self._worked()  # whoever says no is there
        if operators and status < 500:
            problem = server_error(502, "The vendor does not let this deployment in.", code="vendor_refused_key")
        if not (blamed or status in _NOT_THE_CLIENTS or code in _BEYOND):
            steered.lost(self, problem, final=True)
            return
        if not refused and status in _PASSING and code not in _LASTING and self._again(problem):
            return
        steered.lost(self, problem, final=False)

    def _again(self, problem: Problem) -> bool:
        """Ask it once more, after a pause; False where it has been asked often enough, or there is no time."""
        steered = self._steered
        assert steered is not None
        steering = steered.steering
        retry = steering.policy.retry
        if self._tries >= retry.attempts:
            return False
        # Full jitter: those that failed together do not come back together.
        delay = steering.random() * retry.backoff_s * (1 << self._tries)
        after = problem.retry_after_s
        if after:
            if after > _PATIENCE_S:
                return False
            delay += after
        limit = self.limit
        loop = asyncio.get_running_loop()
        if not steered.allows(delay) or (limit is not None and loop.time() + delay >= limit.when()):
            return False
        self._tries += 1
        self.way.mark.retries += 1
        self.pause = loop.call_later(delay, self.send)
        return True

    def _worked(self) -> None:
        mark = self.way.mark
        if mark.failures or mark.open_until:
            mark.worked()
