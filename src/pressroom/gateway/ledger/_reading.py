"""What a journal's segments say from a place on, in batches."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from pressroom.gateway.ledger._frames import COLUMNS as COLUMNS_KIND
from pressroom.gateway.ledger._frames import DAMAGED, OPENED, ROW, TORN, records
from pressroom.gateway.ledger._segments import numbers, path_of
from pressroom.gateway.ledger._tables import COLUMNS, empty
from pressroom.gateway.ledger.base import Opened

_log = logging.getLogger(__name__)

_BATCH = 4_096
#: Records after which whoever is gentle gives way, and for how long: the event loop waits for Python that runs here.
PIECE = 128
REST_S = 0.001

# A later version may say more of a request that was opened, behind these.
_OPENED_FIELDS = len(Opened.__slots__)

Place = tuple[int, int]


@dataclass(slots=True)
class Batch:
    """Rows (in the order of `COLUMNS`) between two places, in order; the first place, and the last; and what was opened
    there and has no row there, by id."""

    start: Place
    end: Place
    rows: list[list[Any]] = field(default_factory=list)
    opened: dict[str, Opened] = field(default_factory=dict)
    #: How many records were read.
    count: int = 0
    #: Stretches that no record could be read of.
    damaged: int = 0


def read_batch(folder: Path, start: Place, until: Place | None, *, most: int = _BATCH, gentle: bool = False) -> Batch:
    """What is written from `start` on: before `until` (a writer is at work there), or to the end of the last segment.
    The end of a segment that is done with is the beginning of the next one. `gentle` beside an event loop.

    Raises OSError.
    """
    batch = Batch(start, start)
    for number in numbers(folder):
        if number < start[0]:
            continue
        if until is not None and number > until[0]:
            break
        begin = start[1] if number == start[0] else 0
        batch.end = (number, begin)
        end = until[1] if until is not None and number == until[0] else None
        if not _read_segment(folder, number, begin, end, batch, most, gentle):
            break
    return batch


def _read_segment(
    folder: Path, number: int, begin: int, end: int | None, batch: Batch, most: int, gentle: bool
) -> bool:
    """Whether it was read to its end."""
    rows, unclosed = batch.rows, dict[str, bytes]()
    fd = os.open(path_of(folder, number), os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        count, end_at = batch.count, begin
        names = _columns(fd)
        translate = names if names != COLUMNS else None
        for kind, payload, after in records(
            lambda count, at: os.pread(fd, count, at), begin, size if end is None else end
        ):
            if kind == ROW:
                row = orjson.loads(payload)
                if translate is not None:
                    row = _translated(row, translate)
                rows.append(row)
                unclosed.pop(row[0], None)
                batch.opened.pop(row[0], None)
            elif kind == OPENED:
                # Nearly every one is closed soon: only what is left in the end is looked at.
                unclosed[_id_in(payload)] = payload
            elif kind == DAMAGED:
                batch.damaged += 1
                _log.error("%s is damaged before byte %d: a record is lost", path_of(folder, number), after)
            elif kind == TORN:
                _log.warning("%s ends in a record that its process did not finish", path_of(folder, number))
            end_at = after
            count += 1
            if count >= most:
                break
            if gentle and not count % PIECE:
                time.sleep(REST_S)
    finally:
        os.close(fd)
    batch.end, batch.count = (number, end_at), count
    for id, payload in unclosed.items():
        batch.opened[id] = Opened(*orjson.loads(payload)[:_OPENED_FIELDS])
    return count < most


def _id_in(payload: bytes) -> str:
    """The first text of a list in JSON."""
    id = payload[2 : payload.find(b'"', 2)]
    return orjson.loads(payload)[0] if b"\\" in id else id.decode()


def _columns(fd: int) -> tuple[str, ...]:
    """What the rows of a segment hold, by its first record; as now where that cannot be read."""
    for kind, payload, _ in records(lambda count, at: os.pread(fd, count, at), 0, 4_096):
        if kind == COLUMNS_KIND:
            return tuple(orjson.loads(payload))
        break
    return COLUMNS


def _translated(row: list[Any], names: tuple[str, ...]) -> list[Any]:
    by_name = dict(zip(names, row, strict=False))
    return [by_name.get(name, empty(name)) for name in COLUMNS]


def rows_from(folder: Path, start: Place) -> Iterator[list[Any]]:
    """Every row from `start` to the end, in order; also while somebody writes, and somebody folds: rows that are folded
    meanwhile may be left out. Raises OSError."""
    while True:
        try:
            batch = read_batch(folder, start, None)
        except FileNotFoundError:
            continue  # its segment was folded and removed at this moment; the rows in those behind it are still there
        yield from batch.rows
        if batch.end == start:
            return
        start = batch.end
