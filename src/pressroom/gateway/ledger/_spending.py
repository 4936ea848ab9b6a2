"""Sums of what was spent, by whom and in which period, changed in the transaction that adds the rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from pressroom.gateway.ledger._tables import MIGRATIONS, spending
from pressroom.gateway.money.base import Spending
from pressroom.gateway.money.periods import labels_of
from pressroom.kernel import Workspace

KEY, TEAM, DEPLOYMENT, ALL = "key", "team", "deployment", "all"

# A sum stops here, short of what 64 bits hold: rows that made it fail would wait in the journal for ever.
_MOST = 1 << 62


def _sum(column: sa.ColumnElement[int], name: str) -> sa.ColumnElement[int]:
    more = sa.bindparam(name, type_=sa.BigInteger)
    return sa.case((column > _MOST - more, _MOST), (column < -_MOST - more, -_MOST), else_=column + more)


_ADD = (
    spending.update()
    .where(
        spending.c.scope == sa.bindparam("s"),
        spending.c.name == sa.bindparam("n"),
        spending.c.period == sa.bindparam("p"),
    )
    .values(tokens=_sum(spending.c.tokens, "t"), nano_usd=_sum(spending.c.nano_usd, "m"))
)
# Two processes that add the same line at once: one of them fails, and its whole transaction is made again.
_BEGIN = spending.insert().from_select(
    ["scope", "name", "period", "tokens", "nano_usd"],
    sa.select(
        sa.cast(sa.bindparam("s"), sa.String),
        sa.cast(sa.bindparam("n"), sa.String),
        sa.cast(sa.bindparam("p"), sa.String),
        sa.literal_column("0"),
        sa.literal_column("0"),
    ).where(
        ~sa.exists().where(
            spending.c.scope == sa.bindparam("s"),
            spending.c.name == sa.bindparam("n"),
            spending.c.period == sa.bindparam("p"),
        )
    ),
)


class Sums:
    """Collects what rows add."""

    def __init__(self) -> None:
        # By key, team, model and day: few, where rows are many.
        self._by: dict[tuple[str, str, str, int], list[int]] = {}

    def add(self, key: str, team: str, model: str, at: float, tokens: int, nano_usd: int) -> None:
        who = (key, team, model, int(at // 86_400))
        found = self._by.get(who)
        if found is None:
            self._by[who] = [tokens, nano_usd, at]  # type: ignore[list-item]
        else:
            found[0] += tokens
            found[1] += nano_usd

    def write(self, connection: sa.Connection) -> None:
        """Add all of it to the table, always in the same order: two processes that do cannot wait for each other."""
        lines: dict[tuple[str, str, str], list[int]] = {}
        for (key, team, model, _), (tokens, nano_usd, at) in self._by.items():
            if not (tokens or nano_usd):
                continue
            for scope, name in ((KEY, key), (TEAM, team), (DEPLOYMENT, model), (ALL, "")):
                if not name and scope != ALL:
                    continue
                for period in labels_of(at):
                    line = lines.setdefault((scope, name, period), [0, 0])
                    line[0] += tokens
                    line[1] += nano_usd
        if lines:
            values: list[dict[str, Any]] = [
                {"s": scope, "n": name, "p": period, "t": _bounded(tokens), "m": _bounded(nano_usd)}
                for (scope, name, period), (tokens, nano_usd) in sorted(lines.items())
            ]
            connection.execute(_BEGIN, [{name: value[name] for name in "snp"} for value in values])
            connection.execute(_ADD, values)


def _bounded(amount: int) -> int:
    return min(max(amount, -_MOST), _MOST)


def spent(workspace: Workspace, *, periods: Iterable[str] | None = None) -> list[Spending]:
    """What was spent, of these periods or of all, as the database has it now.

    Raises:
        WorkspaceError: the database cannot be used.
    """
    workspace.database.migrate("ledger", MIGRATIONS)
    query = sa.select(spending).order_by(spending.c.scope, spending.c.name, spending.c.period)
    if periods is not None:
        query = query.where(spending.c.period.in_(list(periods)))
    with workspace.database.reading() as connection:
        return [Spending(**row._mapping) for row in connection.execute(query)]
