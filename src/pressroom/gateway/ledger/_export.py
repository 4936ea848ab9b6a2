"""The ledger as a file: Parquet, CSV or JSON lines; there whole or not at all."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from pressroom.gateway.ledger._entries import Filter, Rows
from pressroom.gateway.ledger._tables import COLUMNS, FURTHER, ledger
from pressroom.kernel import MissingDependencyError, StoreError, StoreFullError, Workspace, did_you_mean

_NAMES = ("number", *COLUMNS, *FURTHER)
_TIMES = (_NAMES.index("at"), _NAMES.index("recorded"))
_VERDICTS = _NAMES.index("verdicts")
_FORMULA = "=+-@\t\r"
# Rows of a group in a Parquet file: a reader takes a group at a time, and so does this writer.
_GROUP = 65_536

Pages = Iterator[Sequence[Sequence[Any]]]


def export(workspace: Workspace, path: Path, wanted: Filter | None = None) -> int:
    """Write the rows to `path`, in place of what was there; its ending says as what: .parquet, .csv or .jsonl. How many
    rows. Memory stays bounded, however many there are.

    Raises:
        StoreError: the ending is another one, or the file cannot be written; StoreFullError where the disk is full.
            What was there stays.
        MissingDependencyError: Parquet, and pyarrow is not installed.
        WorkspaceError: the database cannot be used.
    """
    write = _WRITERS.get(path.suffix)
    if write is None:
        raise StoreError(
            f"{path.name}: a ledger cannot be written as {path.suffix or 'a file without an ending'}",
            hint=did_you_mean(path.suffix, _WRITERS, otherwise=f"Name a file that ends in {', '.join(_WRITERS)}."),
            path=str(path),
            known=list(_WRITERS),
        )
    pages = Rows(workspace).pages(wanted)
    try:
        # What a link names is replaced, and not the link.
        target = path.resolve()
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            rows = write(partial, pages)
            partial.replace(target)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise (StoreFullError if full else StoreError)(
            f"{path} cannot be written: {error.strerror or error}",
            hint="Make room, or name a file on another disk."
            if full
            else "Name a file in a folder that you may write to.",
            path=str(path),
        ) from error
    return rows


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(min(max(at, 0.0), 253402300799.0), UTC)


def _texts(row: Sequence[Any]) -> list[Any]:
    """The values of a row as text formats have them: times as `2026-11-21T10:15:00.123456Z`."""
    values = list(row)
    for index in _TIMES:
        values[index] = _time(values[index]).isoformat(timespec="microseconds")[:-6] + "Z"
    return values


def _jsonl(path: Path, pages: Pages) -> int:
    rows = 0
    with path.open("wb") as file:
        for page in pages:
            for row in page:
                record = dict(zip(_NAMES, _texts(row), strict=True))
                record["verdicts"] = words.split(",") if (words := record["verdicts"]) else []
                file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            rows += len(page)
    return rows


def _csv(path: Path, pages: Pages) -> int:
    rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_NAMES)
        for page in pages:
            writer.writerows([[_cell(value) for value in _texts(row)] for row in page])
            rows += len(page)
    return rows


def _cell(value: Any) -> Any:
    """As a cell: a text of a client that begins like a formula must not be one to a spreadsheet."""
    if type(value) is str:
        return f"'{value}" if value[:1] in _FORMULA and value else value
    return ("true" if value else "false") if type(value) is bool else value


def _parquet(path: Path, pages: Pages) -> int:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"writing Parquet needs the library {error.name!r}, which is not installed",
            hint="Install it with: pip install 'pressroom[parquet]', or name a file that ends in .csv or .jsonl.",
            library=error.name,
        ) from error
    schema = pa.schema([pa.field(name, _arrow(name, pa)) for name in _NAMES])
    rows = 0
    group: list[Any] = []
    waiting = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for page in pages:
            group.append(pa.RecordBatch.from_arrays(_arrays(page, schema, pa), schema=schema))
            rows += len(page)
            waiting += len(page)
            if waiting >= _GROUP:
                writer.write_table(pa.Table.from_batches(group, schema))
                group, waiting = [], 0
        if group:
            writer.write_table(pa.Table.from_batches(group, schema))
    return rows


def _arrays(page: Sequence[Sequence[Any]], schema: Any, pa: Any) -> list[Any]:
    columns: list[Sequence[Any]] = list(zip(*page, strict=True))
    for index in _TIMES:
        columns[index] = [_time(at) for at in columns[index]]
    columns[_VERDICTS] = [words.split(",") if words else [] for words in columns[_VERDICTS]]
    return [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]


def _arrow(name: str, pa: Any) -> Any:
    if _NAMES.index(name) in _TIMES:
        return pa.timestamp("us", tz="UTC")
    if name == "verdicts":
        return pa.list_(pa.string())
    kind = ledger.c[name].type
    if isinstance(kind, sa.Boolean):
        return pa.bool_()
    if isinstance(kind, sa.Float):
        return pa.float64()
    return pa.int64() if isinstance(kind, sa.Integer) else pa.string()


_WRITERS: dict[str, Callable[[Path, Pages], int]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _jsonl,
}
