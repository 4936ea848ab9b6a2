"""One database for all parts: SQLite on a laptop, PostgreSQL by a change of URL.

Each part owns its tables and brings them as numbered migrations, small functions in order; what ran is recorded here.
Parts keep to what both databases do: SQLAlchemy Core, no vendor functions.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, NoSuchModuleError

from pressroom.kernel.errors import MigrationError, MissingDependencyError, SettingsError, WorkspaceError
from pressroom.kernel.write_ahead import write_ahead

Migration = Callable[[sa.Connection], None]

_metadata = sa.MetaData()
_migrations = sa.Table(
    "pressroom_migrations",
    _metadata,
    sa.Column("part", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("applied_at", sa.Float, nullable=False),
)

# Seconds a writer waits for another one on SQLite before it gives up.
_BUSY_TIMEOUT_S = 30
_MIGRATION_LOCK = 0x50726573
# On a full disk SQLite cannot make the files it works in, and gives reasons that have others, too. Each takes so much.
_PERHAPS_FULL = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_LITTLE = 64 << 10


class Database:
    """A SQLAlchemy engine with migrations. Thread-safe; cheap to make, connects on first use."""

    def __init__(self, url: str, *, root: Path) -> None:
        try:
            parsed = make_url(url)
            if parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
                path = root / parsed.database
                path.parent.mkdir(parents=True, exist_ok=True)
                parsed = parsed.set(database=str(path))
            self.engine = sa.create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
        except (ArgumentError, NoSuchModuleError) as error:
            raise SettingsError(
                f"database = {url!r} is not a database URL this installation knows: {error}",
                hint="Use sqlite:///path/to/file.db or postgresql+psycopg://user@host/name.",
            ) from error
        except ModuleNotFoundError as error:
            wanted = "'pressroom[postgres]'" if parsed.get_backend_name() == "postgresql" else error.name
            raise MissingDependencyError(
                f"database = {parsed!s} needs the library {error.name!r}, which is not installed",
                hint=f"Install it with: pip install {wanted}",
                library=error.name,
            ) from error
        except OSError as error:
            raise WorkspaceError(
                f"database = {url!r}: {error.filename} cannot be made: {error.strerror}",
                hint="Choose another place for the file in the setting `database`.",
            ) from error
        self.url = parsed.render_as_string(hide_password=True)
        self._file: Path | None = None
        if parsed.get_backend_name() == "sqlite":
            if parsed.database and parsed.database != ":memory:":
                self._file = Path(parsed.database)
            event.listen(self.engine, "connect", _sqlite_connect)
            event.listen(self.engine, "begin", _sqlite_begin)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads: sees one moment of the database and keeps no writer waiting.

        Raises:
            WorkspaceError: as `begin`.
        """
        reader = self.engine.execution_options(pressroom_reading=True)
        with self._guarded(), reader.begin() as connection:
            yield connection

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction that commits at the end of the block and rolls back on an error.

        Raises:
            WorkspaceError: the database cannot be reached, is locked for too long, or is damaged.
        """
        with self._guarded(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # a rule of a table was broken: its part knows what that means
        except DatabaseError as error:
            raise self._said(error) from error

    def _said(self, error: DatabaseError) -> WorkspaceError:
        """What is wrong, and what to do about it."""
        # The lower byte is the kind of error, the others which one of that kind.
        code = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
        if self._file is not None and code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return WorkspaceError(
                f"the database {self._file} is damaged: {error.orig}",
                hint=f"Put a backup in its place, without the old {self._file.name}-wal and -shm beside it. "
                "Without a backup: move it away. Names, aliases, floors, sheets, history, keys and deployments were in "
                "it; the bytes of the models are in the store, and pulling or importing the models again stores no "
                "byte twice, as long as nobody runs `press gc` before.",
            )
        if code == sqlite3.SQLITE_FULL or (code in _PERHAPS_FULL and self._free() < _LITTLE):
            return WorkspaceError(
                f"the database {self.url} cannot be used: its disk is full",
                hint="Make room: press rm REF, then press gc. If these cannot be run either, remove 2 MB of something "
                "else on that disk first.",
                free=self._free(),
            )
        return WorkspaceError(
            f"the database {self.url} failed: {error.orig}",
            hint="Check that the path is writable, the disk has room and no other program holds the file.",
        )

    def _free(self) -> int:
        """Bytes that are free where the database lies."""
        return shutil.disk_usage(self._file.parent).free if self._file is not None else sys.maxsize

    def migrate(self, part: str, steps: Sequence[Migration]) -> None:
        """Bring the tables of `part` up to date; step n of `steps` is migration n + 1. Each runs once, in order.

        Raises:
            MigrationError: the database was written by a newer Pressroom.
        """
        with self.begin() as connection:
            if connection.dialect.name == "postgresql":
                # Two processes that start at once would both see "nothing done"; SQLite's BEGIN IMMEDIATE
                # already keeps the second one out. The number only has to be the same for all of them.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            _metadata.create_all(connection)
            done: int = connection.execute(
                sa.select(sa.func.coalesce(sa.func.max(_migrations.c.number), 0)).where(_migrations.c.part == part)
            ).scalar_one()
            if done > len(steps):
                raise MigrationError(
                    f"the database {self.url} has step {done} of {part!r}; this Pressroom knows {len(steps)}",
                    hint="It was written by a newer Pressroom: upgrade, or use another workspace.",
                    part=part,
                )
            for number, step in enumerate(steps[done:], start=done + 1):
                step(connection)
                connection.execute(
                    _migrations.insert().values(part=part, number=number, name=step.__name__, applied_at=time.time())
                )

    def close(self) -> None:
        self.engine.dispose()


def _sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not guessed by the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_S * 1000}")
    write_ahead(connection, _BUSY_TIMEOUT_S)
    # FULL: a version that was announced as registered survives a power cut.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _sqlite_begin(connection: sa.Connection) -> None:
    if connection.get_execution_options().get("pressroom_reading"):
        connection.exec_driver_sql("BEGIN")
        return
    # IMMEDIATE: a transaction that reads and then writes cannot fail half-way because another one wrote in between.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
