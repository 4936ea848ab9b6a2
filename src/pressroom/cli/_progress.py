"""Long work on standard error: one line that is drawn again and again on a terminal, a line now and then in a log."""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

import click

from pressroom.cli._output import human_bytes
from pressroom.kernel import Note, Progress, Workspace

# A log gets a line this often at first, less often the longer it takes, and at least this often.
_PLAIN_S = 5.0
_PLAIN_SHARE = 0.05
_PLAIN_MOST_S = 60.0
# A terminal is drawn at most this often.
_REDRAW_S = 0.1
# The rate is that of the last seconds, older ones counting less and less; before a second has passed it means nothing.
_MEMORY_S = 5.0
_RATE_AFTER_S = 1.0
# Widths of the bar, the widest that fits is taken.
_BARS = (30, 20, 10, 0)
_LEAST_TASK = 12


class Pace:
    """How fast one piece of work goes on. What was done before it began, taken over from an earlier run, does not
    count. `clock` gives seconds."""

    def __init__(self, event: Progress, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = self._last = clock()
        self._first = event.done
        self._event = event
        self._weighted = self._weight = 0.0

    def add(self, event: Progress) -> None:
        now = self._clock()
        since = now - self._last
        if since > 0:
            rate = max(0, event.done - self._event.done) / since
            # Weighted by time, so that it does not matter in how many pieces the same work is told.
            keep = math.exp(-since / _MEMORY_S)
            self._weighted = keep * self._weighted + (1 - keep) * rate
            self._weight = keep * self._weight + (1 - keep)
            self._last = now
        self._event = event

    @property
    def seconds(self) -> float:
        return self._clock() - self._began

    @property
    def rate(self) -> float | None:
        """Units a second of late, None where it is too early to say."""
        return self._weighted / self._weight if self._weight and self.seconds >= _RATE_AFTER_S else None

    @property
    def mean(self) -> float | None:
        """Units a second from the beginning to the end."""
        return (self._event.done - self._first) / self.seconds if self.seconds >= _RATE_AFTER_S else None

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take as things are."""
        if self._event.total is None or not self.rate:
            return None
        return max(0, self._event.total - self._event.done) / self.rate


class ProgressLines:
    """Draws the events of a workspace while it is open (`with`)."""

    def __init__(
        self, workspace: Workspace, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._workspace = workspace
        self._quiet = quiet
        self._clock = clock
        self._stream: TextIO = sys.stderr
        self._terminal = self._stream.isatty()
        self._bar = _bar_signs(self._stream)
        self._lock = threading.Lock()
        self._paces: dict[str, Pace] = {}
        self._drawn_at = -math.inf
        self._drawn = ""

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
            self._leave_line()

    def _note(self, note: Note) -> None:
        with self._lock:
            self._erase()
            click.echo(f"  {note.text}", err=True)

    def _progress(self, event: Progress) -> None:
        with self._lock:
            new = event.task not in self._paces
            if new:
                self._paces[event.task] = Pace(event, self._clock)
                if not self._terminal:
                    self._drawn_at = self._clock()
            pace = self._paces[event.task]
            pace.add(event)
            finished = event.total is not None and event.done >= event.total
            if finished:
                del self._paces[event.task]
            now = self._clock()
            if self._terminal:
                if finished or new or now - self._drawn_at >= _REDRAW_S:
                    self._draw(line_of(event, pace, width=_width(self._stream), bar=self._bar))
                    self._drawn_at = now
                    if finished:
                        self._leave_line()
            elif finished or now - self._drawn_at >= min(_PLAIN_MOST_S, max(_PLAIN_S, _PLAIN_SHARE * pace.seconds)):
                click.echo(line_of(event, pace, width=None, bar=None), err=True)
                self._drawn_at = now

    def _draw(self, line: str) -> None:
        # Blanks over what is left of the line before, rather than an escape sequence: every terminal knows them.
        over = max(0, _columns(self._drawn) - _columns(line))
        click.echo("\r" + line + " " * over, nl=False, err=True)
        self._drawn = line

    def _erase(self) -> None:
        if self._drawn:
            click.echo("\r" + " " * _columns(self._drawn) + "\r", nl=False, err=True)
            self._drawn = ""

    def _leave_line(self) -> None:
        if self._drawn:
            click.echo("", err=True)
            self._drawn = ""


def line_of(event: Progress, pace: Pace, *, width: int | None, bar: tuple[str, str] | None) -> str:
    """One line on how far something is, in at most `width` columns (None: as long as it takes), with a bar of the two
    signs of `bar`. What matters least is left out first: the bar, then the rate, then the end of the task's name."""
    count = human_bytes if event.unit == "B" else _count
    finished = event.total is not None and event.done >= event.total
    share = min(1.0, event.done / event.total) if event.total else None
    rate = pace.mean if finished else pace.rate
    amount = count(event.done) if event.total is None or finished else f"{count(event.done)} of {count(event.total)}"
    if event.unit != "B":
        amount += f" {event.unit}"
    speed = f"{count(rate)}{'' if event.unit == 'B' else ' ' + event.unit}/s" if rate is not None else ""
    if finished:
        when = f"in {human_seconds(pace.seconds)}" if pace.seconds >= _RATE_AFTER_S else ""
    else:
        when = f"{human_seconds(pace.left_s)} left" if pace.left_s is not None else ""
    percent = f"{math.floor(100 * share):>3}%" if share is not None else ""
    tries = [
        (size, [percent, amount, speed, when]) for size in (_BARS if bar is not None and share is not None else (0,))
    ]
    tries += [(0, [percent, speed, when]), (0, [percent, when]), (0, [percent or amount])]
    for size, parts in tries:
        drawn = bar[0] * round((share or 0) * size) + bar[1] * (size - round((share or 0) * size)) if bar else ""
        rest = "  ".join(part for part in (drawn, *parts) if part)
        # One column stays free: writing into the last one makes some terminals begin a new line.
        room = None if width is None else width - 1 - 2 - 2 - len(rest)
        if room is None or room >= min(_columns(event.task), _LEAST_TASK):
            break
    task = event.task if room is None else _cut(event.task, max(0, room))
    line = f"  {task}  {rest}" if task else f"  {rest}"
    return line if width is None else line[: max(0, width - 1)]


def human_seconds(seconds: float) -> str:
    """42 s, 3:07 min, 2:05 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h" if whole < 100 * 3600 else f"{whole // 86400} days"


def _count(count: float) -> str:
    return f"{count:,}" if isinstance(count, int) else f"{count:,.2g}" if count < 10 else f"{count:,.0f}"


def _bar_signs(stream: TextIO) -> tuple[str, str]:
    try:
        "█░".encode(stream.encoding or "ascii")
    except (UnicodeError, LookupError):
        return "#", "."
    return "█", "░"


def _width(stream: TextIO) -> int:
    """Columns of the terminal; COLUMNS says otherwise where it is set."""
    try:
        known = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        known = 0
    return known if known and "COLUMNS" not in os.environ else shutil.get_terminal_size().columns


def _columns(text: str) -> int:
    """Columns that a text takes: two for the wide signs of East Asian scripts, none for marks that go with another."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def _cut(text: str, columns: int) -> str:
    """The text in at most so many columns, its end left out for '…'."""
    if _columns(text) <= columns:
        return text
    while text and _columns(text) > columns - 1:
        text = text[:-1]
    return text + "…" if columns > 0 else ""
