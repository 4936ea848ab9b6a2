"""When the server ran, by which a machine's price an hour becomes money: written once a minute, so that `kill -9` and a
power cut lose a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import sqlalchemy as sa

from pressroom.kernel import PressroomError, Workspace

_log = logging.getLogger(__name__)

#: Seconds between two beats.
BEAT_S = 60.0
# The clock of the day and the one that only runs may differ by this much between two beats; beyond it the clock was
# set, or the machine slept.
_AGREE_S = 5.0

_metadata = sa.MetaData()
_powered = sa.Table(
    "powered",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("machine", sa.String(200), nullable=False),
    # In seconds since the epoch.
    sa.Column("started", sa.Float, nullable=False, index=True),
    sa.Column("last", sa.Float, nullable=False, index=True),
)


def _first_table(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


class Powered:
    """The record of one workspace. The server makes one when it starts and calls `beat` once a minute and when it
    stops, on any one thread; whoever reports asks for `seconds`.

    `clock` and `running` are the clock of the day and the one that only goes forward and stands still while the machine
    sleeps.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        machine: str = "",
        clock: Callable[[], float] = time.time,
        running: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = workspace.database
        self._database.migrate("powered", (_first_table,))
        self._machine = machine[:200]
        self._clock, self._running = clock, running
        self._row: int | None = None
        self._last = 0.0
        self._beaten = 0.0

    def beat(self) -> None:
        """The server runs. What cannot be written is written by the next beat; nothing is raised."""
        now, running = self._clock(), self._running()
        try:
            with self._database.begin() as connection:
                row = self._written(connection, now, running)
        except PressroomError as error:
            _log.warning("that the server runs is not noted: %s", error)
            return
        self._row, self._last, self._beaten = row, now, running

    def _written(self, connection: sa.Connection, now: float, running: float) -> int:
        ran = running - self._beaten
        if self._row is not None:
            steady = abs(now - self._last - ran) <= _AGREE_S
            ended = now if steady else self._last + ran
            connection.execute(_powered.update().where(_powered.c.id == self._row).values(last=ended))
            if steady:
                return self._row
        made = connection.execute(_powered.insert().values(machine=self._machine, started=now, last=now))
        assert made.inserted_primary_key is not None
        return int(made.inserted_primary_key[0])

    def seconds(self, since: float, until: float) -> float:
        """For how long servers ran between two moments (seconds since the epoch). Two machines on one database count
        twice: both are paid."""
        return sum(end - begin for begin, end in self.spans(since, until))

    def spans(self, since: float, until: float) -> list[tuple[float, float]]:
        """From when to when servers ran between two moments."""
        rows = _powered.c
        query = sa.select(rows.started, rows.last).where(rows.last > since, rows.started < until).order_by(rows.id)
        with self._database.reading() as connection:
            return [(max(row.started, since), min(row.last, until)) for row in connection.execute(query)]
