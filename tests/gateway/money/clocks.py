"""Clocks that stand still until they are moved, and short ways to say budgets and callers."""

from __future__ import annotations

from datetime import UTC, datetime

from pressroom.gateway.admission import Caller, Limits, Refused
from pressroom.gateway.money import Accounts, Budget, Hold, parse_budget

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0


class Clocks:
    """The time of the wall in seconds, and the monotonic one in nanoseconds."""

    def __init__(self, wall: float = NOON) -> None:
        self.wall = wall
        self.mono = 10**12

    def clock(self) -> float:
        return self.wall

    def monotonic(self) -> int:
        return self.mono

    def on(self, seconds: float) -> None:
        """Time passes."""
        self.wall += seconds
        self.mono += round(seconds * 10**9)

    def accounts(self, *budgets: Budget, lifetime_s: float = 3600.0) -> Accounts:
        return Accounts(budgets, lifetime_s=lifetime_s, clock=self.clock, monotonic=self.monotonic)


def budget(whose: str, amount: str) -> Budget:
    return parse_budget(whose, amount)


def alice(**limits: int) -> Caller:
    return Caller("alice", "research", limits=Limits(**limits))


def held(found: object) -> Hold:
    assert isinstance(found, Hold), found
    return found


def refused(found: object) -> Refused:
    assert isinstance(found, Refused), found
    return found
