"""Old and new version side by side while both answer: who fails more often, and who is slower."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pressroom.deploy.checks import Checks
from pressroom.gateway import Tally

# So many failures are no accident: then it is not waited for the end of the time.
_ENOUGH_FAILURES = 3
# So many requests that should have come to it, and none that did, are none either.
_ENOUGH_MISSED = 5
# Below so many answers a median says little.
_ENOUGH_TIMES = 5
# Two medians this near to each other (seconds) are the same to whoever waits, whatever their ratio.
_NO_DIFFERENCE_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What a branch took since it is watched. `median_s`: to the first token, of those that were answered; None where
    they are too few."""

    answered: int = 0
    failed: int = 0
    median_s: float | None = None

    @property
    def requests(self) -> int:
        return self.answered + self.failed

    @property
    def error_rate(self) -> float:
        return self.failed / self.requests if self.requests else 0.0


class Since:
    """A branch from one moment on; its tally goes on from before."""

    def __init__(self, tally: Tally | None) -> None:
        self._tally = tally
        self._answered = tally.answered if tally is not None else 0
        self._failed = tally.failed if tally is not None else 0

    def taken(self, tally: Tally | None) -> Taken | None:
        """What came since then; None where it cannot be told this very moment."""
        if tally is None:
            return Taken()
        if tally is not self._tally:  # the branch was taken out and put back: all of it is new
            self._tally, self._answered, self._failed = tally, 0, 0
        answered, failed = tally.answered - self._answered, tally.failed - self._failed
        try:
            latest = list(tally.latest)
        except RuntimeError:
            return None  # it was written to while it was read
        count = min(len(latest), answered + failed)
        return Taken(answered=answered, failed=failed, median_s=_median(latest[len(latest) - count :]))


def _median(latest: Sequence[tuple[float, bool]]) -> float | None:
    worked = [seconds for seconds, well in latest if well]
    return statistics.median(worked) if len(worked) >= _ENOUGH_TIMES else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Whether the watch is over, and why the new version must go ('' where it may take over)."""

    over: bool
    reason: str = ""


def judge(checks: Checks, new: Taken, old: Taken, *, elapsed_s: float) -> Judgement:
    """How it stands after `elapsed_s` of watching."""
    worse = new.error_rate - old.error_rate > checks.max_error_rate
    errors = (
        f"{new.failed} of its {new.requests} requests failed, and {old.failed} of the old version's {old.requests} "
        f"(max_error_rate is {checks.max_error_rate:g} above the old one's)"
    )
    if worse and new.failed >= _ENOUGH_FAILURES:
        return Judgement(over=True, reason=errors)
    enough = new.requests >= checks.min_requests
    if elapsed_s < (checks.watch_s if enough else checks.longest_watch_s):
        return Judgement(over=False)
    if worse:
        return Judgement(over=True, reason=errors)
    expected = old.requests * checks.canary / max(100 - checks.canary, 1e-9)
    if not new.requests and expected >= _ENOUGH_MISSED and not math.isinf(elapsed_s):
        return Judgement(
            over=True,
            reason=f"none of its requests was answered or refused in {elapsed_s:.0f} s, and the old version took "
            f"{old.requests}",
        )
    slower = _slower(checks, new, old)
    return Judgement(over=True, reason=slower)


def _slower(checks: Checks, new: Taken, old: Taken) -> str:
    if new.median_s is None or old.median_s is None or new.median_s - old.median_s < _NO_DIFFERENCE_S:
        return ""
    if new.median_s <= old.median_s * checks.max_latency_ratio:
        return ""
    return (
        f"half of its answers began after {new.median_s * 1000:.0f} ms, the old version's after "
        f"{old.median_s * 1000:.0f} ms (max_latency_ratio is {checks.max_latency_ratio:g})"
    )
