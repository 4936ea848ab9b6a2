"""What long work shows: on terminals of any width, in a log, and how it reckons the time left."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.cli._progress import Pace, ProgressLines, human_seconds, line_of
from pressroom.kernel import Note, Progress, Workspace

BAR = ("#", ".")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path, environ={}) as opened:
        yield opened


def at(done: int, total: int | None = 1000) -> Progress:
    return Progress("downloading tiny", done, total)


def test_what_was_here_before_is_no_speed() -> None:
    """A pull that goes on begins at a half; that half took it no time."""
    clock = Clock()
    pace = Pace(at(500), clock)
    pace.add(at(500))
    clock.now += 2
    pace.add(at(520))
    assert pace.rate == pytest.approx(10)
    assert pace.left_s == pytest.approx(48)
    assert pace.mean == pytest.approx(10)


def test_the_rate_follows_what_happens_and_forgets() -> None:
    clock = Clock()
    pace = Pace(at(0), clock)
    for second in range(1, 11):
        clock.now += 1
        pace.add(at(second * 10))
    assert pace.rate == pytest.approx(10)
    rates = []
    for _ in range(30):
        clock.now += 1
        pace.add(at(100))
        rates.append(pace.rate or 0.0)
    # A line that is dead is seen to be so, little by little.
    assert rates == sorted(rates, reverse=True) and 5 < rates[0] < 10 and rates[-1] < 0.1


def test_the_rate_is_the_same_in_how_many_pieces_it_is_told() -> None:
    clock, rates = Clock(), []
    for pieces in (1, 100):
        pace = Pace(at(0), clock)
        for moving in (50, 0):
            for piece in range(pieces):
                clock.now += 5 / pieces
                pace.add(at(round(moving * (piece + 1) / pieces) if moving else 50))
        rates.append(pace.rate)
    assert rates[0] == pytest.approx(rates[1], rel=0.05)


def test_time_that_goes_backwards_and_work_that_begins_anew() -> None:
    clock = Clock()
    pace = Pace(at(900), clock)
    clock.now += 2
    pace.add(at(0))
    assert pace.rate == 0 and pace.left_s is None
    clock.now -= 10
    pace.add(at(10))
    assert line_of(at(10), pace, width=80, bar=BAR)


@pytest.mark.parametrize("total", [None, 0, 5 * 10**11])
@pytest.mark.parametrize(
    "task", ["downloading HuggingFaceTB/SmolLM2-1.7B-Instruct", "x", "storing 模型模型模型模型模型模型"]
)
def test_no_line_is_wider_than_its_terminal(total: int | None, task: str) -> None:
    clock = Clock()
    pace = Pace(Progress(task, 0, total), clock)
    clock.now += 60
    event = Progress(task, 123_456_789, total)
    pace.add(event)
    for width in range(1, 140):
        line = line_of(event, pace, width=width, bar=BAR)
        assert "\n" not in line
        assert sum(2 if sign > "\u2e80" else 1 for sign in line) < max(width, 2)


def test_what_a_line_says() -> None:
    clock = Clock()
    pace = Pace(Progress("downloading tiny", 0, 4_000_000_000), clock)
    clock.now += 10
    event = Progress("downloading tiny", 1_000_000_000, 4_000_000_000)
    pace.add(event)
    assert line_of(event, pace, width=120, bar=BAR).split("  ") == [
        "",
        "downloading tiny",
        "########......................",
        " 25%",
        "1.0 GB of 4.0 GB",
        "100.0 MB/s",
        "30 s left",
    ]
    assert line_of(event, pace, width=50, bar=BAR) == "  downloading tiny   25%  100.0 MB/s  30 s left"
    assert line_of(event, pace, width=32, bar=BAR) == "  downloading…   25%  30 s left"
    done = Progress("downloading tiny", 4_000_000_000, 4_000_000_000)
    clock.now += 30
    pace.add(done)
    assert line_of(done, pace, width=None, bar=None) == "  downloading tiny  100%  4.0 GB  100.0 MB/s  in 40 s"
    endless = Progress("downloading tiny", 4_000_000_000)
    assert line_of(endless, pace, width=None, bar=None).startswith("  downloading tiny  4.0 GB  ")
    windows = Progress("measuring", 3, 8, unit="windows")
    assert "3 of 8 windows" in line_of(windows, Pace(windows, clock), width=None, bar=None)


def test_seconds() -> None:
    assert [human_seconds(s) for s in (0, 59.4, 60, 187, 3599.6, 7500, 10**7)] == [
        "0 s",
        "59 s",
        "1:00 min",
        "3:07 min",
        "1:00 h",
        "2:05 h",
        "115 days",
    ]


def test_a_log_gets_a_line_now_and_then(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressLines(workspace, clock=clock):
        for second in range(101):
            clock.now += 1
            workspace.events.emit(at(second * 10))
            if second == 50:
                workspace.events.emit(Note("left out a.bin: it is a pickle"))
    lines = capsys.readouterr().err.splitlines()
    assert "  left out a.bin: it is a pickle" in lines
    shown = [line for line in lines if "downloading" in line]
    assert 5 <= len(shown) <= 21 and "100%" in shown[-1]
    assert not any("\r" in line or "\x1b" in line or "█" in line for line in lines)


def test_nothing_is_said_where_nobody_reads(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLines(workspace, quiet=True):
        workspace.events.emit(at(1000))
    assert capsys.readouterr() == ("", "")


_ON_A_TERMINAL = """
import sys, time
from pathlib import Path
from pressroom.cli._progress import ProgressLines
from pressroom.kernel import Note, Progress, Workspace

with Workspace.open(Path(sys.argv[1]), environ={}) as workspace, ProgressLines(workspace):
    for done in range(0, 1001, 100):
        workspace.events.emit(Progress("downloading a model with quite a long name", done * 1000, 1000_000))
        time.sleep(0.02)
        if done == 500:
            workspace.events.emit(Note("left out a.bin"))
    workspace.events.emit(Progress("storing", 5, 10))
"""


@pytest.mark.parametrize("columns", [24, 80])
@pytest.mark.parametrize("more", [{}, {"NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_on_a_terminal(tmp_path: Path, columns: int, more: dict[str, str]) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | more
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_A_TERMINAL, str(tmp_path)], stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    raw = b""
    try:
        while chunk := os.read(ours, 65536):
            raw += chunk
    except OSError:  # how Linux says that the other end was closed
        pass
    finally:
        os.close(ours)
    assert process.wait() == 0
    text = raw.decode()
    screen = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    assert all(len(drawn) < columns for line in text.split("\n") for drawn in line.split("\r"))
    assert "\x1b" not in text
    # The note stands alone, the finished line stays, and the one that was under way ends where it was.
    assert screen[0] == "  left out a.bin" and "100%" in screen[1] and " 50%" in screen[2]
    assert screen[3:] == [""]
