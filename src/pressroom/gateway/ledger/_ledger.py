"""The ledger of one gateway process: a journal that the event loop writes, and a thread that folds it."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack

import orjson

from pressroom.gateway.ledger import _tables as tables
from pressroom.gateway.ledger._aside import Aside
from pressroom.gateway.ledger._fold import Fold, lost_requests
from pressroom.gateway.ledger._folding import Folding
from pressroom.gateway.ledger._frames import HEADER_BYTES, MOST
from pressroom.gateway.ledger._journal import Journal
from pressroom.gateway.ledger._segments import (
    FOLDER,
    Allocate,
    allocate,
    columns_record,
    folder_of,
    identity_of,
    made_identity,
    workers,
)
from pressroom.gateway.ledger._tables import COLUMNS
from pressroom.gateway.ledger._users import open_users
from pressroom.gateway.ledger.base import Ledger, Opened, Row
from pressroom.kernel import LockedError, Workspace, WorkspaceError

_log = logging.getLogger(__name__)

_FITS = MOST - HEADER_BYTES
# Another process that starts at the same moment may recover first.
_RECOVERY_WAIT_S = 60.0
_STOP_S = 10.0

_dumps = orjson.dumps


class JournalLedger(Ledger):
    """Made by `open_ledger`. `opened` and `append` belong to one thread, the event loop's; the rest to any.

    `recover()` first, then `start()`; `stop()` at the end.
    """

    def __init__(self, workspace: Workspace, worker: int, allocate: Allocate, held: ExitStack) -> None:
        settings = workspace.settings.ledger
        self._workspace = workspace
        self._root = workspace.path(FOLDER)
        self._worker = worker
        self._held = held
        self._folder = folder_of(self._root, worker)
        self._folder.mkdir(exist_ok=True, mode=0o700)
        self._identity = made_identity(self._folder)
        self._users = open_users(self._root)
        self._known_users = self._users.known
        self._aside = Aside(content=settings.content, language=settings.language)
        self._aside_on = self._aside.on
        self._recovered = self._started = False
        columns = columns_record(COLUMNS)
        database = workspace.database
        self._fold = Fold(database, self._folder, self._identity, aside=self._aside)
        self._journal = Journal(
            self._folder,
            settings.segment_bytes,
            columns,
            first=self._behind(),
            allocate=allocate,
            restore=self._restore,
        )
        self._put_opened = self._journal.put_opened
        self._put_row = self._journal.put_row
        self._folding = Folding(self._fold, self._journal.position, self._aside, database, keep_days=settings.keep_days)

    def recover(self, *, others: bool = True) -> list[Opened]:
        """Fold what processes that have ended left in their journals, this one's before it and, but for `others`, other
        workers'. What is given back are the requests that were lost so within the last day: nobody knows what they came
        to.

        Raises:
            WorkspaceError: the database cannot be used. LockedError where another process recovers for a minute.
        """
        database = self._workspace.database
        with self._workspace.lock("ledger-recovery", purpose="fold the ledger's journals", wait_s=_RECOVERY_WAIT_S):
            for worker in workers(self._root) if others else [self._worker]:
                if worker == self._worker:
                    self._recover_one(worker)
                    continue
                try:
                    with _writing(self._workspace, worker):
                        self._recover_one(worker)
                except LockedError:
                    continue  # it lives
            self._recovered = True
            return lost_requests(database)

    def start(self) -> None:
        """Make the first segment and let the fold begin."""
        if not self._recovered:
            self.recover()
        self._journal.start()
        self._folding.start()
        self._started = True

    def stop(self, *, timeout_s: float = _STOP_S) -> bool:
        """Fold what is left and let go of the journal. False where the database did not take it: it is in the journal,
        and folded at the next start. A second call does nothing."""
        done = True
        if self._started:
            self._started = False
            self._journal.close()
            done = self._folding.stop(timeout_s)
            if done:
                self._fold.finish()
        self._held.close()
        return done

    def flush(self, timeout_s: float = _STOP_S) -> bool:
        """Have all rows that were appended by now in the database. False where it did not take them in this time."""
        return self._folding.flush(timeout_s)

    def opened(self, id: str, at: float, key: str, team: str, model: str, tokens: int, nano_usd: int) -> bool:
        try:
            payload = _dumps((id, at, key, team, model, tokens, nano_usd))
        except TypeError:
            payload = b""
        if len(payload) > _FITS or not payload:
            payload = _dumps(_fitted_opened(id, at, key, team, model, tokens, nano_usd))
        return self._put_opened(id, payload)

    def append(self, row: Row) -> bool:
        user = row.user
        if user:
            user = (self._known_users.get(user) or self._users.hashed(user)) if type(user) is str else ""
        if self._aside_on and row.prompt is not None:
            self._aside.put(row.id, row.prompt, row.answer)
        verdicts = row.verdicts
        values = (
            row.id, row.at, row.key, row.team, user, row.tag, row.model, row.branch, row.ref, row.digest, row.engine,
            row.door, row.stream, row.shadow, row.status, row.outcome._value_, row.prompt_tokens, row.cached_tokens,
            row.completion_tokens, row.counted._value_, row.nano_usd, row.first_s, row.total_s, row.tries, row.cache,
            row.language, ",".join(verdicts) if verdicts else "",
        )  # fmt: skip
        try:
            payload = _dumps(values)
        except TypeError:  # half a character, or a number beyond 64 bits
            payload = b""
        if len(payload) > _FITS or not payload:
            payload = _dumps([tables.fitted(name, value) for name, value in zip(COLUMNS, values, strict=True)])
            if len(payload) > _FITS:
                payload = _dumps([_short(value) for value in values])
        return self._put_row(row.id, payload)

    @property
    def full(self) -> bool:
        """Whether nothing can be opened now, because the disk is full."""
        return self._journal.full

    @property
    def rows(self) -> int:
        """Rows written down since the start."""
        return self._journal.rows

    @property
    def unfolded(self) -> int:
        """Of those, the ones that are not in the database yet; and the rows in memory that no disk has."""
        if self._fold.place >= self._journal.position():
            # A transaction that was finished although it seemed to fail was not counted.
            self._before = self._fold.rows - self._journal.rows
        return max(0, self._journal.rows - (self._fold.rows - self._before)) + self._journal.waiting

    @property
    def lost_rows(self) -> int:
        """Rows that were given up, because the disk was full and too many waited in memory."""
        return self._journal.lost

    @property
    def damaged(self) -> int:
        """Stretches of journals that could not be read."""
        return self._fold.damaged + self._damaged_elsewhere

    @property
    def failures(self) -> int:
        """Times that the database did not take rows; they wait in the journal."""
        return self._folding.failures

    @property
    def hurried(self) -> int:
        """Requests whose language was not looked for, to spare the processor."""
        return self._aside.hurried

    @property
    def left_out(self) -> int:
        """Requests whose text and language were not held, because too many waited."""
        return self._aside.left_out

    @property
    def open_requests(self) -> int:
        """Requests that were opened and have no row yet."""
        return self._journal.open_requests

    _before = 0
    _damaged_elsewhere = 0

    def _recover_one(self, worker: int) -> None:
        if worker == self._worker:
            found = self._fold.recover()
            self._before = self._fold.rows
        else:
            folder = folder_of(self._root, worker)
            identity = identity_of(folder)
            if identity is None:
                return
            fold = Fold(self._workspace.database, folder, identity)
            found = fold.recover()
            self._damaged_elsewhere += fold.damaged
        if found:
            _log.info("folded %d rows that worker %d left in its journal", found, worker)

    def _restore(self) -> None:
        """Make the folders again, with what they were known by. Raises OSError."""
        self._root.mkdir(exist_ok=True)  # and not what is above it: then the workspace is gone
        self._folder.mkdir(exist_ok=True, mode=0o700)
        made_identity(self._folder, self._identity)
        self._users.keep(self._root)

    def _behind(self) -> int:
        """The first number of a segment that was never used."""
        import sqlalchemy as sa

        query = sa.select(tables.journals.c.segment).where(tables.journals.c.journal == self._identity)
        with self._workspace.database.reading() as connection:
            return (connection.execute(query).scalar_one_or_none() or 0) + 1


def open_ledger(workspace: Workspace, *, worker: int = 0, allocate: Allocate = allocate) -> JournalLedger:
    """The ledger of this process, as worker of this number. `allocate` gives a new file its bytes.

    Raises:
        LockedError: another process writes the ledger as this worker.
        WorkspaceError: the database cannot be used, or `.pressroom/ledger` cannot be written.
    """
    workspace.database.migrate("ledger", tables.MIGRATIONS)
    with ExitStack() as held:
        held.enter_context(_writing(workspace, worker))
        try:
            made = JournalLedger(workspace, worker, allocate, held)
        except OSError as error:
            raise WorkspaceError(
                f"the ledger cannot be written in {workspace.dir / FOLDER}: {error.strerror}",
                hint="Make room on its disk, or choose another place for the workspace.",
            ) from error
        made._held = held.pop_all()
        return made


def _writing(workspace: Workspace, worker: int) -> AbstractContextManager[None]:
    return workspace.lock(f"ledger-worker-{worker}", purpose=f"write the ledger as worker {worker}")


def _fitted_opened(
    id: str, at: float, key: str, team: str, model: str, tokens: int, nano_usd: int
) -> tuple[object, ...]:
    fitted = tables.fitted
    return (
        fitted("id", id), fitted("at", at), fitted("key", key), fitted("team", team), fitted("model", model),
        fitted("prompt_tokens", tokens), fitted("nano_usd", nano_usd),
    )  # fmt: skip


def _short(value: object) -> object:
    """No text of a row so long that all of them together do not fit."""
    return value.encode("ascii", "replace").decode("ascii")[:60] if isinstance(value, str) else value
