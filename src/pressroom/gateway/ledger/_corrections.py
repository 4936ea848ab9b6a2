"""What a request cost after all: a row of its own with the difference, and the sums of that time put right with it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pressroom.gateway.ledger._spending import Sums
from pressroom.gateway.ledger._tables import COLUMNS, CORRECTION, MIGRATIONS, MUCH_MONEY, REQUEST, empty, ledger
from pressroom.gateway.ledger.base import Counted
from pressroom.kernel import PressroomError, Workspace

_AT_ONCE = 500
# What a correction takes over from the row it is about, so that sums over these come out right.
_SAME = (
    "at", "key", "team", "user", "tag", "model", "branch", "ref", "digest", "engine", "door", "stream", "shadow",
    "status", "outcome", "counted", "cache", "language",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrected:
    """What a repair came to: rows that were corrected, those that were right already, ids that are not in the ledger
    (any more), and the sum of the differences in nano-dollars."""

    rows: int
    unchanged: int
    unknown: tuple[str, ...]
    nano_usd: int


def correct(workspace: Workspace, costs: Mapping[str, int]) -> Corrected:
    """Let requests have cost this much, by id, in nano-dollars: what they cost now, with earlier corrections, is looked
    at in the same transaction, so that the same repair twice, or two at once, changes nothing more.

    A request of which no engine worked, or whose answer was kept from before, costs nothing and stays so.

    Raises:
        WorkspaceError: the database cannot be used; some hundred requests are corrected together or not at all, and the
            same call goes on from there.
        PressroomError: an amount is below 0 or beyond counting.
    """
    for id, nano_usd in costs.items():
        if not 0 <= nano_usd <= MUCH_MONEY:
            raise PressroomError(
                f"{nano_usd} is no cost of the request {id!r}",
                hint="A cost is a whole number of nano-dollars, 0 or more.",
            )
    workspace.database.migrate("ledger", MIGRATIONS)
    rows = unchanged = money = 0
    unknown: list[str] = []
    ids = list(costs)
    for begin in range(0, len(ids), _AT_ONCE):
        some = ids[begin : begin + _AT_ONCE]
        with workspace.database.begin() as connection:
            if connection.dialect.name == "postgresql":
                # Two repairs at once would both see the old sum; SQLite's BEGIN IMMEDIATE keeps the second one out.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            found = _found(connection, some)
            already = _already(connection, some)
            made: list[dict[str, Any]] = []
            sums = Sums()
            for id in some:
                row = found.get(id)
                if row is None:
                    unknown.append(id)
                    continue
                nano_usd = 0 if row.counted == Counted.NONE or row.cache else costs[id]
                difference = nano_usd - row.nano_usd - already.get(id, 0)
                if not difference:
                    unchanged += 1
                    continue
                made.append(_correction(row, difference))
                sums.add(row.key, row.team, row.model, row.at, 0, difference)
                rows += 1
                money += difference
            if made:
                connection.execute(ledger.insert(), made)
                sums.write(connection)
    return Corrected(rows=rows, unchanged=unchanged, unknown=tuple(unknown), nano_usd=money)


@dataclass(frozen=True, slots=True)
class Difference:
    """What a correction changed: row `number` of the ledger, about a request of that moment."""

    number: int
    at: float
    key: str
    team: str
    model: str
    nano_usd: int


def corrections(workspace: Workspace, *, after: int) -> list[Difference]:
    """The corrections since the row of this number, in the order they were made."""
    known = ledger.c
    query = (
        sa.select(known.number, known.at, known.key, known.team, known.model, known.nano_usd)
        .where(known.corrects.is_not(None), known.number > after)
        .order_by(known.number)
    )
    with workspace.database.reading() as connection:
        return [Difference(*row) for row in connection.execute(query)]


def newest_correction(workspace: Workspace) -> int:
    """The number of the last correction; 0 where there is none."""
    query = sa.select(sa.func.max(ledger.c.number)).where(ledger.c.corrects.is_not(None))
    with workspace.database.reading() as connection:
        return int(connection.execute(query).scalar_one() or 0)


_LOCK = 0x4C656467


def _found(connection: sa.Connection, ids: list[str]) -> dict[str, sa.Row[Any]]:
    query = sa.select(ledger).where(ledger.c.id.in_(ids), ledger.c.kind == REQUEST).order_by(ledger.c.number.desc())
    # The first row of an id is the last one here.
    return {row.id: row for row in connection.execute(query)}


def _already(connection: sa.Connection, ids: list[str]) -> dict[str, int]:
    query = (
        sa.select(ledger.c.corrects, sa.func.sum(ledger.c.nano_usd))
        .where(ledger.c.corrects.in_(ids))
        .group_by(ledger.c.corrects)
    )
    return {id: int(total) for id, total in connection.execute(query)}


def _correction(row: sa.Row[Any], difference: int) -> dict[str, Any]:
    values: dict[str, Any] = {name: empty(name) for name in COLUMNS}
    values |= {name: row._mapping[name] for name in _SAME}
    return values | {
        "id": f"correction-{uuid.uuid4().hex}",
        "nano_usd": difference,
        "kind": CORRECTION,
        "corrects": row.id,
        "recorded": time.time(),
    }
