"""Long work in the terminal: a line that grows where there is one, plain lines where there is not."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

import click

from pressroom.cli._output import human_bytes
from pressroom.kernel import Note, Progress, Workspace

# A log file gets a line when this much more of the work is done, and no more often than this.
_PLAIN_STEP = 0.25
_PLAIN_SECONDS = 5.0
# A terminal is redrawn at most this often.
_REDRAW_S = 0.1
_BAR = 24


class ProgressLines:
    """Draws the events of a workspace on standard error while it is open (`with`)."""

    def __init__(self, workspace: Workspace, *, quiet: bool = False) -> None:
        self._workspace = workspace
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._task = ""
        self._began = 0.0
        self._drawn = 0.0
        self._drawn_share = 0.0
        self._open = False

    def __enter__(self) -> ProgressLines:
        if not self._quiet:
            self._ends = [
                self._workspace.events.subscribe(Progress, self._progress),
                self._workspace.events.subscribe(Note, self._note),
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._quiet:
            for end in self._ends:
                end()
            self._close_line()

    def _note(self, note: Note) -> None:
        with self._lock:
            self._close_line()
            click.echo(f"  {note.text}", err=True)

    def _progress(self, event: Progress) -> None:
        with self._lock:
            now = time.monotonic()
            if event.task != self._task:
                self._close_line()
                self._task, self._began, self._drawn, self._drawn_share = event.task, now, 0.0, 0.0
            finished = event.total is not None and event.done >= event.total
            share = event.done / event.total if event.total else 0.0
            if self._terminal:
                if finished or now - self._drawn >= _REDRAW_S:
                    click.echo("\r\x1b[K  " + self._line(event, now, share), nl=False, err=True)
                    self._drawn, self._open = now, True
                    if finished:
                        self._close_line()
                        self._task = ""
            elif finished or (share - self._drawn_share >= _PLAIN_STEP and now - self._drawn >= _PLAIN_SECONDS):
                click.echo("  " + self._line(event, now, share, bar=False), err=True)
                self._drawn, self._drawn_share = now, share
                if finished:
                    self._task = ""

    def _line(self, event: Progress, now: float, share: float, *, bar: bool = True) -> str:
        taken = max(now - self._began, 1e-9)
        if event.unit == "B":
            done, rate = human_bytes(event.done), f"{human_bytes(event.done / taken)}/s"
            total = human_bytes(event.total) if event.total else ""
        else:
            done, rate = f"{event.done:,}", f"{event.done / taken:,.2g} {event.unit}/s"
            total = f"{event.total:,} {event.unit}" if event.total else ""
        parts = [event.task]
        if bar and event.total:
            full = round(min(share, 1.0) * _BAR)
            parts.append("█" * full + "░" * (_BAR - full))
        parts.append(f"{done} of {total}" if total else done)
        if taken >= 1:
            parts.append(rate)
            if bar and 0 < share < 1:
                parts.append(f"{taken / share - taken:.0f} s left")
        return "  ".join(parts)

    def _close_line(self) -> None:
        if self._open:
            click.echo("", err=True)
            self._open = False
