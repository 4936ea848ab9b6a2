"""A new version on its way to the traffic: asked questions, compared with its model, then given a share and watched.

A state machine that the reconciler looks at several times a second; what takes long happens in a thread.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pressroom.deploy._smoke import Asked, Smoke, smoke
from pressroom.deploy._watch import Since, Taken, judge
from pressroom.deploy.base import Phase, Rollout, RouteWish, Verdict
from pressroom.deploy.checks import Checks
from pressroom.deploy.fleet import Fleet, is_elsewhere
from pressroom.gateway import Tally

_log = logging.getLogger(__name__)

# Parity takes a reference that is computed once a version, on a processor; longer than this, and it is not waited for.
_PARITY_S = 900.0
# What people are told of a watch is written to the database: not at every look.
_TELL_S = 1.0


class Trial:
    """One version's way. `verdict` is UNDER_WAY until it is decided; `share` is the part of its route's requests that
    it is to have now."""

    def __init__(
        self, checks: Checks, coming: Fleet, old: RouteWish | None, *, rollout: Rollout, weight: float, branch: str
    ) -> None:
        self.checks = _fitting(checks, coming, old)
        self.verdict = Verdict.UNDER_WAY
        self.reason = ""
        self.share = 0.0
        self.says = ""
        #: Something happened since it was written down.
        self.news = True
        self._rollout = rollout
        self._steps = list(rollout.steps)
        self._figures: dict[str, Any] = {}
        self._coming = coming
        self._weight = weight
        self._branches = (branch, canary_of(branch))
        self._stage: Iterator[None] | None = None
        self._stop = threading.Event()
        self._old: Fleet | None = None
        self._tally: Callable[[str], Tally | None] = lambda _: None
        self._parity: Callable[[Fleet], None] | None = None
        self._restarts = 0
        begins = f"starts on {coming.way.engine}" if not coming.up else "is still warm"
        self.step(f"{coming.way.ref} {begins}")

    def step(self, says: str, **figures: Any) -> None:
        """Write down what happened."""
        self._steps.append({"at": time.time(), "says": says, **figures})
        self.says = says
        self.news = True

    def record(self) -> Rollout:
        """What is to be kept of it."""
        self.news = False
        return dataclasses.replace(
            self._rollout,
            verdict=self.verdict,
            reason=self.reason,
            steps=list(self._steps),
            figures=dict(self._figures),
            ended=0.0 if self.verdict is Verdict.UNDER_WAY else time.time(),
        )

    def decide(self, verdict: Verdict, reason: str = "") -> None:
        """The end of it."""
        if self.verdict is Verdict.UNDER_WAY:
            self.verdict, self.reason, self.share = verdict, reason, 0.0
            self._stop.set()
            self.step(f"{verdict.value}{f': {reason}' if reason else ''}")

    def look(
        self, old: Fleet | None, tally: Callable[[str], Tally | None], parity: Callable[[Fleet], None] | None
    ) -> None:
        """Go on as far as it goes now. The version answers; `old` is what has the traffic, `parity` begins to compare
        a fleet with its model."""
        self._old, self._tally, self._parity = old, tally, parity
        if self._stage is None:
            self._restarts = self._coming.running().restarts
            self._stage = self._stages()
        if self._coming.running().restarts > self._restarts:
            self.decide(Verdict.WITHDRAWN, "its engine ended while it was tried and had to be started again")
            return
        if self.verdict is Verdict.UNDER_WAY:
            next(self._stage, None)

    # The stages, each until it is done.

    def _stages(self) -> Iterator[None]:
        for stage in (self._asked, self._compared, self._watched):
            yield from stage()
            if self.verdict is not Verdict.UNDER_WAY:
                return
        self.decide(Verdict.TOOK_OVER)

    def _asked(self) -> Iterator[None]:
        if not self.checks.asks:
            return
        while (new := _engine(self._coming)) is None:
            if self._coming.up:
                self.step("it is not asked questions: it gives no text")
                return
            yield  # it has just ended, and is started again or given up
        self.step("it answers, and is asked questions")
        old = _engine(self._old) if self._old is not None and self._old.up else None
        found: list[Smoke] = []
        threading.Thread(target=lambda: found.append(self._ask(new, old)), name="smoke", daemon=True).start()
        while not found:
            yield
        self._figures.update(found[0].figures or {})
        if found[0].reason:
            self.decide(Verdict.WITHDRAWN, found[0].reason)

    def _ask(self, new: Asked, old: Asked | None) -> Smoke:
        try:
            return smoke(self.checks, new, old, stopping=self._stop)
        except Exception as error:  # the edge of a thread  # noqa: BLE001
            _log.exception("a new version could not be asked")
            return Smoke(reason=f"it could not be asked: {error!r}")

    def _compared(self) -> Iterator[None]:
        if not self.checks.parity or self._parity is None:
            return
        copies = [copy for copy in self._coming.copies if not is_elsewhere(copy.wish.engine)]
        until = time.monotonic() + _PARITY_S
        while time.monotonic() < until:
            self._parity(self._coming)
            up = [copy for copy in copies if copy.running().phase is Phase.READY]
            verdicts = {copy.wish.engine: copy.figures.get("parity") for copy in up}
            if all(verdicts.values()):
                break
            if "reference" not in self.says:
                self.step("its answers are compared with its model's, the reference")
            yield
        else:
            self.step("it could not be told in time whether it says what its model says")
            return
        self._figures["parity"] = {engine: found["verdict"] for engine, found in verdicts.items() if found}
        different = [engine for engine, found in verdicts.items() if found and found["verdict"] == "different"]
        if different:
            self.decide(Verdict.WITHDRAWN, f"on {different[0]} it does not say what its model says (parity)")

    def _watched(self) -> Iterator[None]:
        if not self.checks.canary:
            return
        if self._old is None or not self._old.up or not self._weight:
            self.step("nothing to watch: the old version takes no requests by its weight, or does not answer")
            return
        since = [Since(self._tally(branch)) for branch in self._branches]
        begun = told = time.monotonic()
        self.share = self.checks.canary / 100
        self.step(f"it takes {self.checks.canary:g} % of the requests for {self.checks.watch_s:g} s")
        old, new = Taken(), Taken()
        while True:
            yield
            found = [each.taken(self._tally(branch)) for each, branch in zip(since, self._branches, strict=True)]
            old, new = found[0] or old, found[1] or new
            if not self._coming.up:
                self.decide(Verdict.WITHDRAWN, f"its engine ended: {self._coming.running().detail}")
                return
            alone = self._old is None or not self._old.up
            elapsed = float("inf") if alone else time.monotonic() - begun
            judgement = judge(self.checks, new, old, elapsed_s=elapsed)
            self._figures["watch"] = {
                "seconds": round(time.monotonic() - begun, 1),
                "new": dataclasses.asdict(new),
                "old": dataclasses.asdict(old),
            }
            if judgement.over:
                break
            if time.monotonic() >= told + _TELL_S:
                told = time.monotonic()
                self.says = (
                    f"it takes {self.checks.canary:g} % of the requests: {new.requests} so far, {new.failed} failed"
                )
        if judgement.reason:
            self.decide(Verdict.WITHDRAWN, judgement.reason)
        else:
            few = new.requests < self.checks.min_requests
            fewer = f", fewer than the {self.checks.min_requests} it waited for" if few else ""
            self.step(f"it took {new.requests} requests{fewer}; {new.failed} failed")


def canary_of(branch: str) -> str:
    """What the branch of a route's new version is called while it takes a share."""
    return f"{branch}~new"


def _fitting(checks: Checks, coming: Fleet, old: RouteWish | None) -> Checks:
    """The checks that mean something here. What runs elsewhere charges for every question, and one that nothing was
    before is compared with nothing: what was asked for in so many words is done all the same."""
    if old is None:
        checks = dataclasses.replace(checks, sanity=False, parity=False, agreement=None, canary=0.0)
    if is_elsewhere(coming.way.engine):
        checks = dataclasses.replace(checks, sanity=False, parity=False, agreement=None)
    return checks


def _engine(fleet: Fleet) -> Asked | None:
    """A copy of a fleet to ask; None where none answers, or what it gives is no text."""
    for copy in fleet.copies:
        now = copy.running()
        if now.phase is Phase.READY and copy.replica is not None:
            able = copy.replica.capabilities
            if able is not None and not able.embeddings:
                return Asked(host=now.host, port=now.port, model=copy.wish.name, chat=able.chat)
    return None
