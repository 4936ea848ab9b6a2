"""What is remembered of one branch from request to request: its figures, and whether it is passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pressroom.gateway.policy.base import Breaker


class Mark:
    """One branch of one model. Counts only grow; `open_until` is 0 while it is asked as usual, else when it may be
    tried again, in seconds of the clock of its `Steerings`."""

    __slots__ = (
        "compared", "equal", "failed", "failures", "fallbacks", "hedges", "open_until", "opened", "passed_over",
        "probing", "requests", "retries", "shadows", "shadows_failed", "shadows_skipped", "won",
    )  # fmt: skip

    def __init__(self) -> None:
        #: Times a request came to it, retries not counted.
        self.requests = 0
        #: Those whose answer it gave.
        self.won = 0
        #: Tries that failed by its fault.
        self.failed = 0
        self.retries = 0
        #: Of the requests: asked because another had not answered, or not in time.
        self.fallbacks = 0
        self.hedges = 0
        #: Its turn, and another was asked because it was not ready or had failed too often.
        self.passed_over = 0
        self.opened = 0
        self.shadows = 0
        self.shadows_failed = 0
        self.shadows_skipped = 0
        self.compared = 0
        self.equal = 0
        self.failures = 0
        self.open_until = 0.0
        self.probing = False

    def passes(self, now: float) -> bool:
        """Whether a request may be sent to it now."""
        return not self.open_until or (now >= self.open_until and not self.probing)

    def worked(self) -> None:
        """It answered."""
        self.failures = 0
        self.open_until = 0.0

    def fails(self, breaker: Breaker, now: float) -> None:
        """It did not, or not in time."""
        self.failed += 1
        self.failures += 1
        if breaker.failures and self.failures >= breaker.failures:
            if now >= self.open_until:
                self.opened += 1
            self.open_until = now + breaker.pause_s

    def state(self, now: float) -> str:
        """`closed`: it is asked; `open`: it is passed over; `half_open`: the next request tries it, or one does."""
        if not self.open_until:
            return "closed"
        return "half_open" if self.probing or now >= self.open_until else "open"

    def snapshot(self, now: float) -> dict[str, Any]:
        """All of it, for the figures."""
        kept = ("open_until", "probing")
        return {name: getattr(self, name) for name in self.__slots__ if name not in kept} | {"breaker": self.state(now)}
