"""The rows of batches. Who changes one says in which state it must be: the runner and a cancel may meet."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from pressroom.gateway.batches import _tables as tables
from pressroom.gateway.batches._files import FileStore, new_file_id
from pressroom.gateway.batches.base import NOBODY, Asker, BatchError, BatchRecord, Counts, FileRecord, Status
from pressroom.kernel import Workspace

_OPEN = [status.value for status in Status if not status.over]


class Batches:
    """The batches of one workspace. Thread-safe."""

    def __init__(self, workspace: Workspace, files: FileStore) -> None:
        self._database = workspace.database  # FileStore has made the tables
        self._files = files

    def put(
        self,
        *,
        endpoint: str,
        input_file: str,
        window: str,
        window_s: float,
        metadata: dict[str, str] | None,
        results_expire_s: int | None,
        now: float,
        asker: Asker = NOBODY,
    ) -> BatchRecord:
        """A new batch, to be looked at by the runner."""
        batch = BatchRecord(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=endpoint,
            input_file=input_file,
            window=window,
            status=Status.VALIDATING,
            created=now,
            expires=now + window_s,
            metadata=metadata,
            output=new_file_id(),
            errors=new_file_id(),
            results_expire_s=results_expire_s,
            owner=asker.owner,
            key_name=asker.key,
        )
        with self._database.begin() as connection:
            connection.execute(tables.batches.insert().values(_values(dataclasses.asdict(batch))))
        return batch

    def get(self, batch_id: str, *, owner: str = "") -> BatchRecord:
        """Raises BatchError (404) where this owner has none."""
        return self._get(batch_id, _owned(batch_id, owner))

    def current(self, batch_id: str) -> BatchRecord:
        """The batch as it is now, whoever owns it. Raises BatchError (404) where there is none."""
        return self._get(batch_id, tables.batches.c.id == batch_id)

    def _get(self, batch_id: str, which: sa.ColumnElement[bool]) -> BatchRecord:
        with self._database.reading() as connection:
            row = connection.execute(sa.select(tables.batches).where(which)).one_or_none()
        if row is None:
            raise BatchError(f"No batch found with id '{batch_id[:100]}'.", status=404, param="id")
        return _batch(row)

    def list(self, *, limit: int, owner: str = "", after: str | None = None) -> tuple[list[BatchRecord], bool]:
        """A page of an owner's batches, the newest first, and whether there are more."""
        seq = tables.batches.c.seq
        query = sa.select(tables.batches).where(tables.batches.c.owner == owner).order_by(seq.desc()).limit(limit + 1)
        with self._database.reading() as connection:
            if after is not None:
                place = connection.scalar(sa.select(seq).where(_owned(after, owner)))
                if place is None:
                    raise BatchError(f"No batch found with id '{after[:100]}'.", status=404, param="after")
                query = query.where(seq < place)
            found = [_batch(row) for row in connection.execute(query)]
        return found[:limit], len(found) > limit

    def unfinished(self) -> Sequence[BatchRecord]:
        """Those that are not over, the oldest first."""
        query = sa.select(tables.batches).where(tables.batches.c.status.in_(_OPEN)).order_by(tables.batches.c.seq)
        with self._database.reading() as connection:
            return [_batch(row) for row in connection.execute(query)]

    def move(self, batch_id: str, of: Collection[Status], **changes: Any) -> bool:
        """Change a batch that is in one of these states; False where it is in none of them."""
        with self._database.begin() as connection:
            return self._move(connection, batch_id, of, changes)

    def finish(self, batch_id: str, results: Sequence[FileRecord], **changes: Any) -> None:
        """Make the results files like any other, and write down how it ended, both or neither."""
        with self._database.begin() as connection:
            if self._move(connection, batch_id, [status for status in Status if not status.over], changes):
                for file in results:
                    self._files.add(connection, file)

    @staticmethod
    def _move(connection: sa.Connection, batch_id: str, of: Collection[Status], changes: dict[str, Any]) -> bool:
        table = tables.batches
        states = [status.value for status in of]
        done = connection.execute(
            table.update().where((table.c.id == batch_id) & table.c.status.in_(states)).values(_values(changes))
        )
        return done.rowcount > 0


def _owned(batch_id: str, owner: str) -> sa.ColumnElement[bool]:
    return (tables.batches.c.id == batch_id) & (tables.batches.c.owner == owner)


def _values(changes: dict[str, Any]) -> dict[str, Any]:
    """As the columns take them."""
    changes = dict(changes)
    if isinstance(changes.get("status"), Status):
        changes["status"] = changes["status"].value
    if isinstance(changes.get("counts"), Counts):
        changes["counts"] = dataclasses.asdict(changes["counts"])
    return changes


def _batch(row: sa.Row[Any]) -> BatchRecord:
    values = {field.name: row._mapping[field.name] for field in dataclasses.fields(BatchRecord)}
    return BatchRecord(**{**values, "status": Status(values["status"]), "counts": Counts(**values["counts"])})
