"""The supervisor keeps an engine alive, and says how it stands."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from pressroom.engines import (
    Endpoint,
    Engine,
    EngineSpec,
    Health,
    Policy,
    Snapshot,
    Standing,
    State,
    Supervisor,
    create,
)
from pressroom.engines.process import ProcessEngine
from pressroom.kernel import EngineStartError

from .conftest import GOOD

# A guard against a test that hangs.
PATIENCE = 60.0
# Like the real one, with pauses that do not keep a test waiting.
QUICK = Policy(poll=0.02, health_every=0.05, first_pause=0.02, longest_pause=0.05)

Supervise = Callable[..., Supervisor]


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Makes supervisors that are started, and stopped at the end."""
    made: list[Supervisor] = []

    def make(
        engine: Callable[[], Engine], policy: Policy = QUICK, on_change: Callable[[Snapshot], None] | None = None
    ) -> Supervisor:
        made.append(Supervisor(engine, policy=policy, on_change=on_change))
        made[-1].start()
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


def ready(supervisor: Supervisor) -> Endpoint:
    found = supervisor.wait_for(Standing.READY, Standing.FAILED, timeout=PATIENCE)
    assert found.standing is Standing.READY, found
    assert found.endpoint is not None
    return found.endpoint


def test_echo_is_started_again_when_it_is_killed(supervise: Supervise, tmp_path: Path) -> None:
    spec = EngineSpec(name="echo", log=tmp_path / "echo.log")
    supervisor = supervise(lambda: create("echo", spec))
    first = ready(supervisor)
    os.kill(first.pid, signal.SIGKILL)
    found = supervisor.wait_for(Standing.BACKOFF, timeout=PATIENCE)
    assert "SIGKILL" in found.detail and found.endpoint is None
    second = ready(supervisor)
    assert second.pid != first.pid
    assert supervisor.snapshot.restarts == 1
    supervisor.stop()
    assert not psutil.pid_exists(second.pid)
    assert supervisor.snapshot.standing is Standing.STOPPED


def test_every_change_is_told_in_order(supervise: Supervise, scripted: Callable[..., ProcessEngine]) -> None:
    told: list[Snapshot] = []
    supervisor = supervise(scripted, on_change=told.append)
    os.kill(ready(supervisor).pid, signal.SIGKILL)
    supervisor.wait_for(Standing.BACKOFF, timeout=PATIENCE)
    ready(supervisor)
    supervisor.stop()
    supervisor.stop()
    standings = [snapshot.standing for snapshot in told]
    assert standings == ["starting", "ready", "backoff", "starting", "ready", "stopped"]
    assert [snapshot.restarts for snapshot in told] == [0, 0, 0, 1, 1, 1]
    assert all(before.since <= after.since for before, after in pairwise(told))
    assert all((snapshot.endpoint is not None) == (snapshot.standing is Standing.READY) for snapshot in told)


def test_a_listener_that_fails_disturbs_nobody(
    supervise: Supervise, scripted: Callable[..., ProcessEngine], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Snapshot) -> None:
        raise RuntimeError("a listener's own fault")

    ready(supervise(scripted, on_change=fail))
    assert "a listener's own fault" in caplog.text


def test_memory_is_watched(supervise: Supervise, scripted: Callable[..., ProcessEngine]) -> None:
    supervisor = supervise(scripted)
    ready(supervisor)
    _until(lambda: supervisor.snapshot.memory_bytes > 0)
    assert supervisor.snapshot.peak_memory_bytes >= supervisor.snapshot.memory_bytes


def test_a_start_that_crashes_alike_is_left_alone_after_five(
    supervise: Supervise, scripted: Callable[..., ProcessEngine], tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    crashing = f"open({str(starts)!r}, 'a').write('x')\nraise SystemExit(3)"
    supervisor = supervise(lambda: scripted(crashing))
    found = supervisor.wait_for(Standing.FAILED, timeout=PATIENCE)
    assert found.standing is Standing.FAILED
    assert "exit status 3" in found.detail
    assert starts.read_text() == "xxxxx" and found.restarts == 4
    supervisor.retry()
    supervisor.wait_for(Standing.FAILED, timeout=PATIENCE)
    assert starts.read_text() == "x" * 10, "asked to retry it is as patient as before"


def test_an_engine_that_says_why_is_not_asked_five_times(
    supervise: Supervise, scripted: Callable[..., ProcessEngine], tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    refusing = (
        f"open({str(starts)!r}, 'a').write('x')\n"
        "from pressroom.engines import child\nchild.failed('no weights', hint='Bring some.')"
    )
    supervisor = supervise(lambda: scripted(refusing))
    found = supervisor.wait_for(Standing.FAILED, timeout=PATIENCE)
    assert "no weights" in found.detail and "Bring some." in found.detail
    assert starts.read_text() == "xx"


def test_what_failed_can_be_mended_and_retried(
    supervise: Supervise, scripted: Callable[..., ProcessEngine], tmp_path: Path
) -> None:
    mended = tmp_path / "mended"
    source = f"import os\nif not os.path.exists({str(mended)!r}): raise SystemExit(1)\n{GOOD}"
    supervisor = supervise(lambda: scripted(source))
    assert supervisor.wait_for(Standing.FAILED, timeout=PATIENCE).standing is Standing.FAILED
    mended.touch()
    supervisor.retry()
    ready(supervisor)


def test_one_that_comes_up_and_dies_is_never_left_alone(
    supervise: Supervise, scripted: Callable[..., ProcessEngine]
) -> None:
    short_lived = GOOD.replace("child.wait_for_parent()", "import os\nos._exit(1)")
    policy = dataclasses.replace(QUICK, same_failures=2, same_refusals=2)
    supervisor = supervise(lambda: scripted(short_lived), policy)
    _until(lambda: supervisor.snapshot.restarts > 3)
    assert supervisor.snapshot.standing is not Standing.FAILED


class _Failing(Engine):
    """Never comes up, each time for another reason."""

    starts: list[float]

    def start(self) -> Endpoint:
        self.starts.append(time.monotonic())
        raise EngineStartError(f"reason {len(self.starts)}")

    def health(self) -> Health:
        return Health(state=State.STOPPED)

    def stop(self) -> None:
        pass

    @property
    def pid(self) -> int | None:
        return None


def test_pauses_double_up_to_a_limit(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    _Failing.starts = []
    policy = Policy(first_pause=0.05, longest_pause=0.2)
    supervisor = supervise(lambda: _Failing(EngineSpec(name="failing")), policy)
    _until(lambda: len(_Failing.starts) >= 6)
    supervisor.stop()
    pauses = [after - before for before, after in pairwise(_Failing.starts)][:5]
    # A machine may take longer than it was told to wait, never less.
    assert all(pause >= told for pause, told in zip(pauses, [0.05, 0.1, 0.2, 0.2, 0.2], strict=True)), pauses


def test_a_silent_engine_is_started_again(supervise: Supervise, scripted: Callable[..., ProcessEngine]) -> None:
    policy = dataclasses.replace(QUICK, patience=0.1)
    supervisor = supervise(lambda: scripted(stop_timeout_s=0.2), policy)
    first = ready(supervisor)
    psutil.Process(first.pid).suspend()
    found = supervisor.wait_for(Standing.BACKOFF, timeout=PATIENCE)
    assert "not answered" in found.detail
    assert ready(supervisor).pid != first.pid
    assert not psutil.pid_exists(first.pid)


def test_stop_ends_a_start_that_waits(supervise: Supervise, scripted: Callable[..., ProcessEngine]) -> None:
    made: list[ProcessEngine] = []

    def make() -> ProcessEngine:
        waiting = "from pressroom.engines import child\nimport time\nchild.read_spec()\ntime.sleep(3600)"
        made.append(scripted(waiting))
        return made[-1]

    supervisor = supervise(make)
    _until(lambda: bool(made) and made[0].pid is not None)
    pid = made[0].pid
    assert pid is not None
    supervisor.stop()
    assert not psutil.pid_exists(pid)
    assert supervisor.snapshot.standing is Standing.STOPPED


def test_stop_ends_a_pause(supervise: Supervise) -> None:
    _Failing.starts = []
    supervisor = supervise(lambda: _Failing(EngineSpec(name="failing")), Policy(first_pause=3600, longest_pause=3600))
    assert supervisor.wait_for(Standing.BACKOFF, timeout=PATIENCE).standing is Standing.BACKOFF
    supervisor.stop()
    assert len(_Failing.starts) == 1


def test_stop_at_any_moment_leaves_nothing(scripted: Callable[..., ProcessEngine]) -> None:
    pids: list[int] = []

    def note(snapshot: Snapshot) -> None:
        if snapshot.endpoint is not None:
            pids.append(snapshot.endpoint.pid)

    for delay in (0.0, 0.005, 0.02, 0.05, 0.1, 0.15):
        supervisor = Supervisor(scripted, policy=QUICK, on_change=note)
        supervisor.start()
        time.sleep(delay)
        supervisor.stop()
        assert supervisor.snapshot.standing is Standing.STOPPED
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not [child for child in psutil.Process().children() if "child" in " ".join(child.cmdline())]
    assert not [thread for thread in threading.enumerate() if thread.name == "engine-supervisor"]


def test_a_backend_that_breaks_its_promises_is_an_engine_that_failed(
    supervise: Supervise, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Engine:
        raise ZeroDivisionError("a backend's own fault")

    found = supervise(broken).wait_for(Standing.FAILED, timeout=PATIENCE)
    assert "ZeroDivisionError" in found.detail and "a backend's own fault" in caplog.text


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
