"""Reading the ledger, and taking a user out of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pressroom.gateway.ledger import _tables as tables
from pressroom.gateway.ledger._reading import Place, rows_from
from pressroom.gateway.ledger._segments import FOLDER, folder_of, identity_of, numbers, path_of, workers
from pressroom.gateway.ledger._tables import COLUMNS, ledger
from pressroom.gateway.ledger._users import SALT, known_users
from pressroom.kernel import NotFoundError, Workspace, WorkspaceError

_PAGE = 8_192
_FORGOTTEN_AT_ONCE = 5_000
# Rows that ended a moment ago are on their way; where a database is away, longer than anybody wants to wait.
_WAIT_S = 5.0
_POLL_S = 0.1
_USER = COLUMNS.index("user")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row as it is in the table `ledger`; see `Row`. `at` and `recorded` in seconds since the epoch, `user` a keyed
    hash, `verdicts` words, `corrects` the id that a correction (then `kind` is so) is about, None of a request."""

    number: int
    id: str
    at: float
    key: str
    team: str
    user: str
    tag: str
    model: str
    branch: str
    ref: str
    digest: str
    engine: str
    door: str
    stream: bool
    shadow: bool
    status: int
    outcome: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    counted: str
    nano_usd: int
    first_s: float
    total_s: float
    tries: int
    cache: str
    language: str
    verdicts: tuple[str, ...]
    kind: str
    corrects: str | None
    recorded: float
    prompt_text: str | None
    answer_text: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which rows: all that are told, together. `user` as the client calls it, by its `safety_identifier`, and by `user`
    where it sends none; `since` and `until` are seconds since the epoch, the second one not included."""

    key: str | None = None
    team: str | None = None
    model: str | None = None
    user: str | None = None
    outcome: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerState:
    """How the ledger is: rows in the table with the first and the last `at` (None without rows), rows that wait in
    journals, their segments and bytes on disk, and the processes that write one: {worker, pid, since}."""

    rows: int
    first: float | None
    last: float | None
    waiting: int
    segments: int
    journal_bytes: int
    writers: tuple[dict[str, Any], ...]


class Rows:
    """The ledger of a workspace, for reading. Thread-safe; opened beside a server that writes.

    Raises:
        WorkspaceError: from every method, where the database cannot be used.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._database = workspace.database
        self._database.migrate("ledger", tables.MIGRATIONS)

    def get(self, id: str) -> list[Entry]:
        """The row of the request with this id, or the only one whose id begins so, and its corrections behind it.

        Raises:
            NotFoundError: there is none, or there are several.
        """
        with self._database.reading() as connection:
            found = (
                connection.execute(sa.select(ledger.c.id).where(ledger.c.id == id).limit(1)).scalars().all()
                or connection.execute(
                    sa.select(ledger.c.id).where(ledger.c.id.startswith(id, autoescape=True)).distinct().limit(2)
                )
                .scalars()
                .all()
            )
            if len(found) != 1 or not id:
                raise NotFoundError(
                    f"{'several rows have ids that begin' if found else 'no row has an id that is or begins'} {id!r}",
                    hint="`press ledger list` shows the latest ids; rows older than ledger.keep_days are gone.",
                    asked=id,
                )
            query = (
                sa.select(ledger)
                .where((ledger.c.id == found[0]) | (ledger.c.corrects == found[0]))
                .order_by(ledger.c.number)
            )
            return [_entry(row) for row in connection.execute(query)]

    def pages(self, wanted: Filter | None = None, *, page: int = _PAGE) -> Iterator[Sequence[sa.Row[Any]]]:
        """All rows that there are now, as the table has them, in the order they were added, some thousand at a time: no
        more are in memory, and no transaction stays open between two pages."""
        where = self._where(wanted)
        with self._database.reading() as connection:
            last = connection.execute(sa.select(sa.func.max(ledger.c.number))).scalar_one() or 0
        behind = 0
        while behind < last:
            query = (
                sa.select(ledger)
                .where(ledger.c.number > behind, ledger.c.number <= last, *where)
                .order_by(ledger.c.number)
                .limit(page)
            )
            with self._database.reading() as connection:
                found = connection.execute(query).all()
            if not found:
                return
            behind = found[-1].number
            yield found

    def forget(self, user: str) -> int:
        """Take a user, and the texts, out of all rows of theirs; figures stay. How many rows. `user` as in `Filter`.

        Raises:
            WorkspaceError: rows of the user still wait in a journal, because the database did not take them or no
                server runs, or the key that users are known by is gone; nothing was changed.
        """
        hashed = self._hashed(user)
        if not hashed:
            return 0
        deadline = time.monotonic() + _WAIT_S
        while waiting := sum(row[_USER] == hashed for row in self._waiting()):
            if time.monotonic() > deadline:
                raise WorkspaceError(
                    f"{waiting} rows of this user wait in the journal and are not in the table yet",
                    hint="Start the server (press serve), which adds them, and repeat this.",
                    waiting=waiting,
                )
            time.sleep(_POLL_S)
        done = 0
        some = sa.select(ledger.c.number).where(ledger.c.user == hashed).limit(_FORGOTTEN_AT_ONCE).scalar_subquery()
        while True:
            with self._database.begin() as connection:
                changed = connection.execute(
                    ledger.update().where(ledger.c.number.in_(some)).values(user="", prompt_text=None, answer_text=None)
                ).rowcount
            done += changed
            if changed < _FORGOTTEN_AT_ONCE:
                return done

    def state(self) -> LedgerState:
        """How the ledger is now."""
        query = sa.select(sa.func.count(), sa.func.min(ledger.c.at), sa.func.max(ledger.c.at)).select_from(ledger)
        with self._database.reading() as connection:
            rows, first, last = connection.execute(query).one()
        segments = size = 0
        writers = []
        root = self._root()
        for worker in workers(root):
            folder = folder_of(root, worker)
            for number in numbers(folder):
                try:
                    status = path_of(folder, number).stat()
                except FileNotFoundError:  # folded at this moment
                    continue
                segments += 1
                size += status.st_blocks * 512
            holder = self._workspace.lock_holder(f"ledger-worker-{worker}")
            if holder is not None:
                writers.append({"worker": worker, "pid": holder.get("pid"), "since": holder.get("since")})
        return LedgerState(
            rows=rows,
            first=first,
            last=last,
            waiting=sum(1 for _ in self._waiting()),
            segments=segments,
            journal_bytes=size,
            writers=tuple(writers),
        )

    def _root(self) -> Path:
        return self._workspace.dir / FOLDER

    def _hashed(self, user: str) -> str:
        """What rows call this user; '' where there are no rows of any user."""
        users = known_users(self._root())
        if users is not None:
            return users.hashed(user)
        with self._database.reading() as connection:
            if connection.execute(sa.select(ledger.c.number).where(ledger.c.user != "").limit(1)).first() is None:
                return ""
        raise WorkspaceError(
            f"{self._root() / SALT} is not there, and by it the users of rows are known",
            hint="Put it back from a backup. Without it nobody can say which rows are whose.",
        )

    def _waiting(self) -> Iterator[list[Any]]:
        """The rows in all journals that are not in the table yet."""
        root = self._root()
        with self._database.reading() as connection:
            places: dict[str, Place] = {
                row.journal: (row.segment, row.position) for row in connection.execute(sa.select(tables.journals))
            }
        for worker in workers(root):
            folder = folder_of(root, worker)
            try:
                yield from rows_from(folder, places.get(identity_of(folder) or "", (0, 0)))
            except OSError as error:
                raise WorkspaceError(
                    f"the ledger's journal in {folder} cannot be read: {error.strerror}",
                    hint="Ask as the user that runs the server.",
                ) from error

    def _where(self, wanted: Filter | None) -> list[sa.ColumnElement[bool]]:
        if wanted is None:
            return []
        clauses: list[sa.ColumnElement[bool]] = []
        for name in ("key", "team", "model", "outcome"):
            value = getattr(wanted, name)
            if value is not None:
                clauses.append(ledger.c[name] == value)
        if wanted.user is not None:
            hashed = self._hashed(wanted.user)
            clauses.append((ledger.c.user == hashed) if hashed or not wanted.user else sa.false())
        if wanted.since is not None:
            clauses.append(ledger.c.at >= wanted.since)
        if wanted.until is not None:
            clauses.append(ledger.c.at < wanted.until)
        return clauses

    def list(self, wanted: Filter | None = None, *, limit: int = 50) -> list[Entry]:
        """The latest rows, newest first."""
        query = sa.select(ledger).where(*self._where(wanted)).order_by(ledger.c.at.desc(), ledger.c.number.desc())
        with self._database.reading() as connection:
            return [_entry(row) for row in connection.execute(query.limit(limit))]


def _entry(row: sa.Row[Any]) -> Entry:
    values = dict(row._mapping)
    words = values.pop("verdicts")
    return Entry(**values, verdicts=tuple(words.split(",")) if words else ())
