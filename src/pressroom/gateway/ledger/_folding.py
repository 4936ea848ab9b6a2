"""The thread that folds: four times a second, and again later where the database is away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from pressroom.gateway.ledger import _tables as tables
from pressroom.gateway.ledger._aside import Aside
from pressroom.gateway.ledger._fold import Fold
from pressroom.gateway.ledger._reading import Place
from pressroom.kernel import PressroomError
from pressroom.kernel.database import Database
from pressroom.kernel.interpreter import give_way

_log = logging.getLogger(__name__)

_EVERY_S = 0.25
_PATIENCE_S = 5.0
_SAID_S = 60.0
_DAY_S = 86_400.0
_OLD_EVERY_S = 3_600.0
# A clock that went by more than this beside the other one was set.
_SET_S = 600.0
_OLD_AT_ONCE = 5_000


class Folding:
    """Runs `fold` up to where the journal is written. All methods may be called from any thread."""

    def __init__(
        self, fold: Fold, written: Callable[[], Place], aside: Aside, database: Database, *, keep_days: int
    ) -> None:
        self._fold = fold
        self._written = written
        self._aside = aside
        self._old = OldRows(database, keep_days)
        self._wake = threading.Event()
        self._turn = threading.Condition()
        self._place: Place = (0, 0)
        self._stopping = False
        self._said = ("", 0.0)
        self._thread = threading.Thread(target=self._run, name="ledger-fold", daemon=True)
        #: Times that the database could not be used, or something else went wrong.
        self.failures = 0

    def start(self) -> None:
        self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Fold what is written by now. False where that was not possible in this time; it goes on by itself."""
        wanted = self._written()
        self._wake.set()
        deadline = time.monotonic() + timeout_s
        with self._turn:
            while self._place < wanted and self._thread.is_alive():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._turn.wait(left)
            return self._place >= wanted

    def stop(self, timeout_s: float) -> bool:
        """Fold what is written, and end the thread. False where the database did not take all of it in this time."""
        done = self.flush(timeout_s)
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return done and not self._thread.is_alive()

    def _run(self) -> None:
        give_way()
        pause = _EVERY_S
        while not self._stopping:
            self._wake.wait(pause)
            self._wake.clear()
            pause = _EVERY_S if self._go() else min(_PATIENCE_S, 2 * pause)

    def _go(self) -> bool:
        """Fold what there is. False where that failed."""
        try:
            until = self._written()
            self._aside.work()
            while self._fold.step(until, gentle=True):
                if self._stopping:
                    break
            with self._turn:
                self._place = self._fold.place
                self._turn.notify_all()
            self._old.remove()
            return True
        except PressroomError as error:
            self._say(str(error))
        except Exception as error:  # the edge of a thread: the next try may succeed  # noqa: BLE001
            _log.exception("the ledger cannot be folded")
            self._say(str(error))
        self.failures += 1
        return False

    def _say(self, trouble: str) -> None:
        """Log what is wrong with the database: the same once a minute."""
        now = time.monotonic()
        if trouble != self._said[0] or now > self._said[1] + _SAID_S:
            _log.error("rows of the ledger wait in its journal: %s", trouble)
            self._said = (trouble, now)


class OldRows:
    """Removes the rows older than `keep_days`, once an hour, some thousand at a time; what was spent stays. Not in the
    first hour, and not in the hour after the clock was set: a wrong year must not cost what is on record."""

    def __init__(self, database: Database, keep_days: int) -> None:
        self._database = database
        self._keep_s = keep_days * _DAY_S
        self._since = time.monotonic()
        self._ahead = time.time() - self._since

    def remove(self) -> int:
        """As described; how many. Raises WorkspaceError."""
        if not self._keep_s:
            return 0
        now = time.monotonic()
        ahead = time.time() - now
        if abs(ahead - self._ahead) > _SET_S:
            self._ahead = ahead
            self._since = now
        if now < self._since + _OLD_EVERY_S:
            return 0
        removed = remove_older(self._database, time.time() - self._keep_s, most=_OLD_AT_ONCE)
        if removed < _OLD_AT_ONCE:
            self._since = now
        return removed


def remove_older(database: Database, at: float, *, most: int) -> int:
    """Remove rows of requests before `at`, the oldest first. How many. Raises WorkspaceError."""
    ledger = tables.ledger
    oldest = sa.select(ledger.c.number).where(ledger.c.at < at).order_by(ledger.c.at).limit(most)
    with database.begin() as connection:
        return connection.execute(ledger.delete().where(ledger.c.number.in_(oldest.scalar_subquery()))).rowcount
