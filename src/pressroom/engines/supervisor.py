"""Keeps one engine alive: starts it, watches it, starts it again when it dies, and says how it stands."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from pressroom.engines.base import Endpoint, Engine, State
from pressroom.kernel import EngineStartError, PressroomError

_log = logging.getLogger(__name__)


class Standing(StrEnum):
    """How a supervised engine stands. `backoff`: it died, and is started again after a pause. `failed`: it does not
    come up, and is left alone until `retry`, or for a long pause where it came up before."""

    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """How it stands at one moment. `endpoint` is set while ready; `since` is when this standing began, in seconds since
    the epoch; `restarts` counts the starts after the first; memory in bytes, 0 where not known."""

    standing: Standing
    endpoint: Endpoint | None = None
    restarts: int = 0
    detail: str = ""
    since: float = 0.0
    memory_bytes: int = 0
    peak_memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """When to look and when to start again; all times in seconds.

    Pauses double from `first_pause` to `longest_pause`, each shortened by up to a quarter at random so that engines
    that died together do not all load at once; an engine that was well for `well_after` starts over with the first.
    `same_failures` starts in a row that end in the same way mean failure, `same_refusals` where the engine itself said
    why: that will not change by trying. One that lives but is silent for `patience` is ended and started again. Where
    an engine has been ready before, what keeps it from coming up may pass (a full disk, memory that others took): it is
    tried anew every `again_after`.
    """

    poll: float = 0.1
    health_every: float = 3.0
    first_pause: float = 0.5
    longest_pause: float = 30.0
    well_after: float = 60.0
    same_failures: int = 5
    same_refusals: int = 2
    patience: float = 60.0
    again_after: float = 60.0


class Supervisor:
    """Looks after the engine that `make` makes, in a thread of its own from `start` to `stop`.

    `make` is called for every start. `on_change` gets a Snapshot in that thread whenever anything but the memory
    changed; what it raises is logged. All methods may be called from any thread (not from `on_change`: that would wait
    for itself).
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        *,
        on_change: Callable[[Snapshot], None] | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._make = make
        self._on_change = on_change
        self._policy = policy or Policy()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._retry = False
        self._was_ready = False
        self._engine: Engine | None = None
        self._snapshot = Snapshot(standing=Standing.STOPPED, since=time.time())
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def snapshot(self) -> Snapshot:
        """How it stands now; does not block."""
        return self._snapshot

    def start(self) -> None:
        """Begin; returns at once. Once in the life of a supervisor."""
        assert self._thread is None, "a supervisor starts once"
        self._say(standing=Standing.STARTING)
        self._thread = threading.Thread(target=self._run, name="engine-supervisor", daemon=True)
        self._thread.start()

    def wait_for(self, *standings: Standing, timeout: float) -> Snapshot:
        """Wait until it stands in one of these ways, or the time is over; returns how it stands then."""
        with self._changed:
            self._changed.wait_for(lambda: self._snapshot.standing in standings, timeout)
            return self._snapshot

    def retry(self) -> None:
        """Start a failed engine again, or end its pause; nothing where it is neither. Returns when it starts."""
        down = (Standing.FAILED, Standing.BACKOFF)
        with self._changed:
            if self._snapshot.standing in down:
                self._retry = True
                self._wake.set()
                self._changed.wait_for(lambda: self._snapshot.standing not in down)

    def stop(self) -> None:
        """End the engine and the thread; returns when both are gone. Calling it twice does nothing."""
        self._stopping.set()
        self._wake.set()
        thread = self._thread
        while thread is not None and thread.is_alive():
            # A start under way ends when its process does; the engine may also be made just now.
            engine = self._engine
            if engine is not None and self._snapshot.standing is Standing.STARTING:
                engine.stop()
            thread.join(0.05)

    def _run(self) -> None:
        policy = self._policy
        pause, failures, last_reason, again = policy.first_pause, 0, "", False
        try:
            while not self._stopping.is_set():
                if again:
                    self._say(standing=Standing.STARTING, restarts=self._snapshot.restarts + 1)
                again = True
                started = time.monotonic()
                try:
                    detail, reason = self._live(), ""
                except PressroomError as error:
                    detail, reason = f"{error.message}. {error.hint}".strip(), error.message
                    refused = not isinstance(error, EngineStartError) or bool(error.facts.get("reported"))
                    allowed = policy.same_refusals if refused else policy.same_failures
                except Exception as error:  # noqa: BLE001  the edge of a thread: a fault of the backend's own
                    _log.exception("the engine failed in a way it should not")
                    detail = reason = f"{type(error).__name__}: {error}"
                    allowed = policy.same_failures
                if self._stopping.is_set():
                    break
                if not reason:  # it came up, and died later: it is always started again
                    failures = 0
                    if time.monotonic() - started >= policy.well_after:
                        pause = policy.first_pause
                else:
                    failures = failures + 1 if reason == last_reason else 1
                last_reason = reason
                if reason and failures >= allowed:
                    _log.error("an engine is left alone after %d failed starts: %s", failures, detail)
                    self._say(standing=Standing.FAILED, detail=detail, endpoint=None)
                    self._wait(policy.again_after if self._was_ready else None)
                    pause, failures = policy.first_pause, 0
                else:
                    _log.warning("an engine is started again in %.1f s: %s", pause, detail)
                    self._say(standing=Standing.BACKOFF, detail=detail, endpoint=None)
                    self._wait(pause * random.uniform(0.75, 1.0))  # noqa: S311  not for secrets
                    pause = min(pause * 2, policy.longest_pause)
        finally:
            self._say(standing=Standing.STOPPED, detail="", endpoint=None)

    def _live(self) -> str:
        """One life of the engine, from its start to its end; returns why it ended. Raises what its start raised."""
        engine = self._engine = self._make()
        try:
            if self._stopping.is_set():
                return ""
            endpoint = engine.start()
            self._was_ready = True
            self._say(standing=Standing.READY, endpoint=endpoint, detail="")
            ended = self._watch(engine)
            if ended:
                # Ending it takes seconds where it hangs, or has left something behind: nobody is to ask it any more.
                self._say(standing=Standing.BACKOFF, detail=ended, endpoint=None)
            return ended
        finally:
            self._engine = None
            self._look_at_memory(0, 0)
            engine.stop()

    def _watch(self, engine: Engine) -> str:
        """Look at a ready engine until it ends, is silent for too long, or `stop` is called; returns what happened."""
        next_look, silent_since = time.monotonic(), None
        while not self._stopping.is_set():
            if engine.pid is None:
                return engine.health().detail or "the process ended"
            now = time.monotonic()
            if now >= next_look:
                health = engine.health()
                next_look = now + self._policy.health_every
                self._look_at_memory(health.memory_bytes, health.peak_memory_bytes)
                if health.state is State.READY:
                    silent_since = None
                    self._say(detail=health.detail)
                elif silent_since is None:
                    # It may be about to end, which closes its port first: look again before saying anything.
                    silent_since, next_look = now, now + self._policy.poll
                else:
                    if now - silent_since >= self._policy.patience:
                        return f"it has not answered for {now - silent_since:.0f} s: {health.detail}"
                    self._say(detail=health.detail)
            self._wake.wait(self._policy.poll)
            if not self._stopping.is_set():
                self._wake.clear()
        return ""

    def _wait(self, seconds: float | None) -> None:
        """Wait until the pause is over, or `retry` or `stop` is called."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._stopping.is_set() and not self._retry:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                break
            self._wake.wait(remaining)
            if not self._stopping.is_set():
                self._wake.clear()
        self._retry = False

    def _look_at_memory(self, now: int, peak: int) -> None:
        self._snapshot = replace(self._snapshot, memory_bytes=now, peak_memory_bytes=peak)

    def _say(self, **changes: object) -> None:
        before = self._snapshot
        after = replace(before, **changes)  # type: ignore[arg-type]  # names and types are checked by replace's callers
        if after.standing is not before.standing:
            after = replace(after, since=time.time())
        if after == before:
            return
        with self._changed:
            self._snapshot = after
            self._changed.notify_all()
        if self._on_change is not None:
            try:
                self._on_change(after)
            except Exception:  # noqa: BLE001  a listener's fault must not end the watch
                _log.exception("a listener failed on %r", after)
