"""The index: which tensors are held, where their blocks lie, and which files are made of them.

One SQLite file beside the store, a cache of what the packs and manifests say themselves: where it is missing, damaged
or of another version, it is made again; where it may not be written, it is made in memory.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pressroom.kernel.errors import StoreError, StoreFullError
from pressroom.store.family import _filling as filling
from pressroom.store.family import _queries as queries
from pressroom.store.family import _schema as schema
from pressroom.store.family._manifests import Manifest
from pressroom.store.family._objects import Stored, StoredTensor
from pressroom.store.places.base import Place

_log = logging.getLogger(__name__)

T = TypeVar("T")
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


class Index:
    """Connects on first use. Safe to use from several threads, and in a child after a fork."""

    def __init__(self, path: Path, place: Place) -> None:
        self.path = path
        self._place = place
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._in_memory = False
        # Looked for in the place already, in vain: once is enough for a process.
        self._lost: set[bytes] = set()

    def read(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        """What `ask` finds, all of it at one moment. Raises StoreError."""
        return self._run(ask, write=False)

    def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Do all of `change` or nothing. Raises StoreFullError and StoreError."""
        return self._run(change, write=True)

    def exists(self) -> bool:
        """Whether there is anything that asking could find out, so that asking an empty store makes no file."""
        return self._connection is not None or self.path.exists()

    # What is asked most, with the answer looked for again in the place where the index does not know.

    def file_tensors(self, manifest: Manifest) -> dict[bytes, StoredTensor]:
        """The tensors of a file and all that they are told from, by identity."""
        for attempt in (1, 2):
            found = self.read(lambda c: queries.closure(c, queries.ids_of(c, manifest.ids)))
            missing = {i for i, t in zip(manifest.ids, manifest.tensors, strict=True) if t.nbytes and i not in found}
            missing |= {tensor.id for tensor in found.values() if not tensor.sound}
            if missing <= self._lost:
                break
            if attempt == 1:  # another machine put it, or the index is an old one
                self.refresh()
            else:
                self._lost |= missing
        return found

    def tensors(self, ids: Iterable[bytes]) -> dict[bytes, StoredTensor]:
        """These tensors, as far as they are known, and all that they are told from."""
        wanted = list(ids)
        return self.read(lambda c: queries.closure(c, queries.ids_of(c, wanted)))

    def again(self, identity: bytes) -> dict[bytes, StoredTensor]:
        """A tensor of which a piece was not found where the index had it some time ago."""
        found = self.tensors([identity])
        pieces = {segment.piece for tensor in found.values() for segment in tensor.segments}
        if any(self._place.size(piece) is None for piece in pieces):
            self.refresh()  # another machine swept
            found = self.tensors([identity])
        return found

    def commit(self, packs: Sequence[Stored], tensors: Sequence[StoredTensor], manifest: Manifest) -> None:
        """Take in what a file needs, in one transaction. What is known soundly already stays as it is."""

        def change(c: sqlite3.Connection) -> None:
            filling.add_pieces(c, packs)
            for tensor in tensors:
                filling.add_tensor(c, tensor)
            filling.add_file(c, manifest)

        self.write(change)
        self.checkpoint()

    def refresh(self) -> None:
        """Take in packs and manifests that the index does not know, and forget those that are gone."""
        from pressroom.store.family import _rebuilding

        self.write(lambda c: _rebuilding.refresh(c, self._place))

    def rebuild(self) -> None:
        """Make the index anew from what lies in the place."""
        from pressroom.store.family import _rebuilding

        def change(c: sqlite3.Connection) -> None:
            schema.create(c)
            _rebuilding.refresh(c, self._place)

        self.write(change)
        self.checkpoint()

    def checkpoint(self) -> None:
        """Move what is in the log into the file, so that the log takes no space. Not done while others read."""
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                try:
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                except sqlite3.Error as error:
                    _log.debug("the log of %s stays as it is: %s", self.path, error)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def _run(self, work: Callable[[sqlite3.Connection], T], *, write: bool) -> T:
        with self._lock:
            try:
                return self._attempt(work, write=write)
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _BROKEN:
                    raise self._failed(error) from error
                _log.warning("the index %s is damaged (%s) and is made again", self.path, error)
            self._discard()
            try:
                return self._attempt(work, write=write)
            except sqlite3.DatabaseError as error:
                raise self._failed(error) from error

    def _attempt(self, work: Callable[[sqlite3.Connection], T], *, write: bool) -> T:
        connection = self._connected(write=write)
        connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            found = work(connection)
            connection.execute("COMMIT")
            return found
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _connected(self, *, write: bool) -> sqlite3.Connection:
        if self._connection is not None and self._pid == os.getpid() and not (write and self._in_memory):
            return self._connection
        # After a fork the parent's connection must not even be closed: that would drop the parent's locks.
        try:
            connection = self._ready(schema.connect(self.path))
        except (sqlite3.OperationalError, OSError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CANTOPEN) & 0xFF
            if write or code not in _UNWRITABLE:
                if isinstance(error, OSError):
                    raise StoreError(
                        f"the index {self.path} cannot be made: {error.strerror}",
                        hint="Check that its directory may be written by this user.",
                        path=str(self.path),
                    ) from error
                raise
            _log.info("the index %s cannot be written (%s): one is made in memory", self.path, error)
            connection, self._in_memory = self._ready(schema.connect(None)), True
        else:
            self._in_memory = False
        self._connection, self._pid = connection, os.getpid()
        return connection

    def _ready(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        from pressroom.store.family import _rebuilding

        try:
            if not schema.is_current(connection):
                connection.execute("BEGIN IMMEDIATE")
                if not schema.is_current(connection):  # nobody else made it meanwhile
                    schema.create(connection)
                    _rebuilding.refresh(connection, self._place)
                connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _discard(self) -> None:
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _failed(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StoreFullError(
                f"the disk of the index {self.path} is full",
                hint="Make room, remove a model with `press rm`, or point the setting `store` to a larger disk.",
                needed=None,
                free=0,
                path=str(self.path),
            )
        return StoreError(
            f"the index {self.path} failed: {error}",
            hint="Check that its directory may be written by this user and the disk has room.",
            path=str(self.path),
        )
