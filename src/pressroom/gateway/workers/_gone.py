"""What a worker that is gone has left: its journal is brought to the database, and the sums of its rows are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pressroom.gateway.ledger import Counted, Opened, open_ledger
from pressroom.gateway.money.leases import Spent

if TYPE_CHECKING:
    import sqlalchemy as sa

    from pressroom.kernel import Workspace


@dataclass(frozen=True, slots=True)
class Left:
    """`settled`: what its requests came to, by key, team, deployment and day. `lost`: what ran when it ended."""

    settled: tuple[Spent, ...] = ()
    lost: tuple[Opened, ...] = ()


def recover(workspace: Workspace, number: int, names: Sequence[str]) -> Left:
    """Fold the journal of the worker of this number, whose process is gone. `names` is what the names of all requests
    begin with that it answered. May be called again.

    Raises:
        LockedError: another process does it at this moment.
        WorkspaceError: the database cannot be used.
    """
    ledger = open_ledger(workspace, worker=number)
    try:
        lost = ledger.recover(others=False)
    finally:
        ledger.stop()
    mine = tuple(one for one in lost if one.id.startswith(tuple(names)))
    return Left(_settled(workspace, names), mine)


def _settled(workspace: Workspace, names: Sequence[str]) -> tuple[Spent, ...]:
    import sqlalchemy as sa

    at, id, tokens = sa.column("at", sa.Float), sa.column("id", sa.String), sa.column("prompt_tokens", sa.BigInteger)
    key, team, model = sa.column("key", sa.String), sa.column("team", sa.String), sa.column("model", sa.String)
    nano = sa.column("nano_usd", sa.BigInteger)
    found: list[Spent] = []
    with workspace.database.reading() as connection:
        day = _day(connection, at)
        for name in names:
            query = (
                sa.select(
                    key,
                    team,
                    model,
                    day,
                    sa.func.sum(tokens + sa.column("completion_tokens", sa.BigInteger)),
                    sa.func.sum(nano),
                )
                .select_from(sa.table("ledger"))
                # What follows is hexadecimal: so the index finds them, whatever the order of letters is.
                .where(id >= name, id < f"{name}g", sa.func.substr(id, 1, len(name)) == name)
                .where(sa.column("kind", sa.String) == "request", sa.column("counted", sa.String) != str(Counted.NONE))
                .where(sa.column("cache", sa.String) == "")
                .group_by(key, team, model, day)
            )
            found += [
                Spent((row[0], row[1], row[2], int(row[3])), int(row[4]), int(row[5]))
                for row in connection.execute(query)
            ]
    return _added(found)


def _day(connection: sa.Connection, at: sa.ColumnClause[float]) -> sa.ColumnElement[int]:
    import sqlalchemy as sa

    days = at / 86_400.0
    if connection.dialect.name != "sqlite":  # whose cast cuts off, and whose floor is not in every build
        days = sa.func.floor(days)
    return sa.cast(days, sa.BigInteger)


def _added(found: list[Spent]) -> tuple[Spent, ...]:
    sums: dict[tuple[str, str, str, int], tuple[int, int]] = {}
    for spent in found:
        tokens, nano = sums.get(spent.line, (0, 0))
        sums[spent.line] = (tokens + spent.tokens, nano + spent.nano_usd)
    return tuple(Spent(line, tokens, nano) for line, (tokens, nano) in sums.items())
