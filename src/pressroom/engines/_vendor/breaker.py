"""A circuit breaker: a vendor that is down is left alone for a while, and then asked once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from pressroom.engines._vendor.refusals import Refusal

_LONGEST_S = 60.0


class Breaker:
    """Opens after `failures` failures in a row (0: never) for `pause_s` seconds, then lets one request try. Another
    failure doubles the pause, to a minute at most; any answer closes it. For one event loop."""

    def __init__(self, failures: int, pause_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._first_pause_s = pause_s
        self._pause_s = pause_s
        self._clock = clock
        self._until: float | None = None
        self._trying = False
        self.failures = 0

    @property
    def state(self) -> str:
        """`closed`, `open`, or `half-open` where the next request may try, or one does."""
        if self._until is None:
            return "closed"
        return "open" if self._clock() < self._until else "half-open"

    def enter(self) -> bool:
        """Ask to send a request; its end is told with `worked`, `failed` or `left`. True where it is one that tries.

        Raises:
            Refusal: the circuit is open.
        """
        if self._until is None:
            return False
        left = self._until - self._clock()
        if left > 0 or self._trying:
            wait = max(1, math.ceil(left))
            message = f"The vendor failed {self.failures} times in a row and is left alone for {wait} s."
            raise Refusal(503, message, code="vendor_circuit_open", retry_after_s=wait)
        self._trying = True
        return True

    def worked(self) -> None:
        """The vendor answered."""
        self.failures = 0
        self._until = None
        self._trying = False
        self._pause_s = self._first_pause_s

    def failed(self, *, trying: bool) -> None:
        """It did not, or with an error of its own. `trying` is what `enter` said."""
        self.failures += 1
        if self._until is not None and not trying:
            return  # it was sent before the circuit opened
        if trying or (self._limit and self.failures >= self._limit):
            self._until = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, max(_LONGEST_S, self._first_pause_s))
            self._trying = False

    def left(self, *, trying: bool) -> None:
        """It was given up before there was an answer, which says nothing of the vendor."""
        if trying:
            self._trying = False
