"""One deployment as the server brings it about: its routes' lives, what is kept warm, what is written down of it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pressroom.deploy._route_life import Ground, RouteLife
from pressroom.deploy._telling import Teller
from pressroom.deploy.base import Deployment, Observed, Phase, RouteWish, Standing
from pressroom.deploy.checks import Checks
from pressroom.deploy.fleet import Fleet
from pressroom.kernel import PressroomError

_log = logging.getLogger(__name__)

# How often an unchanged deployment is written down again (its memory changes).
_HEARTBEAT_S = 5.0


@dataclass
class Warm:
    """A fleet that lost the traffic and is kept until a moment of the monotonic clock."""

    fleet: Fleet
    until: float


class Entry:
    """Belongs to the reconciler's thread. `end` ends a fleet in the background once its requests are done; `stand`
    hands what has the traffic to whoever writes it down."""

    def __init__(
        self,
        ground: Ground,
        wish: Deployment,
        *,
        end: Callable[[Fleet], None],
        stand: Callable[[Standing], None],
    ) -> None:
        self._ground = ground
        self._end = end
        self._stand = stand
        self._teller = Teller(ground.table, wish.name)
        self.wish = wish
        self.lives: list[RouteLife] = []
        #: Routes that are wished no more, and answer until the others do.
        self.leaving: list[RouteLife] = []
        self.warm: list[Warm] = []
        self.written: Observed | None = None
        self._trouble = ""
        self._told = False
        self._standing = ground.deployments.standing(wish.name)
        self._follow(wish)
        self._remember()

    @property
    def answers(self) -> bool:
        """Whether a request is answered, by any of its routes."""
        return any(life.answers for life in [*self.lives, *self.leaving])

    def look(self, wish: Deployment) -> None:
        """Bring it on its way, tell the gateway, and end what is needed no more."""
        if wish is not self.wish:
            self._follow(wish)
        self._told = False
        for life in [*self.lives, *self.leaving]:
            try:
                life.bring(self._take_warm)
            except PressroomError as error:  # what goes wrong with one does not hold up the others
                _log.error("cannot look after %s of %s: %s", life.name, wish.name, error)
            life.rest()
        self._let_go()
        self._tell()
        if self._told:
            self._retire()

    def leave(self) -> list[Fleet]:
        """It is to run no more: all that must end."""
        fleets = [warm.fleet for warm in self.warm]
        for life in [*self.lives, *self.leaving]:
            fleets += life.end()
        self.warm = []
        self._keep_standing(warm=())
        return fleets

    # Routes that come and go.

    def _follow(self, wish: Deployment) -> None:
        """Give each route that is wished its life, the one it had where it can be told."""
        self.wish = wish
        old = [*self.lives, *self.leaving]
        pairs = paired(wish.ways, [life.way for life in old])
        lives = []
        for number, way in enumerate(wish.ways):
            label = way.name if number else ""
            known = pairs[number]
            life = old[known] if known is not None else RouteLife(self._ground, wish, way)
            life.follow(wish, way, label)
            lives.append(life)
        self.lives = lives
        names = {life.name for life in lives}
        self.leaving = [life for life in old if all(life is not kept for kept in lives)]
        for life in self.leaving:
            life.wish = wish
            if life.name in names:  # its name is another's now
                life.way = dataclasses.replace(life.way, name=f"{life.name}~old")
            if life.serving is not None:  # what was on its way to it is wished no more
                life.way = dataclasses.replace(life.serving, name=life.name)

    def _remember(self) -> None:
        """What an earlier server process left: it has the traffic until what is wished has passed its checks."""
        serving = self._standing.serving
        pairs = paired(self.wish.ways, serving)
        for life, known in zip(self.lives, pairs, strict=True):
            if known is not None:
                life.remember(serving[known])
        for number, way in enumerate(serving):
            if number not in pairs:
                label = way.name
                self.leaving.append(RouteLife(self._ground, self.wish, way, label=label, serving=way))

    def _let_go(self) -> None:
        """End routes that are wished no more, once one that is answers and the others will not come any nearer."""
        if not self.leaving or not all(life.decided for life in self.lives):
            return
        if any(life.answers for life in self.lives):
            for life in self.leaving:
                keep = life.live is not None and life.live.up
                for fleet in life.end():
                    life.retired.append((fleet, keep and fleet.up))
                self.lives[0].retired += life.retired
            self.leaving = []

    # What the gateway is told, and what comes after.

    def _tell(self) -> None:
        self._told = False
        try:
            self._teller.tell(self.wish, [*self.lives, *self.leaving])
            self._told, self._trouble = True, ""
        except PressroomError as error:
            if str(error) != self._trouble:
                _log.error("the routes of %s stay as they were: %s", self.wish.name, error)
            self._trouble = str(error)

    def _retire(self) -> None:
        """Keep warm or end what has lost the traffic. The gateway knows: no request begins there any more."""
        now = time.monotonic()
        keep_s = Checks.of(self.wish.rollout).keep_warm_s
        retired = []
        for life in self.lives:
            retired += life.retired
            life.retired = []
        kept = [Warm(fleet, now + keep_s) for fleet, keep in retired if keep and keep_s]
        before = [warm.fleet for warm in self.warm]
        self.warm += kept
        self._update_standing()
        room = self._ground.room
        wanted = {way.mark for way in self._standing.previous or ()}
        for warm in list(self.warm):
            fleet = warm.fleet
            keys = {copy.key for copy in fleet.copies}
            evicted = bool(keys & room.evicting)
            if now >= warm.until or evicted or not fleet.up or fleet.way.mark not in wanted:
                self.warm.remove(warm)
                room.evicting -= keys
                room.warm -= keys
                self._end(fleet)
                continue
            fleet.look()
            idle = not any(self._ground.table.in_flight(route) for route in fleet.told)
            for key in keys:
                room.use(key, idle=idle, last_used=0.0)  # before anything that is wished
            room.warm = room.warm | keys if idle else room.warm - keys
        for fleet, keep in retired:
            if not (keep and keep_s):
                self._end(fleet)
        if [warm.fleet for warm in self.warm] != before:
            self._keep_standing(warm=[warm.fleet.way.mark for warm in self.warm])

    def _take_warm(self, mark: str) -> Fleet | None:
        for warm in self.warm:
            if warm.fleet.way.mark == mark and warm.fleet.up:
                self.warm.remove(warm)
                self._ground.room.warm -= {copy.key for copy in warm.fleet.copies}
                return warm.fleet
        return None

    def _update_standing(self) -> None:
        """What has the traffic may have changed; what had it before this wish is what one can go back to."""
        known = self._standing
        serving = tuple(
            dataclasses.replace(life.serving, name=life.name, weight=life.way.weight)
            for life in [*self.lives, *self.leaving]
            if life.serving is not None
        )
        if serving == known.serving:
            return
        changed = _marks(serving) != _marks(known.serving)
        if changed and known.serving and known.generation != self.wish.generation:
            self._standing = dataclasses.replace(
                known, serving=serving, previous=known.serving, generation=self.wish.generation
            )
        else:
            self._standing = dataclasses.replace(known, serving=serving)
        self._keep_standing(warm=[warm.fleet.way.mark for warm in self.warm])

    def _keep_standing(self, *, warm: Iterable[str]) -> None:
        self._standing = dataclasses.replace(self._standing, warm=tuple(warm))
        self._stand(self._standing)

    # What people are told.

    def observed(self) -> Observed | None:
        """How the wish stands, where that is worth writing down: it changed, or was not for a while."""
        lives = [*self.lives, *self.leaving]
        states = [(life, life.state()) for life in lives]
        life, now = min(states, key=lambda pair: _URGENCY[pair[1].phase])
        details = [
            f"{each.name}: {state.detail}" if len(lives) > 1 else state.detail for each, state in states if state.detail
        ]
        if now.phase is Phase.ASLEEP and len(details) > 1:
            details = [now.detail]
        # What the gateway does not know is not so.
        phase = Phase.FAILED if self._trouble else now.phase if self._told else Phase.WAITING
        fleets = self._fleets()
        shown = life.coming or life.live
        before = self.written
        since = shown.started if shown is not None else time.time()
        if not now.since and before is not None and before.phase is phase:
            since = before.since
        seen = Observed(
            name=self.wish.name,
            generation=self.wish.generation,
            phase=phase,
            detail="; ".join([self._trouble, *details] if self._trouble else details),
            url=f"http://{now.host}:{now.port}" if now.port else "",
            pid=now.pid,
            restarts=sum(state.restarts for _, state in states),
            memory_bytes=sum(fleet.running().memory_bytes for _, _, fleet in fleets),
            context=now.context,
            since=now.since or since,
            seen=time.time(),
            copies=[
                {**copy, "route": each.name, "role": role, "weight": each.weight}
                for each, role, fleet in fleets
                for copy in fleet.records()
            ],
        )
        if before is not None:
            same = dataclasses.replace(
                seen, seen=before.seen, memory_bytes=before.memory_bytes, copies=before.copies
            ) == before and [_steady(copy) for copy in seen.copies] == [_steady(copy) for copy in before.copies]
            if same and seen.seen - before.seen < _HEARTBEAT_S:
                return None
        self.written = seen
        return seen

    def fleets(self) -> list[Fleet]:
        """All that is loaded, or on its way."""
        retired = [fleet for life in self.lives for fleet, _ in life.retired]
        return [*(fleet for _, _, fleet in self._fleets()), *retired]

    def _fleets(self) -> list[tuple[RouteWish, str, Fleet]]:
        """Every fleet with its route and its part in it."""
        found = []
        for life in [*self.lives, *self.leaving]:
            found += [
                (life.way, role, fleet) for role, fleet in (("live", life.live), ("coming", life.coming)) if fleet
            ]
        return [*found, *((warm.fleet.way, "warm", warm.fleet) for warm in self.warm)]


def paired(ways: Sequence[RouteWish], old: Sequence[RouteWish]) -> list[int | None]:
    """For each route that is wished, which of the `old` ones it goes on from: the one of its name, else the one that
    runs the same, else the only one that is left."""
    found: list[int | None] = [None] * len(ways)
    left = dict(enumerate(old))
    for what in (_name, _mark):
        for number, way in enumerate(ways):
            if found[number] is None:
                known = next((at for at, each in left.items() if what(way) == what(each)), None)
                if known is not None:
                    found[number] = known
                    del left[known]
    unpaired = [number for number, known in enumerate(found) if known is None]
    if len(unpaired) == 1 and len(left) == 1:
        found[unpaired[0]] = next(iter(left))
    return found


# Of several routes, the one whose state is that of the whole.
_URGENCY = {
    phase: number
    for number, phase in enumerate(
        (Phase.FAILED, Phase.BACKOFF, Phase.WAITING, Phase.STARTING, Phase.READY, Phase.ASLEEP, Phase.STOPPED)
    )
}


def _name(way: RouteWish) -> str:
    return way.name


def _mark(way: RouteWish) -> str:
    return way.mark


def _marks(ways: Iterable[RouteWish]) -> list[str]:
    return sorted(way.mark for way in ways)


def _steady(copy: dict[str, Any]) -> dict[str, Any]:
    """What of a copy is worth writing down at once when it changes."""
    return {key: value for key, value in copy.items() if key not in ("memory_bytes", "peak_memory_bytes")}
