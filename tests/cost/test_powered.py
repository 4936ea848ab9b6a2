"""For how long servers ran: beats, kills, clocks that are set, and machines that sleep."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pressroom.cost import Powered
from pressroom.kernel import Workspace, WorkspaceError


class Clocks:
    """The clock of the day, and the one that stands still while the machine sleeps."""

    def __init__(self, day: float = 1_000_000.0) -> None:
        self.day = day
        self.running = 50.0

    def run(self, seconds: float) -> None:
        self.day += seconds
        self.running += seconds


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path) as opened:
        yield opened


def powered(workspace: Workspace, clocks: Clocks) -> Powered:
    return Powered(workspace, clock=lambda: clocks.day, running=lambda: clocks.running)


def test_beats_add_up_and_a_span_takes_its_part(workspace: Workspace) -> None:
    clocks = Clocks()
    one = powered(workspace, clocks)
    for _ in range(11):
        one.beat()
        clocks.run(60)
    assert one.seconds(0, 2e6) == 600
    assert one.seconds(1_000_060, 1_000_090) == 30
    assert one.seconds(1_000_590, 2e6) == 10
    assert one.seconds(1_000_600, 2e6) == one.seconds(0, 1_000_000) == 0


def test_what_was_off_does_not_count(workspace: Workspace) -> None:
    clocks = Clocks()
    for _ in range(3):  # three servers, an hour apart
        one = powered(workspace, clocks)
        one.beat()
        clocks.run(60)
        one.beat()
        clocks.run(3_600)
    assert powered(workspace, clocks).seconds(0, 2e6) == 180


@pytest.mark.parametrize("jump", [-86_400.0, -30.0, 30.0, 86_400.0, 1e9])
def test_a_clock_that_is_set_makes_no_hours(workspace: Workspace, jump: float) -> None:
    clocks = Clocks()
    one = powered(workspace, clocks)
    one.beat()
    clocks.run(60)
    one.beat()
    clocks.run(30)
    clocks.day += jump
    clocks.run(30)
    one.beat()
    clocks.run(60)
    one.beat()
    assert one.seconds(-1e12, 1e12) == 180


def test_a_machine_that_sleeps_is_off(workspace: Workspace) -> None:
    clocks = Clocks()
    one = powered(workspace, clocks)
    one.beat()
    clocks.run(60)
    clocks.day += 8 * 3_600
    one.beat()
    clocks.run(60)
    one.beat()
    assert one.seconds(0, 2e6) == 120


def test_a_beat_that_cannot_be_written_is_made_up_for(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clocks = Clocks()
    one = powered(workspace, clocks)
    one.beat()
    begin = workspace.database.begin

    def full() -> None:
        raise WorkspaceError("the disk is full")

    monkeypatch.setattr(workspace.database, "begin", full)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            clocks.run(60)
            one.beat()
    assert "the disk is full" in caplog.text
    monkeypatch.setattr(workspace.database, "begin", begin)
    clocks.run(60)
    one.beat()
    assert one.seconds(0, 2e6) == 360


def test_two_machines_on_one_database_are_both_paid(workspace: Workspace) -> None:
    clocks = Clocks()
    both = [powered(workspace, clocks), powered(workspace, clocks)]
    for _ in range(2):
        for one in both:
            one.beat()
        clocks.run(60)
    assert both[0].seconds(0, 2e6) == 120


def test_what_was_beaten_survives_kill_9(workspace: Workspace, tmp_path: Path) -> None:
    code = """
import sys, time
from pressroom.cost import Powered
from pressroom.kernel import Workspace
powered = Powered(Workspace.open(), machine="here")
powered.beat()
time.sleep(0.2)
powered.beat()
print("beaten", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "beaten\n"
        os.kill(child.pid, signal.SIGKILL)
    assert 0.15 < Powered(workspace).seconds(0, 1e11) < 60
    with workspace.database.reading() as connection:
        assert connection.execute(sa.text("select machine from powered")).scalars().all() == ["here"]
