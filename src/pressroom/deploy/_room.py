"""Room in memory for the copies of deployments: asked before a start, corrected by what is measured, given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pressroom.engines import Action, Estimate, MemoryLedger, available
from pressroom.kernel import DeployError, EnginesSettings


class NoRoomError(DeployError):
    """A copy does not fit into the memory that engines may take, and will not by waiting."""


class Room:
    """The memory ledger of one server. Only `leave` may be called from other threads than the reconciler's.

    Copies are known by their keys; `evicting` are the keys of those that must end to make room: of deployments that
    fall asleep, or of versions that were kept `warm`, which go before anything else does.
    """

    def __init__(self, settings: EnginesSettings) -> None:
        self._settings = settings
        self._ledger = MemoryLedger(available(settings).engines, policy=settings.when_full)
        self._estimates: dict[str, Estimate | None] = {}
        self._owners: dict[str, str] = {}
        self.evicting: set[str] = set()
        self.warm: set[str] = set()

    def ask(self, key: str, owner: str, needs: Callable[[], Estimate | None]) -> str:
        """'' where the copy `key` of the deployment `owner` may start now, else why it waits, with figures.

        Raises:
            NoRoomError: it never fits, or does not now and the policy is to refuse.
            PressroomError: what `needs` raises.
        """
        if key not in self._estimates:
            self._estimates[key] = needs()
        estimate = self._estimates[key]
        if estimate is None:
            return ""
        self._owners[key] = owner
        decision = self._ledger.decide(key, estimate.total, later=estimate.later)
        if decision.action is Action.START:
            return ""
        reason = self._readable(decision.reason)
        if self.warm and decision.needed <= decision.allowed:
            self.evicting.update(self.warm)  # whatever the policy: nobody is served by these
            return reason
        if decision.action is Action.REFUSE:
            self._estimates.pop(key, None)
            raise NoRoomError(
                reason,
                hint="Take a smaller model, less context or fewer slots, stop another deployment, or let engines have "
                "more (setting engines.memory_bytes).",
                needed=decision.needed,
                allowed=decision.allowed,
                taken=dict(decision.taken),
                estimate=estimate.how,
            )
        self.evicting.update(decision.evict)
        return reason

    def figures(self, key: str) -> dict[str, Any]:
        """What was estimated for the copy, for people and scripts."""
        estimate = self._estimates.get(key)
        if estimate is None:
            return {}
        return {"memory_estimate_bytes": estimate.total, "memory_estimate": estimate.how}

    def measured(self, key: str, size: int) -> None:
        """The copy was seen to take `size` bytes."""
        self._ledger.measured(key, size)

    def use(self, key: str, *, idle: bool, last_used: float) -> None:
        """Whether requests run on the copy, and when the last one ended (seconds of the monotonic clock)."""
        self._ledger.use(key, idle=idle, last_used=last_used)

    def leave(self, key: str) -> None:
        """The copy is gone, or will not start."""
        self._ledger.release(key)
        self._ledger.withdraw(key)
        self.warm.discard(key)
        self.evicting.discard(key)
        self._estimates.pop(key, None)
        self._owners.pop(key, None)

    def _readable(self, reason: str) -> str:
        owners = dict(self._owners)
        for key in sorted(owners, key=len, reverse=True):  # one key may begin another
            reason = reason.replace(key, owners[key])
        return reason
