"""An engine as a child process, with children that keep to the agreement and children that do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pressroom.engines import EngineSpec, State, process
from pressroom.engines._log import EngineLog
from pressroom.engines.process import ProcessEngine
from pressroom.kernel import EngineStartError, MissingDependencyError

from .conftest import GOOD

Make = Callable[..., ProcessEngine]

NEVER_READY = "from pressroom.engines import child\nimport time\nchild.read_spec()\ntime.sleep(3600)"


def refused(engine: ProcessEngine) -> EngineStartError:
    with pytest.raises(EngineStartError) as caught:
        engine.start()
    assert engine.pid is None, "nothing is left of a start that failed"
    engine.stop()
    return caught.value


def test_the_report_becomes_the_endpoint(scripted: Make, tmp_path: Path) -> None:
    engine = scripted(context=77, slots=3)
    endpoint = engine.start()
    assert (endpoint.context, endpoint.slots, endpoint.version, endpoint.details) == (77, 3, "1", {})
    assert endpoint.url == f"http://127.0.0.1:{endpoint.port}"
    assert engine.health().state is State.READY
    while "and so does this" not in (tmp_path / "engine.log").read_text():
        time.sleep(0.01)
    assert "this goes to the log" in (tmp_path / "engine.log").read_text()
    engine.stop()
    assert not psutil.pid_exists(endpoint.pid)


def test_it_runs_once_at_a_time(scripted: Make) -> None:
    engine = scripted()
    pid = engine.start().pid
    with pytest.raises(EngineStartError, match="runs already"):
        engine.start()
    assert engine.pid == pid


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        ("import sys\nprint('no such thing', file=sys.stderr)\nsys.exit(3)", "exit status 3", "last lines"),
        ("import os\nos.kill(os.getpid(), 9)", "SIGKILL", "memory"),
        ("import os\nos.abort()", "SIGABRT", ""),
        ("from pressroom.engines import child\nchild.failed('no luck', hint='Try a coin.')", "no luck", "Try a coin."),
        ("import pressroom.no_such_module", "exit status 1", "last lines"),
        ("print('hello')", "something else than its report", ""),
        ("print('[1]')", "something else than its report", ""),
        ("import os, time\nos.close(1)\ntime.sleep(3600)", "without a report", ""),
        (NEVER_READY, "not ready after 1 s", "engines.start_timeout_s"),
    ],
)
def test_a_start_that_fails_says_why(scripted: Make, tmp_path: Path, source: str, message: str, hint: str) -> None:
    # Where the child never reports, this is what the test waits for; the others may need their time.
    patience = 1.0 if source == NEVER_READY else 60.0
    error = refused(scripted(source, start_timeout_s=patience))
    assert "'scripted'" in error.message and message in error.message
    assert hint in error.hint
    assert str(tmp_path / "engine.log") in error.hint


def test_the_last_lines_of_this_start_are_facts(scripted: Make, tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text("of an earlier start\n")
    error = refused(scripted("import sys\nfor i in range(99): print('line', i, file=sys.stderr)\nsys.exit(1)"))
    assert error.facts["lines"] == [f"line {i}" for i in range(84, 99)]
    assert (tmp_path / "engine.log").read_text().startswith("of an earlier start\n")
    silent = refused(scripted("raise SystemExit(1)"))
    assert silent.facts["lines"] == []


def test_lines_are_kept_for_the_error_without_a_log(scripted: Make) -> None:
    error = refused(scripted("import sys\nsys.exit('told you')", log=None))
    assert error.facts["lines"] == ["told you"]


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    class Missing(ProcessEngine):
        def command(self) -> list[str]:
            return [str(tmp_path / "no-such-program")]

    assert "no-such-program" in refused(Missing(EngineSpec(name="scripted"))).message


def test_a_library_that_is_not_there() -> None:
    class Missing(ProcessEngine):
        requires = ("no_such_library",)

    with pytest.raises(MissingDependencyError, match="no_such_library") as caught:
        Missing(EngineSpec(name="scripted")).start()
    assert "pip install" in caught.value.hint


def test_a_log_that_cannot_be_written(scripted: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(scripted(log=tmp_path / "file" / "engine.log")).message


def test_a_child_that_will_not_end_is_killed(scripted: Make) -> None:
    stubborn = GOOD.replace(
        "child.wait_for_parent()",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)",
    )
    engine = scripted(stubborn, stop_timeout_s=0.2)
    pid = engine.start().pid
    engine.stop()
    assert not psutil.pid_exists(pid)


# A child that starts two more, which ignore that it ends, and prints their numbers to its log.
_WITH_CHILDREN = GOOD.replace(
    "child.ready(",
    """import subprocess
stubborn = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here'); time.sleep(600)"
left = [subprocess.Popen([sys.executable, "-uc", stubborn], stdout=subprocess.PIPE) for _ in range(2)]
print("left", *[each.pid for each in left if each.stdout.readline()], flush=True)
child.ready(""",
)


def _left(log: Path) -> list[psutil.Process]:
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("left")]
    return [psutil.Process(int(pid)) for pid in line.split()[1:]]


@pytest.mark.parametrize("end", [None, signal.SIGTERM, signal.SIGKILL])
def test_what_a_child_leaves_in_its_session_is_ended_as_well(
    scripted: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals | None
) -> None:
    monkeypatch.setattr(process, "_LEFT_BEHIND_S", 0.2)
    engine = scripted(_WITH_CHILDREN)
    pid = engine.start().pid
    left = _left(tmp_path / "engine.log")
    assert len(left) == 2
    if end is not None:  # it dies, and is known to be dead before anybody stops it
        os.kill(pid, end)
        while engine.pid is not None:
            time.sleep(0.01)
        assert all(each.is_running() for each in left)
    engine.stop()
    assert not [each for each in left if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_a_session_that_ends_by_itself_is_left_to(scripted: Make, tmp_path: Path) -> None:
    # It takes half a second to put something away, as one does that keeps shared memory.
    tidy = "import os, sys, time; print('here'); os.read(0, 1); time.sleep(0.5); open(sys.argv[1], 'w').close()"
    source = GOOD.replace(
        "child.ready(",
        f"import subprocess\nargs = [sys.executable, '-uc', {tidy!r}, {str(tmp_path / 'away')!r}]\n"
        "left = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\nleft.stdout.readline()\n"
        "child.ready(",
    )
    engine = scripted(source)
    engine.start()
    engine.stop()
    assert (tmp_path / "away").exists()


def test_a_number_that_was_given_away_is_somebody_elses() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    process._end_session(other.pid)
    assert other.poll() is None
    assert other.stdin is not None
    other.stdin.close()
    other.wait()


def test_stop_ends_a_start_that_waits(scripted: Make) -> None:
    engine = scripted(NEVER_READY)
    failures: list[EngineStartError] = []

    def start() -> None:
        with pytest.raises(EngineStartError) as caught:
            engine.start()
        failures.append(caught.value)

    thread = threading.Thread(target=start)
    thread.start()
    while engine.pid is None:
        time.sleep(0.01)
    pid = engine.pid
    engine.stop()
    thread.join()
    assert "stopped while it started" in failures[0].message
    assert not psutil.pid_exists(pid)
    assert engine.health().state is State.STOPPED


def test_a_silent_engine_is_unresponsive(scripted: Make) -> None:
    engine = scripted()
    process = psutil.Process(engine.start().pid)
    process.suspend()
    health = engine.health()
    assert health.state is State.UNRESPONSIVE and "no answer to /health" in health.detail
    process.resume()
    assert engine.health().state is State.READY


def test_an_engine_that_says_it_is_ill_is_unresponsive(scripted: Make) -> None:
    engine = scripted(GOOD.replace("send_response(200)", "send_response(503)"))
    engine.start()
    health = engine.health()
    assert health.state is State.UNRESPONSIVE and "503" in health.detail


# What a parent does that is killed while its child loads a model, with the interpreter held by native code.
_PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "{}"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
"""
_CHILD = """
import ctypes
from pressroom.engines import child
child.read_spec()
print("loading", flush=True)   # to stderr, as stdout belongs to the report
ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the interpreter locked
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel says that a pipe was closed")
def test_a_child_that_loads_ends_with_its_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert parent.stdin and parent.stdout and parent.stderr
    with parent.stdin, parent.stdout, parent.stderr:
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stderr.readline() == b"loading\n"
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def test_the_log_stays_below_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "engine.log"
    log = EngineLog(path, limit=1000)
    writer = os.open(path, os.O_WRONLY | os.O_APPEND)  # as the child has it
    os.write(writer, b"old line\n" * 200 + b"the last\n")
    log.trim()
    assert path.stat().st_size == 0
    kept = (tmp_path / "logs" / "engine.log.1").read_bytes()
    assert len(kept) == 1000 and kept.endswith(b"the last\n")
    os.write(writer, b"new line\n")
    log.trim()
    assert path.read_bytes() == b"new line\n", "the writer goes on at the new end"
    assert log.tail() == ["new line"]
    os.close(writer)
    log.close()
