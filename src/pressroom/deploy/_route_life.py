"""The life of one route of a deployment: the version that has its traffic, the one that comes to take it, and sleep."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pressroom.deploy._room import Room
from pressroom.deploy._trial import Trial
from pressroom.deploy.base import Cluster, Deployment, Phase, Rollout, RouteWish, Running, Verdict
from pressroom.deploy.checks import Checks
from pressroom.deploy.deployments import Deployments
from pressroom.deploy.fleet import Fleet, is_elsewhere
from pressroom.deploy.survey import Surveyor
from pressroom.gateway import Route, RouteTable
from pressroom.kernel import EnginesSettings, PressroomError

_log = logging.getLogger(__name__)

ASLEEP = "it is asleep; the next request wakes it"


@dataclass
class Ground:
    """What every route's life stands on. `keep` hands a record of a roll-out to whoever writes it down."""

    cluster: Cluster
    room: Room
    table: RouteTable
    settings: EnginesSettings
    deployments: Deployments
    keep: Callable[[Rollout], None]
    surveyor: Surveyor | None = None


@dataclass
class RouteLife:
    """Belongs to the reconciler's thread. `retired` are fleets that lost the traffic and wait to be kept warm (True) or
    ended, once the gateway was told."""

    ground: Ground
    wish: Deployment
    way: RouteWish
    label: str = ""
    #: What had the traffic last: loaded, asleep, or to be brought back.
    serving: RouteWish | None = None
    live: Fleet | None = None
    coming: Fleet | None = None
    trial: Trial | None = None
    #: Why the version that is wished does not serve, and as of which wish.
    withdrawn: str = ""
    withdrawn_generation: int = 0
    retired: list[tuple[Fleet, bool]] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    asleep: float = 0.0
    asleep_generation: int = 0
    #: When a request was last seen on it, or it came up; seconds of the monotonic clock.
    used: float = field(default_factory=time.monotonic)
    _lost: bool = False

    @property
    def name(self) -> str:
        return self.way.name

    @property
    def answers(self) -> bool:
        """Whether a request is answered: now, or as soon as it has woken it."""
        return bool(self.asleep) or (self.live is not None and self.live.running().phase is Phase.READY)

    @property
    def decided(self) -> bool:
        """Whether nothing is on its way, or what is will not arrive."""
        return self.coming is None or self.coming.running().phase is Phase.FAILED

    @property
    def elsewhere(self) -> bool:
        return is_elsewhere(self.way.engine)

    def follow(self, wish: Deployment, way: RouteWish, label: str) -> None:
        """The wish may have changed."""
        self.wish, self.way, self.label = wish, way, label

    def bring(self, warm: Callable[[str], Fleet | None]) -> None:
        """Bring about what is wished, as far as it goes now. `warm` gives away the fleet of a mark, if there is one."""
        if self.asleep:
            asked = self.ground.table.asked(self.wish.name)
            if asked <= self.asleep and self.asleep_generation >= self.wish.generation:
                return
            self.asleep, self.used = 0.0, time.monotonic()
        self._aim(warm)
        for fleet in (self.live, self.coming):
            if fleet is not None:
                fleet.look()
        if self.coming is not None:
            self._advance(self.coming)
        if self.trial is not None and self.trial.news:
            self.ground.keep(self.trial.record())
        if self.live is not None and self.ground.surveyor is not None:
            self.ground.surveyor.after(self.live, idle=self.idle())

    def end(self) -> list[Fleet]:
        """Give up all of it; returns what is to be ended."""
        self._drop(Verdict.CANCELLED, "it was to run no more")
        fleets = [fleet for fleet, _ in self.retired]
        if self.live is not None:
            fleets.append(self.live)
        self.live, self.retired = None, []
        return fleets

    # Versions.

    def _aim(self, warm: Callable[[str], Fleet | None]) -> None:
        """Let what should come be on its way."""
        target = self._target()
        if target is None:
            return
        generation, coming, live = self.wish.generation, self.coming, self.live
        if coming is not None:
            if coming.way.mark == target.mark and not _failed(coming, before=generation):
                coming.generation = generation
                return
            back = self.serving is not None and target.mark == self.serving.mark
            verdict = Verdict.CANCELLED if back or coming.way.mark == target.mark else Verdict.REPLACED
            self._drop(verdict, "the wish went back" if back else f"{target.ref} was wished after it")
        if live is not None and live.way.mark == target.mark and not _failed(live, before=generation):
            live.generation, live.way = generation, target
            self.withdrawn = ""
            return
        if target.mark == self.way.mark:
            self.withdrawn = ""
        found = warm(target.mark)
        if found is not None:
            found.generation, found.way = generation, target
        self.coming = found or Fleet(
            self.wish, self.ground.cluster, self.ground.room, way=target, label=self._label(target)
        )
        self._begin(self.coming)

    def _label(self, target: RouteWish) -> str:
        return self.label if target.name == self.way.name else target.name

    def _target(self) -> RouteWish | None:
        """What is to be loaded: first what had the traffic, where nothing has it now."""
        serving = self.serving
        if self.live is None and serving is not None and serving.mark != self.way.mark and not self._lost:
            return serving
        if self.withdrawn and self.withdrawn_generation >= self.wish.generation:
            return None
        return self.way

    def _begin(self, coming: Fleet) -> None:
        """A trial for a version that is new on this route; one that wakes, or is brought back, had its own."""
        self.trial = None
        if self.serving is not None and coming.way.mark == self.serving.mark:
            return
        old = self.serving if not self._lost else None
        rollout = Rollout(
            name=self.wish.name,
            route=self.name,
            generation=self.wish.generation,
            from_ref=old.ref if old is not None else "",
            from_digest=old.digest if old is not None else "",
            to_ref=coming.way.ref,
            to_digest=coming.way.digest,
            engine=coming.way.engine,
            started=time.time(),
        )
        before = self._known(rollout)
        if before is not None and before.verdict is Verdict.UNDER_WAY:
            again = {"at": time.time(), "says": "the server ended before it was decided: it begins again"}
            rollout = dataclasses.replace(rollout, steps=[*before.steps, again], started=before.started)
        checks = Checks.of(self.wish.rollout)
        self.trial = Trial(checks, coming, old, rollout=rollout, weight=self.way.weight, branch=self.name)

    def _known(self, rollout: Rollout) -> Rollout | None:
        try:
            return self.ground.deployments.rollout(rollout.name, rollout.route, rollout.generation)
        except PressroomError as error:
            _log.error("what came of the roll-outs of %s cannot be read: %s", rollout.name, error)
            return None

    def remember(self, serving: RouteWish) -> None:
        """An earlier server process left this route to `serving`; what was withdrawn from it then stays withdrawn."""
        self.serving = serving
        if serving.mark != self.way.mark:
            found = self.ground.deployments.rollout(self.wish.name, self.name, self.wish.generation)
            if found is not None and found.verdict is Verdict.WITHDRAWN:
                self.withdrawn, self.withdrawn_generation = found.reason, self.wish.generation

    def _advance(self, coming: Fleet) -> None:
        surveyor, trial = self.ground.surveyor, self.trial
        if surveyor is not None:
            surveyor.before(coming)
        now = coming.running()
        if now.phase is Phase.FAILED:
            if self.live is not None:
                self._withdraw(now.detail)
            elif self.serving is not None and coming.way.mark == self.serving.mark != self.way.mark:
                self._lost = True  # what had the traffic does not come back: what is wished may take its place
                self._drop(Verdict.CANCELLED, now.detail)
            elif trial is not None:
                trial.decide(Verdict.WITHDRAWN, now.detail)
            return
        if not (coming.up and (coming.settled or (trial is not None and trial.share))):
            if trial is not None and trial.share and now.phase is not Phase.STARTING:
                self._withdraw(f"its engine ended: {now.detail}")
            return
        if trial is not None:
            parity = self._compare if surveyor is not None and surveyor.checks_parity else None
            trial.look(self.live, lambda branch: self.ground.table.tally(self.wish.name, branch), parity)
            coming.tried = trial.says if trial.verdict is Verdict.UNDER_WAY else ""
            if trial.verdict is Verdict.WITHDRAWN:
                self._withdraw(trial.reason)
            if trial.verdict is not Verdict.TOOK_OVER:
                return
            self.ground.keep(trial.record())
        self._take_over(coming)

    def _compare(self, fleet: Fleet) -> None:
        if self.ground.surveyor is not None:
            self.ground.surveyor.after(fleet, idle=True)

    def _take_over(self, coming: Fleet) -> None:
        old = self.live
        self.live, self.coming, self.trial, self.used = coming, None, None, time.monotonic()
        self.serving, self._lost = coming.way, False
        if coming.way.mark == self.way.mark:
            self.withdrawn = ""
        coming.tried = ""
        if old is not None:
            self.retired.append((old, old.up))

    def _withdraw(self, reason: str) -> None:
        _log.warning("%s of %s is withdrawn: %s", self.way.ref, self.wish.name, reason)
        self.withdrawn, self.withdrawn_generation = reason, self.wish.generation
        self._drop(Verdict.WITHDRAWN, reason)

    def _drop(self, verdict: Verdict, reason: str) -> None:
        """End what was on its way."""
        coming, trial = self.coming, self.trial
        self.coming = self.trial = None
        if trial is not None:
            trial.decide(verdict, reason)
            self.ground.keep(trial.record())
        if coming is not None:
            coming.tried = ""
            self.retired.append((coming, False))

    # Falling asleep.

    def rest(self) -> None:
        """Let it fall asleep where nobody uses it: after its time, or to make room for another."""
        fleet, room = self.live, self.ground.room
        if fleet is None:
            return
        now = time.monotonic()
        if not self.idle():
            self.used = now
        idle = now > self.used
        for copy in fleet.copies:
            room.use(copy.key, idle=idle and self.coming is None, last_used=self.used)
        after = self.ground.settings.idle_stop_s if self.way.idle_stop_s is None else self.way.idle_stop_s
        wanted = any(copy.key in room.evicting for copy in fleet.copies)
        room.evicting.difference_update(copy.key for copy in fleet.copies)
        if self.coming is None and idle and (wanted or (after and now - self.used >= after)):
            _log.info(
                "%s falls asleep: %s", self.wish.name, "another needs its room" if wanted else "nobody asks for it"
            )
            self.live, self.asleep, self.asleep_generation = None, now, self.wish.generation
            self.retired.append((fleet, False))

    def idle(self) -> bool:
        """Whether no request runs on it, and none came since it was looked at last."""
        table = self.ground.table
        return not any(table.in_flight(route) or table.last_used(route) > self.used for route in self.routes)

    # How it is.

    def answering(self) -> Sequence[Route]:
        """Where the gateway finds it, or why it does not: at least one route, of no branch yet."""
        if self.asleep:
            before = self.routes[0] if self.routes else self._nowhere()
            return [
                dataclasses.replace(
                    before, branch="", host="", port=0, ready=False, coming=True, asleep=True, detail=ASLEEP
                )
            ]
        fleet = self.live or self.coming
        if fleet is None:
            return [self._nowhere()]
        routes = fleet.routes()
        if fleet is self.coming and self.trial is not None and self.trial.checks.asks and fleet.up:
            # Nothing else answers, but it was said what it must say first.
            return [dataclasses.replace(routes[0], ready=False, coming=True, detail=fleet.tried or "it is checked")]
        return routes

    def _nowhere(self) -> Route:
        return Route(
            model=self.wish.name,
            ref=self.way.ref,
            digest=self.way.digest,
            engine=self.way.engine,
            created=int(self.wish.created),
            ready=False,
            coming=not self.withdrawn,
            detail=self.withdrawn or "it is starting",
            elsewhere=self.elsewhere,
        )

    def state(self) -> Running:
        """How the wish for this route stands: of what is coming where there is something, else of what serves."""
        fleet = self.coming or self.live
        now = fleet.running() if fleet is not None else Running(phase=Phase.ASLEEP, detail="the next request wakes it")
        detail = now.detail
        if self.coming is None and self.withdrawn:
            now = dataclasses.replace(now, phase=Phase.FAILED)
            detail = f"{self.way.ref} was withdrawn: {self.withdrawn}"
        elif self.coming is None and not self._fulfilled():
            now, detail = dataclasses.replace(now, phase=Phase.WAITING), ""
        goes_on = self.coming is not None or self.withdrawn
        if goes_on and self.live is not None:
            detail = f"{detail or now.phase.value}; {self.live.way.ref} goes on answering"
        elif goes_on and self.asleep and self.serving is not None:
            detail = f"{detail}; {self.serving.ref} is asleep and goes on answering"
        return dataclasses.replace(now, detail=detail)

    def _fulfilled(self) -> bool:
        """Whether what is wished has the traffic, or will have it when it wakes."""
        if self.live is not None:
            return self.live.way.mark == self.way.mark
        return bool(self.asleep) and self.serving is not None and self.serving.mark == self.way.mark


def _failed(fleet: Fleet, *, before: int) -> bool:
    """Whether it will not come up, and was started for a wish older than `before`."""
    return fleet.generation < before and fleet.running().phase is Phase.FAILED
