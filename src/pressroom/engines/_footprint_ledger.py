"""Who has how much of the memory for engines, and who may start next. Logic only: it starts and stops nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

# Starts that may pass one that waits, because there is room for them and not for it, before nothing passes it for a
# while (in seconds): what comes free in that time is kept for it. Not for ever, or one that waits for a busy neighbour
# would stop everything else.
_MOST_PASSED = 4
_KEPT_FOR_S = 60.0
# One that has not asked for this long, in seconds, no longer waits. Who waits asks several times a second.
_FORGOTTEN_S = 30.0


class Action(StrEnum):
    """What to do with a start. `start`: its memory is reserved, go on. `wait`: ask again in a while. `evict`: stop
    those that are named, `release` them, and ask again. `refuse`: asking again is of no use as things are."""

    START = "start"
    WAIT = "wait"
    EVICT = "evict"
    REFUSE = "refuse"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Bytes: `needed` by the start, `allowed` for all engines, `free` of that, and `taken` by whom. `evict` names whom
    to stop, the longest unused first. `reason` says all of it to people ('' for a start)."""

    action: Action
    needed: int
    allowed: int
    free: int
    taken: Mapping[str, int]
    evict: tuple[str, ...] = ()
    reason: str = ""


@dataclass(slots=True)
class _Held:
    """`estimate` as it was decided on, `later` the part of it that only comes with requests, `size` what counts."""

    estimate: int
    later: int
    size: int
    last_used: float
    idle: bool = False
    evictable: bool = True


@dataclass(slots=True)
class _Waiting:
    need: int
    asked: float
    passed: int = 0
    first_since: float | None = None
    #: Who is being stopped for it; while `promised`, what they leave is nobody else's.
    leaving: set[str] = field(default_factory=set)
    promised: bool = False


class MemoryLedger:
    """Reservations of memory by name, under a budget in bytes, and by one of three policies (`engines.when_full`).

    `wait`: what does not fit waits. `evict`: idle ones make room, the longest unused first and no more than it takes;
    what still does not fit waits. `refuse`: what does not fit now is refused. What is larger than the budget is refused
    by all three.

    A later one that fits into what is free may pass one that waits, four times; then nothing passes it for a minute.
    What was freed for one is not given to another. All methods may be called from any thread; times are in seconds of
    `clock`.
    """

    def __init__(self, budget: int, *, policy: str = "evict", clock: Callable[[], float] = time.monotonic) -> None:
        assert policy in ("wait", "evict", "refuse")
        self._budget = budget
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._waiting: dict[str, _Waiting] = {}  # in the order of coming

    @property
    def budget(self) -> int:
        return self._budget

    @budget.setter
    def budget(self, budget: int) -> None:
        """What runs goes on where the new budget is smaller; nothing starts until it fits again."""
        with self._lock:
            self._budget = budget

    def decide(self, name: str, need: int, *, later: int = 0) -> Decision:
        """Whether `name` may start with `need` bytes, of which `later` are only taken as requests come.

        `start` reserves them in the same step. One that has a reservation already (it starts again) counts without it,
        and keeps it until it gets the new one.
        """
        assert 0 <= later <= need
        with self._lock:
            now = self._clock()
            self._forget(now)
            if need > self._budget:
                self._waiting.pop(name, None)
                return self._decision(Action.REFUSE, name, need, "can never fit")
            free = self._free_for(name)
            behind = self._behind(name, now)
            if need <= free and behind is None:
                self._start(name, need, later, now)
                return self._decision(Action.START, name, need)
            if self._policy == "refuse":
                self._waiting.pop(name, None)
                return self._decision(Action.REFUSE, name, need, "does not fit now")
            waiting = self._waiting.setdefault(name, _Waiting(need, now))
            waiting.need, waiting.asked = need, now
            if behind is not None:
                waiting.leaving, waiting.promised = set(), False
                return self._decision(Action.WAIT, name, need, f"waits behind {behind}")
            return self._make_room(name, waiting, need - free)

    def _make_room(self, name: str, waiting: _Waiting, missing: int) -> Decision:
        if self._policy == "evict":
            chosen = self._chosen(name, missing)
            waiting.leaving, waiting.promised = set(chosen), bool(chosen)
            if chosen:
                return self._decision(Action.EVICT, name, waiting.need, "needs room", evict=chosen)
        return self._decision(Action.WAIT, name, waiting.need, "waits until there is room")

    def use(self, name: str, *, idle: bool, last_used: float | None = None, evictable: bool = True) -> None:
        """Say how a holder is: `idle` where nothing runs on it, and when it was last used (now where not given). One
        that is not evictable stays. Nothing where it holds nothing."""
        with self._lock:
            held = self._held.get(name)
            if held is not None:
                held.idle, held.evictable = idle, evictable
                held.last_used = self._clock() if last_used is None else last_used

    def measured(self, name: str, size: int) -> None:
        """Let what was measured stand in for the estimate: `size`, and with it what may still come, but no more of that
        than was estimated. Nothing where `name` holds nothing, or `size` is 0 (not known)."""
        with self._lock:
            held = self._held.get(name)
            if held is not None and size > 0:
                held.size = max(size, min(held.estimate, size + held.later))

    def release(self, name: str) -> None:
        """The memory of `name` is free again: its process is gone. Nothing where it holds nothing."""
        with self._lock:
            self._held.pop(name, None)
            for waiting in self._waiting.values():
                waiting.leaving.discard(name)

    def withdraw(self, name: str) -> None:
        """`name` waits no more. What it was waiting for is for others."""
        with self._lock:
            self._waiting.pop(name, None)

    def taken(self) -> dict[str, int]:
        """Bytes by holder, the largest first."""
        with self._lock:
            return self._taken()

    def waiting(self) -> list[str]:
        """Who waits, in the order of coming."""
        with self._lock:
            self._forget(self._clock())
            return list(self._waiting)

    def _start(self, name: str, need: int, later: int, now: float) -> None:
        for other in self._earlier(name):
            self._waiting[other].passed += 1
        self._waiting.pop(name, None)
        # It starts and is in use for it: idle is what its owner says later.
        self._held[name] = _Held(need, later, need, now)

    def _forget(self, now: float) -> None:
        for name in [name for name, waiting in self._waiting.items() if now - waiting.asked > _FORGOTTEN_S]:
            del self._waiting[name]

    def _earlier(self, name: str) -> list[str]:
        """Those that came before `name`, which is last where it does not wait yet."""
        names = list(self._waiting)
        return names[: names.index(name)] if name in names else names

    def _behind(self, name: str, now: float) -> str | None:
        """The first that came earlier and was passed often enough. One that cannot ever start is in nobody's way."""
        for other in self._earlier(name):
            waiting = self._waiting[other]
            if waiting.passed < _MOST_PASSED or waiting.need > self._budget:
                continue
            waiting.first_since = now if waiting.first_since is None else waiting.first_since
            if now - waiting.first_since <= _KEPT_FOR_S:
                return other
            waiting.passed, waiting.first_since = 0, None
        return None

    def _free_for(self, name: str) -> int:
        """Bytes that `name` may take now: what nobody holds, less what is being freed for others."""
        free = self._budget - sum(held.size for other, held in self._held.items() if other != name)
        for other, waiting in self._waiting.items():
            if other != name and waiting.promised:
                coming = sum(self._held[one].size for one in waiting.leaving if one in self._held)
                free -= max(0, waiting.need - coming)
        return free

    def _chosen(self, name: str, missing: int) -> tuple[str, ...]:
        """Whom to stop so that `missing` bytes come free: none where it would not be enough."""
        promised = {one for other, waiting in self._waiting.items() if other != name for one in waiting.leaving}
        idle = [
            (held.last_used, other, held.size)
            for other, held in self._held.items()
            if other != name and held.idle and held.evictable and other not in promised and held.size > 0
        ]
        chosen: list[tuple[str, int]] = []
        for _, other, size in sorted(idle):
            if missing <= 0:
                break
            chosen.append((other, size))
            missing -= size
        if missing > 0:
            return ()
        # A large one that was taken last may have made a smaller one before it needless; the longest unused go first.
        for one in reversed(chosen.copy()):
            if missing + one[1] <= 0:
                chosen.remove(one)
                missing += one[1]
        return tuple(other for other, _ in chosen)

    def _taken(self) -> dict[str, int]:
        return dict(
            sorted(((name, held.size) for name, held in self._held.items()), key=lambda pair: (-pair[1], pair[0]))
        )

    def _decision(
        self, action: Action, name: str, need: int, why: str = "", *, evict: tuple[str, ...] = ()
    ) -> Decision:
        taken = self._taken()
        free = self._budget - sum(taken.values())
        reason = ""
        if action is not Action.START:
            by = ", ".join(f"{other} {_gb(size)}" for other, size in taken.items() if other != name) or "nobody"
            reason = f"{name} {why}: it needs {_gb(need)} of {_gb(self._budget)} for engines; taken by {by}"
            if evict:
                reason += f"; {', '.join(evict)} {'goes' if len(evict) == 1 else 'go'}"
        return Decision(
            action=action, needed=need, allowed=self._budget, free=free, taken=taken, evict=evict, reason=reason
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:.0f} MB"
