"""Locks between processes, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pressroom.kernel import LockedError
from pressroom.kernel.locks import holder, locked

_HOLD = """
import sys
from pathlib import Path
from pressroom.kernel.locks import locked
with locked(Path(sys.argv[1]), purpose="print the news"):
    print("held", flush=True)
    sys.stdin.read()
"""

Hold = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "press.lock"


@pytest.fixture
def hold(path: Path) -> Iterator[Hold]:
    """Start a process that holds the lock until its standard input ends."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def test_the_message_says_who_holds_it_and_what_for(path: Path, hold: Hold) -> None:
    other = hold()
    with pytest.raises(LockedError) as caught, locked(path, purpose="print the lies"):
        pytest.fail("two hold one lock")
    assert f"process {other.pid} holds press.lock to print the news" in caught.value.message
    assert "cannot print the lies" in caught.value.message
    assert caught.value.facts["holder"]["pid"] == other.pid
    assert caught.value.facts["lock"] == str(path)


def test_a_holder_that_ends_lets_go(path: Path, hold: Hold) -> None:
    other = hold()
    other.communicate()
    with locked(path, purpose="follow"):
        pass


def test_a_holder_that_is_killed_lets_go(path: Path, hold: Hold) -> None:
    other = hold()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder(path) is None
    with locked(path, purpose="follow"):
        described = path.read_text()
    assert str(os.getpid()) in described


def test_waiting_ends_when_the_holder_does(path: Path, hold: Hold) -> None:
    other = hold()
    assert other.stdin is not None
    threading.Timer(0.2, other.stdin.close).start()
    with locked(path, purpose="wait for it", wait_s=None):
        assert other.wait() == 0


def test_who_holds_it(path: Path, hold: Hold) -> None:
    assert holder(path) is None
    other = hold()
    found = holder(path)
    assert found is not None
    assert (found["pid"], found["purpose"]) == (other.pid, "print the news")
    other.communicate()
    assert holder(path) is None


def test_a_process_cannot_take_it_twice(path: Path) -> None:
    """Not re-entrant: a second try in the same process is refused, it does not dead-lock or share."""
    with (
        locked(path, purpose="once"),
        pytest.raises(LockedError, match=f"process {os.getpid()} holds"),
        locked(path, purpose="twice"),
    ):
        pytest.fail("held twice")


def test_an_error_inside_lets_go(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(path, purpose="fail"):
        _ = 1 / 0
    with locked(path, purpose="go on"):
        pass


def test_asking_who_holds_it_does_not_keep_others_out(path: Path) -> None:
    """`holder` has the file for an instant; somebody who takes the lock meanwhile must still get it."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            holder(path)
            time.sleep(0.001)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for _ in range(300):
            with locked(path, purpose="work"):
                pass
    finally:
        done.set()
        asker.join()


def test_a_child_does_not_inherit_it(path: Path) -> None:
    """A process that the holder started, and that outlives it, must not keep the lock."""
    program = f"""
import subprocess, sys
from pathlib import Path
from pressroom.kernel.locks import locked
with locked(Path({str(path)!r}), purpose="start a child"):
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=int(sys.argv[1]), stdout=subprocess.DEVNULL
    )
    print(child.pid, flush=True)
    import os; os._exit(0)
"""
    read_end, write_end = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, str(read_end)],
            pass_fds=[read_end],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(read_end)
    assert done.returncode == 0
    os.kill(int(done.stdout), 0)  # the child lives
    with locked(path, purpose="follow"):
        pass
    os.close(write_end)
