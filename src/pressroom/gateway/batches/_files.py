"""The files of `/v1/files`: bytes in `.pressroom/files/`, what is known of them in the database.

    file-<32 hex digits>      whole: a row in the database names it
    file-<32 hex digits>      without a row: the results of a batch that runs, or left by who was killed
    part-*                    on its way in; gone with the process that made it

A file is written under another name, synced, renamed, and only then gets its row: what has none does not count. The
names are made here; what a client calls its file is kept as text.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

from pressroom.gateway.batches import _tables as tables
from pressroom.gateway.batches._disk import breathe, writing
from pressroom.gateway.batches.base import BatchError, FileRecord
from pressroom.kernel import StoreFullError, Workspace
from pressroom.kernel.disk import sync, sync_directory

_ID = re.compile(r"file-[0-9a-f]{32}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_NAME_LENGTH = 255
_DAY_S = 86_400.0
# Left free for everything else on the disk.
_RESERVE = 64 << 20
_BLOCK = 1 << 20


def new_file_id() -> str:
    return f"file-{uuid.uuid4().hex}"


class FileStore:
    """The files of one workspace. Thread-safe. `clock` gives seconds since the epoch."""

    def __init__(self, workspace: Workspace, *, clock: Callable[[], float] = time.time) -> None:
        self._database = workspace.database
        self._database.migrate("batches", tables.MIGRATIONS)
        self._directory = workspace.path("files")
        self._keep_s = workspace.settings.batch.keep_days * _DAY_S
        self._clock = clock

    def writer(self, *, expected: int = 0) -> FileWriter:
        """A new file on its way in; `expected` are the bytes it will have at most, where that is known.

        Raises:
            StoreFullError: there is no room for them.
        """
        free = shutil.disk_usage(self._directory).free
        if expected + _RESERVE > free:
            raise StoreFullError(
                f"there is no room for {expected:,} bytes: {max(0, free - _RESERVE):,} are free",
                hint="Make room on the machine of the gateway (`press rm REF`, `press gc`), and send it again.",
                needed=expected,
                free=free,
            )
        return FileWriter(self, self._directory / f"part-{uuid.uuid4().hex}")

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file are, or will be."""
        assert _ID.fullmatch(file_id), "ids are made here"
        return self._directory / file_id

    def get(self, file_id: str, *, owner: str = "", param: str = "id") -> FileRecord:
        """Raises BatchError (404) where this owner has none."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(tables.files).where(_owned(file_id, owner))).one_or_none()
        if row is None or self._past(_file(row)):
            raise BatchError(f"No such File object: {file_id[:100]}", status=404, param=param)
        return _file(row)

    def open(self, file_id: str, *, owner: str = "") -> tuple[FileRecord, IO[bytes]]:
        """A file and its bytes. Raises BatchError (404) where this owner has none."""
        found = self.get(file_id, owner=owner)
        try:
            return found, self.path(file_id).open("rb")
        except FileNotFoundError as error:
            raise BatchError(f"The bytes of {file_id} are gone from the disk.", status=404, param="id") from error

    def list(
        self,
        *,
        limit: int,
        owner: str = "",
        after: str | None = None,
        purpose: str | None = None,
        newest_first: bool = True,
    ) -> tuple[list[FileRecord], bool]:
        """A page of an owner's files, and whether there are more. Raises BatchError where `after` is none of them."""
        seq = tables.files.c.seq
        query = sa.select(tables.files).where(tables.files.c.owner == owner).limit(limit + 1)
        query = query.order_by(seq.desc() if newest_first else seq.asc())
        if purpose is not None:
            query = query.where(tables.files.c.purpose == purpose)
        with self._database.reading() as connection:
            if after is not None:
                place = connection.scalar(sa.select(seq).where(_owned(after, owner)))
                if place is None:
                    raise BatchError(f"No such File object: {after[:100]}", status=404, param="after")
                query = query.where(seq < place if newest_first else seq > place)
            found = [_file(row) for row in connection.execute(query)]
        return [file for file in found[:limit] if not self._past(file)], len(found) > limit

    def delete(self, file_id: str, *, owner: str = "") -> None:
        """Remove it; who reads it at this moment reads to the end. Raises BatchError (404) where the owner has none."""
        with self._database.begin() as connection:
            gone = connection.execute(tables.files.delete().where(_owned(file_id, owner))).rowcount
        if not gone:
            raise BatchError(f"No such File object: {file_id[:100]}", status=404, param="id")
        with suppress(OSError):  # it takes room until the next sweep, and does no other harm
            self.path(file_id).unlink()

    def ends(self, file: FileRecord) -> float | None:
        """When it will be removed: as its sender asked, or after the days that files are kept, whichever is first."""
        ends = [file.expires] if file.expires is not None else []
        if self._keep_s:
            ends.append(file.created + self._keep_s)
        return min(ends, default=None)

    def measured(
        self, file_id: str, purpose: str, filename: str, *, expires_s: int | None, owner: str = ""
    ) -> FileRecord | None:
        """What the row of a file that was written in its place will say; None where nothing is in it: then it is
        removed. Syncs and reads all of it."""
        path = self.path(file_id)
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("rb") as file, writing(path):
                sync(file.fileno())
                while block := file.read(_BLOCK):
                    digest.update(block)
                    size += len(block)
                    breathe()
        except FileNotFoundError:
            return None
        if not size:
            path.unlink(missing_ok=True)
            return None
        with writing(path):
            sync_directory(self._directory)
        return self._record(file_id, purpose, filename, size, digest.hexdigest(), expires_s, owner)

    def add(self, connection: sa.Connection, file: FileRecord) -> None:
        """Write its row, in the caller's transaction."""
        values = {name: getattr(file, name) for name in FileRecord.__slots__}
        connection.execute(tables.files.insert().values(values))

    def expire(self, *, keep: Collection[str]) -> int:
        """Remove the files whose time is over, without those in `keep`; returns how many."""
        with self._database.reading() as connection:
            rows = [_file(row) for row in connection.execute(sa.select(tables.files))]
        past = [file for file in rows if file.id not in keep and self._past(file)]
        for file in past:
            with suppress(BatchError):  # somebody else removed it meanwhile
                self.delete(file.id, owner=file.owner)
        return len(past)

    def sweep(self, *, keep: Collection[str]) -> None:
        """Remove what killed processes left: parts, and files without a row that are not in `keep`. Only for who knows
        that nobody else writes here."""
        with self._database.reading() as connection:
            known = set(connection.scalars(sa.select(tables.files.c.id)))
        for path in self._directory.iterdir():
            if path.name.startswith("part-") or (_ID.fullmatch(path.name) and path.name not in known | set(keep)):
                with suppress(OSError):
                    path.unlink()

    def _past(self, file: FileRecord) -> bool:
        ends = self.ends(file)
        return ends is not None and ends <= self._clock()

    def _record(
        self, file_id: str, purpose: str, filename: str, size: int, sha256: str, expires_s: int | None, owner: str
    ) -> FileRecord:
        now = self._clock()
        return FileRecord(
            id=file_id,
            purpose=purpose,
            filename=_UNPRINTABLE.sub("", filename)[:_NAME_LENGTH],
            bytes=size,
            sha256=sha256,
            created=now,
            expires=now + expires_s if expires_s is not None else None,
            owner=owner,
        )

    def _commit(
        self, part: Path, size: int, sha256: str, purpose: str, filename: str, expires_s: int | None, owner: str
    ) -> FileRecord:
        file = self._record(new_file_id(), purpose, filename, size, sha256, expires_s, owner)
        target = self.path(file.id)
        with writing(target):
            part.rename(target)
            sync_directory(self._directory)
        try:
            with self._database.begin() as connection:
                self.add(connection, file)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return file


class FileWriter:
    """One file on its way in: `write`, then `commit`, or `abort`. Each raises StoreError where the disk refuses."""

    def __init__(self, store: FileStore, part: Path) -> None:
        self._store = store
        self._part = part
        self._digest = hashlib.sha256()
        self.size = 0
        with writing(part):
            self._file: IO[bytes] = part.open("xb", buffering=0)

    def write(self, data: bytes) -> None:
        with writing(self._part):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self._digest.update(data)
        self.size += len(data)

    def commit(self, purpose: str, filename: str, *, expires_s: int | None, owner: str = "") -> FileRecord:
        """It is whole: keep it, durably."""
        with writing(self._part):
            os.fchmod(self._file.fileno(), 0o444)
            sync(self._file.fileno())
            self._file.close()
        digest = self._digest.hexdigest()
        return self._store._commit(self._part, self.size, digest, purpose, filename, expires_s, owner)

    def abort(self) -> None:
        """Let go of it; does nothing after `commit`."""
        with suppress(OSError):
            self._file.close()
            self._part.unlink(missing_ok=True)


def _owned(file_id: str, owner: str) -> sa.ColumnElement[bool]:
    return (tables.files.c.id == file_id) & (tables.files.c.owner == owner)


def _file(row: sa.Row[Any]) -> FileRecord:
    return FileRecord(**{name: row._mapping[name] for name in FileRecord.__slots__})
