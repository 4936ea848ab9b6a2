"""Wait until a wish has come true."""

from __future__ import annotations

import time
from collections.abc import Callable

from pressroom.deploy.base import Deployment, Observed, Phase
from pressroom.deploy.deployments import Deployments
from pressroom.kernel import DeployError

_POLL_S = 0.1


def wait_until(
    deployments: Deployments,
    wish: Deployment,
    phase: Phase,
    *,
    timeout_s: float,
    on_change: Callable[[Observed], None] | None = None,
) -> Observed:
    """Return when `wish` is in `phase`; `on_change` hears of every phase on the way.

    Raises:
        DeployError: it failed, somebody wished for something else, or the time is over; the message carries why.
    """
    deadline = time.monotonic() + timeout_s
    last: tuple[Phase, str] | None = None
    while True:
        seen = deployments.observed(wish)
        if (seen.phase, seen.detail) != last:
            last = (seen.phase, seen.detail)
            if on_change is not None:
                on_change(seen)
        if phase is Phase.READY and seen.generation > wish.generation:
            raise DeployError(
                f"{wish.name} was changed by somebody else meanwhile: what is asked of it now is not this",
                hint=f"`press rollouts {wish.name}` shows what became of it, `press plan` what differs.",
                deployment=wish.name,
            )
        if seen.phase is phase or (phase is Phase.READY and seen.phase is Phase.ASLEEP):
            return seen  # one that sleeps was ready a moment ago, and answers
        if seen.phase is Phase.FAILED and " was withdrawn: " in seen.detail:
            raise DeployError(
                f"{wish.name}: {seen.detail}",
                hint=f"`press rollouts {wish.name}` shows its checks, `press logs {wish.name}` what the engines wrote.",
                deployment=wish.name,
            )
        if seen.phase is Phase.FAILED:
            raise DeployError(
                f"{wish.name} ({wish.ref}) did not start: {seen.detail}",
                hint=f"`press logs {wish.name}` shows what the engine wrote.",
                deployment=wish.name,
            )
        if time.monotonic() >= deadline:
            raise DeployError(
                f"{wish.name} is {seen.phase.value} after {timeout_s:.0f} s, not {phase.value}{_why(seen)}",
                hint=f"`press ps` and `press logs {wish.name}` show how it goes on.",
                deployment=wish.name,
            )
        time.sleep(_POLL_S)


def _why(seen: Observed) -> str:
    return f": {seen.detail}" if seen.detail else ""
