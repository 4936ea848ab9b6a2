"""Folds a journal into the database: rows, spending and how far it was read, in one transaction.

A kill at any moment leaves either none or all of a batch in the database, and the place in the journal with it: nothing
is counted twice, nothing is left out. The place in the database is the truth, also when that is replaced by a backup.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, ProgrammingError, StatementError

from pressroom.gateway.ledger import _tables as tables
from pressroom.gateway.ledger._aside import Aside
from pressroom.gateway.ledger._reading import PIECE, REST_S, Batch, Place, read_batch
from pressroom.gateway.ledger._segments import numbers, path_of
from pressroom.gateway.ledger._spending import Sums
from pressroom.gateway.ledger._tables import COLUMNS, FURTHER, REQUEST
from pressroom.gateway.ledger.base import Counted, Opened, Outcome, Row
from pressroom.kernel import WorkspaceError
from pressroom.kernel.database import Database

_log = logging.getLogger(__name__)

#: Seconds that a request which was lost with its process is told of by `lost_requests`.
LOST_S = 86_400.0

_ID, _AT = COLUMNS.index("id"), COLUMNS.index("at")
_KEY, _TEAM, _MODEL = COLUMNS.index("key"), COLUMNS.index("team"), COLUMNS.index("model")
_PROMPT, _COMPLETION = COLUMNS.index("prompt_tokens"), COLUMNS.index("completion_tokens")
_COUNTED, _NANO, _CACHE = COLUMNS.index("counted"), COLUMNS.index("nano_usd"), COLUMNS.index("cache")
_LANGUAGE = COLUMNS.index("language")
_NONE = str(Counted.NONE)
_NO_TEXTS = (None, None)
_INSERTED = (*COLUMNS, *FURTHER)
_INSERT = tables.ledger.insert()
_MANY_TOKENS = 1 << 40
_MUCH_MONEY = tables.MUCH_MONEY
_LATEST = 1e11
# Records of a transaction beside an event loop, and without one.
_SMALL, _LARGE = 4_096, 8_192
# What drivers say of a value that they or a column cannot take.
_UNFIT = (DataError, InterfaceError, ProgrammingError)


class Fold:
    """One journal's way into the database. Used by one thread at a time.

    With `gentle` it gives way to an event loop beside it every few rows.
    """

    def __init__(self, database: Database, folder: Path, journal: str, *, aside: Aside | None = None) -> None:
        """`journal` is the name of the journal in this folder; `aside` has what goes into rows beside it."""
        self._database = database
        self._folder = folder
        self._journal = journal
        self._aside = aside
        self._place: Place | None = None
        self._pending: dict[str, Opened] = {}
        # Of those, the ones that are in the table of open requests.
        self._carried: set[str] = set()
        #: Rows added by this object, and stretches of the journal that could not be read.
        self.rows = 0
        self.damaged = 0

    @property
    def place(self) -> Place:
        """How far the journal is in the database, as this object knows."""
        return self._place or (0, 0)

    def step(self, until: Place | None, *, gentle: bool = False) -> int:
        """Fold the next batch, to `until` at most (None: to the end of what is there), and remove the segments that are
        done with. The number of records read; 0 where there was nothing.

        Raises:
            WorkspaceError: the database cannot be used now; nothing happened.
        """
        if self._place is None:
            self._find_place()
        assert self._place is not None
        if until is not None and until <= self._place:
            return 0
        batch = self._read(self._place, until, gentle=gentle)
        if batch.end == self._place:
            return 0
        self._commit(batch, (), gentle=gentle)
        return max(1, batch.count)

    def recover(self) -> int:
        """Fold all that is there of a process that has ended; requests without a row are rows with the outcome `lost`
        then. How many rows there were in all.

        Raises:
            WorkspaceError: the database cannot be used; what is folded is folded, and the rest can be later.
        """
        before = self.rows
        self._find_place()
        while self.step(None):
            pass
        held = numbers(self._folder)
        if held or self._pending:
            assert self._place is not None
            behind = max([self._place[0], *held]) + 1
            self._commit(Batch(self._place, (behind, 0)), tuple(self._pending.values()))
        return self.rows - before

    def finish(self) -> bool:
        """After a writer has ended in order: remove its segments if all is folded and nothing is open any more. Whether
        that is so."""
        if self._pending or self._place is None:
            return False
        left = self._read(self._place, None)
        if left.rows or left.opened:
            return False
        for number in numbers(self._folder):
            path_of(self._folder, number).unlink(missing_ok=True)
        return True

    def _read(self, start: Place, until: Place | None, *, gentle: bool = False) -> Batch:
        try:
            return read_batch(self._folder, start, until, most=_SMALL if gentle else _LARGE, gentle=gentle)
        except OSError as error:
            raise WorkspaceError(
                f"the ledger's journal in {self._folder} cannot be read: {error.strerror}",
                hint="Let the user that runs the server own it; check the disk.",
            ) from error

    def _find_place(self) -> None:
        """Take the place from the database, and what was open there from the journal before it."""
        journal = tables.journals.c.journal == self._journal
        with self._database.reading() as connection:
            found = connection.execute(
                sa.select(tables.journals.c.segment, tables.journals.c.position).where(journal)
            ).one_or_none()
            carried = connection.execute(
                sa.select(tables.opened).where(tables.opened.c.journal == self._journal, tables.opened.c.lost.is_(None))
            ).all()
        place = (found.segment, found.position) if found is not None else (0, 0)
        self._pending = {row.id: _opened(row) for row in carried}
        self._carried = set(self._pending)
        at: Place = (place[0], 0)
        while at < place:
            batch = self._read(at, place)
            if batch.end == at:
                break
            for row in batch.rows:
                self._pending.pop(row[_ID], None)
            self._pending.update(batch.opened)
            at = batch.end
        self._place = place

    def _commit(self, batch: Batch, lost: tuple[Opened, ...], *, gentle: bool = False) -> None:
        closed = {row[_ID] for row in batch.rows}
        opened = batch.opened
        gone = closed & self._carried
        carry: dict[str, Opened] = {}
        if batch.end[0] > batch.start[0]:
            # Their segment goes: they are kept in the database until their row comes.
            carry = {id: request for id, request in {**self._pending, **opened}.items() if id not in self._carried}
            carry = {id: request for id, request in carry.items() if id not in closed}
        try:
            self._write(batch, gone, carry, lost, gentle=gentle)
        except (IntegrityError, OverflowError, WorkspaceError, StatementError) as error:
            if isinstance(error, WorkspaceError) and not isinstance(error.__cause__, _UNFIT):
                raise
            # Something in it does not fit, whatever a vendor or a client made up: it is made to.
            _log.warning("a row does not fit the ledger's table and is cut: %s", error)
            try:
                self._write(batch, gone, carry, lost, gentle=gentle, fit=True)
            except (IntegrityError, OverflowError, StatementError) as again:
                raise WorkspaceError(
                    f"the ledger cannot be added to: {again}", hint="Another process may add to it at this moment."
                ) from again
        self.rows += len(batch.rows) + len(lost)
        self.damaged += batch.damaged
        for id in closed:
            self._pending.pop(id, None)
            if self._aside is not None:
                self._aside.forget(id)
        for request in lost:
            del self._pending[request.id]
        self._pending.update(opened)
        self._carried = (self._carried | carry.keys()) & self._pending.keys()
        self._place = batch.end
        if batch.end[0] > batch.start[0]:
            for number in numbers(self._folder):
                if number < batch.end[0]:
                    path_of(self._folder, number).unlink(missing_ok=True)

    def _write(
        self,
        batch: Batch,
        gone: set[str],
        carry: dict[str, Opened],
        lost: tuple[Opened, ...],
        *,
        gentle: bool,
        fit: bool = False,
    ) -> None:
        sums = Sums()
        now = time.time()
        rows = batch.rows + [_lost_row(request) for request in lost]
        with self._database.begin() as connection:
            self._move(connection, batch)
            for begin in range(0, len(rows), PIECE):
                piece = [self._completed(row, fit=fit) for row in rows[begin : begin + PIECE]]
                for row in piece:
                    if row[_COUNTED] != _NONE and not row[_CACHE]:
                        tokens = row[_PROMPT] + row[_COMPLETION]
                        sums.add(row[_KEY], row[_TEAM], row[_MODEL], row[_AT], tokens, row[_NANO])
                texts = [self._texts_of(row) for row in piece] if self._aside is not None else []
                _insert(connection, piece, now, texts)
                if gentle:
                    time.sleep(REST_S)
            sums.write(connection)
            ours = tables.opened.c.journal == self._journal
            # An id that was open here before, and lost, makes room for itself.
            for some in _parts(sorted(gone | carry.keys())):
                connection.execute(tables.opened.delete().where(ours & tables.opened.c.id.in_(some)))
            if carry:
                connection.execute(
                    tables.opened.insert(), [{"journal": self._journal, **_record(each)} for each in carry.values()]
                )
            if lost:
                connection.execute(tables.opened.update().where(ours, tables.opened.c.lost.is_(None)).values(lost=now))

    def _move(self, connection: sa.Connection, batch: Batch) -> None:
        """Go from where the batch begins to where it ends, if that is where the database is."""
        journals = tables.journals
        ours = journals.c.journal == self._journal
        found = connection.execute(
            sa.select(journals.c.segment, journals.c.position).where(ours).with_for_update()
        ).one_or_none()
        place = (found.segment, found.position) if found is not None else (0, 0)
        if place != batch.start:
            self._place = None  # looked for again with the next step
            raise WorkspaceError(
                f"the ledger's journal is at {place} in the database and at {batch.start} here",
                hint="The database was replaced, or a transaction was finished that seemed to have failed; it goes on "
                "from where the database is.",
            )
        segment, position = batch.end
        if found is None:
            connection.execute(journals.insert().values(journal=self._journal, segment=segment, position=position))
        else:
            connection.execute(journals.update().where(ours).values(segment=segment, position=position))

    def _completed(self, row: list[Any], *, fit: bool) -> list[Any]:
        """The row with all columns of a journal's, each as the database takes it."""
        if fit or len(row) != len(COLUMNS) or not _plain(row):
            row = _fitted(row)
        return row

    def _texts_of(self, row: list[Any]) -> tuple[str | None, str | None]:
        """What is kept of the texts of its request and its answer; its language goes into the row."""
        assert self._aside is not None
        known = self._aside.take(row[_ID])
        if known is None:
            return _NO_TEXTS
        if not row[_LANGUAGE]:
            row[_LANGUAGE] = known.language
        return known.prompt_text, known.answer_text


def lost_requests(database: Database) -> list[Opened]:
    """The requests that were lost with their process within the last day, so that what was held for them can be held
    until it expires. Those of before are forgotten.

    Raises:
        WorkspaceError: the database cannot be used.
    """
    with database.begin() as connection:
        connection.execute(tables.opened.delete().where(tables.opened.c.lost < time.time() - LOST_S))
        found = connection.execute(
            sa.select(tables.opened).where(tables.opened.c.lost.is_not(None)).order_by(tables.opened.c.at)
        ).all()
    return [_opened(row) for row in found]


def _insert(
    connection: sa.Connection, rows: list[list[Any]], recorded: float, texts: list[tuple[str | None, str | None]]
) -> None:
    """Add rows; `texts` are those of each, or nothing where there are none."""
    further = [(REQUEST, None, recorded, *each) for each in texts] or [(REQUEST, None, recorded, None, None)] * len(
        rows
    )
    dialect = connection.dialect
    if dialect.positional:
        # In one statement: between two of them a thread hands the interpreter over, and may wait milliseconds for it
        # beside a busy event loop. SQLAlchemy's own way takes three times as long: it looks at every value.
        values = tuple([value for row, more in zip(rows, further, strict=True) for value in (*row, *more)])
        connection.exec_driver_sql(_insertion(dialect, len(rows)), values)
    else:
        whole = [dict(zip(_INSERTED, (*row, *more), strict=True)) for row, more in zip(rows, further, strict=True)]
        connection.execute(_INSERT, whole)


@functools.lru_cache(maxsize=2 * PIECE)
def _insertion(dialect: sa.Dialect, rows: int) -> str:
    one = str(_INSERT.values({name: sa.bindparam(name) for name in _INSERTED}).compile(dialect=dialect))
    statement, values, marks = one.partition(" VALUES ")
    return f"{statement}{values}{', '.join([marks] * rows)}"


def _plain(row: list[Any]) -> bool:
    """Whether its sums can be made; the rest the database looks at."""
    prompt, completion, money, at = row[_PROMPT], row[_COMPLETION], row[_NANO], row[_AT]
    return (
        type(prompt) is int
        and type(completion) is int
        and type(money) is int
        and type(at) in _NUMBERS
        and 0 <= prompt < _MANY_TOKENS
        and 0 <= completion < _MANY_TOKENS
        and -_MUCH_MONEY <= money <= _MUCH_MONEY
        and 0 <= at < _LATEST
    )


_NUMBERS: tuple[type, ...] = (float, int)


def _fitted(row: list[Any]) -> list[Any]:
    values: list[Any] = [tables.fitted(name, value) for name, value in zip(COLUMNS, row, strict=False)]
    values += [tables.empty(name) for name in COLUMNS[len(values) :]]
    for index in (_PROMPT, _COMPLETION):
        values[index] = min(max(values[index], 0), _MANY_TOKENS)
    values[_AT] = min(max(values[_AT], 0.0), _LATEST)
    return values


def _lost_row(request: Opened) -> list[Any]:
    row = Row(request.id, request.at)
    row.key, row.team, row.model = request.key, request.team, request.model
    row.outcome = Outcome.LOST
    values = {name: getattr(row, name) for name in COLUMNS}
    return [tables.fitted(name, values[name]) for name in COLUMNS]


def _opened(row: sa.Row[Any]) -> Opened:
    return Opened(row.id, row.at, row.key, row.team, row.model, row.tokens, row.nano_usd)


def _record(request: Opened) -> dict[str, Any]:
    return {
        name: tables.fitted(name, getattr(request, name)) for name in ("id", "at", "key", "model", "nano_usd", "team")
    } | {"tokens": tables.fitted("prompt_tokens", request.tokens)}


def _parts(items: list[str], most: int = 500) -> Iterable[list[str]]:
    return (items[begin : begin + most] for begin in range(0, len(items), most))
