"""Budgets in the database: written by the command line, read by the server when their number of changes has grown."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa

from pressroom.gateway.money.amounts import MOST, BudgetError, amount_text, written
from pressroom.gateway.money.base import Budget, Period, Scope, Spending, Unit
from pressroom.kernel import NotFoundError, Workspace

# Days of spending that a treasury remembers; what has spent on fewer is read whole.
_DAYS = 70
_DAY_LENGTH = len("2026-11-21")

_metadata = sa.MetaData()
_budgets = sa.Table(
    "budgets",
    _metadata,
    sa.Column("scope", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("unit", sa.String(16), primary_key=True),
    sa.Column("period", sa.String(16), primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("changed", sa.Float, nullable=False),
)
# One row: a server sees by it that there is something to read.
_changes = sa.Table(
    "budgets_changes",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, nullable=False),
)
# The ledger's table, kept in the transactions that its rows are written in. Here it is only read.
_spending = sa.table(
    "spending",
    sa.column("scope", sa.String),
    sa.column("name", sa.String),
    sa.column("period", sa.String),
    sa.column("tokens", sa.BigInteger),
    sa.column("nano_usd", sa.BigInteger),
)


def _first_tables(connection: sa.Connection) -> None:
    _metadata.create_all(connection)
    connection.execute(_changes.insert().values(id=1, number=0))


class Budgets:
    """The budgets of one workspace. Thread-safe; several processes may use it at once."""

    def __init__(self, workspace: Workspace) -> None:
        self._database = workspace.database
        self._database.migrate("budgets", (_first_tables,))

    def set(self, budget: Budget) -> Budget | None:
        """Bound spending from now on; what was spent in the period already counts. Returns the budget it replaces.

        Raises:
            BudgetError: the amount is below 0, or more than fits.
        """
        if not 0 <= budget.amount <= MOST[budget.unit]:
            raise BudgetError(
                f"a budget of {amount_text(budget.amount, budget.unit)}",
                hint=f"It is from 0 to {amount_text(MOST[budget.unit], budget.unit)}.",
            )
        with self._database.begin() as connection:
            self._changed(connection)  # first: whoever writes at the same time waits for this row
            row = connection.execute(sa.select(_budgets).where(_same(budget))).one_or_none()
            if row is None:
                key = {"scope": budget.scope, "name": budget.name, "unit": budget.unit, "period": budget.period}
                values = {name: str(value) for name, value in key.items()}
                connection.execute(_budgets.insert().values(**values, amount=budget.amount, changed=time.time()))
            else:
                update = _budgets.update().where(_same(budget))
                connection.execute(update.values(amount=budget.amount, changed=time.time()))
        return None if row is None else _budget(row)

    def remove(
        self, scope: Scope, name: str, *, unit: Unit | None = None, period: Period | None = None
    ) -> list[Budget]:
        """Remove the budgets of somebody, or of these the one of `unit` and `period`; what was removed.

        Raises:
            NotFoundError: there is no such budget.
        """
        where = (_budgets.c.scope == str(scope)) & (_budgets.c.name == name)
        if unit is not None:
            where &= _budgets.c.unit == str(unit)
        if period is not None:
            where &= _budgets.c.period == str(period)
        with self._database.begin() as connection:
            rows = connection.execute(sa.select(_budgets).where(where)).all()
            if rows:
                self._changed(connection)
                connection.execute(_budgets.delete().where(where))
        if not rows:
            theirs = [written(budget) for budget in self.list() if (budget.scope, budget.name) == (scope, name)]
            whose = f"{scope}:{name}" if name else str(scope)
            asked = "" if unit is None else f" in {unit}" + ("" if period in (None, Period.TOTAL) else f" a {period}")
            raise NotFoundError(
                f"{whose} has no budget{asked}",
                hint=f"It has {', '.join(theirs)}." if theirs else "`press budget list` shows them.",
                asked=whose,
                known=theirs,
            )
        return sorted((_budget(row) for row in rows), key=_order)

    def changes(self) -> int:
        """How often budgets were changed: a server that has seen this number knows them all."""
        with self._database.reading() as connection:
            return int(connection.execute(sa.select(_changes.c.number)).scalar_one())

    def spending(self) -> list[Spending]:
        """What was spent, by whom and when, as far as the ledger's rows are in the database: for `Accounts.load`. Days
        that a treasury would not remember are left out."""
        with self._database.reading() as connection:
            if not sa.inspect(connection).has_table("spending"):
                return []
            length = sa.func.length(_spending.c.period)
            day = sa.select(_spending.c.period).where(length == _DAY_LENGTH).distinct()
            newest = connection.execute(day.order_by(_spending.c.period.desc()).limit(_DAYS)).scalars().all()
            rows = sa.select(_spending).where((length != _DAY_LENGTH) | (_spending.c.period >= min(newest, default="")))
            return [
                Spending(row.scope, row.name, row.period, int(row.tokens), int(row.nano_usd))
                for row in connection.execute(rows)
            ]

    def spent(self, labels: tuple[str, ...]) -> dict[tuple[str, str, str], tuple[int, int]]:
        """Tokens and nano-dollars by scope, name and label, of these labels, as far as the rows are in the database."""
        with self._database.reading() as connection:
            if not sa.inspect(connection).has_table("spending"):
                return {}
            rows = connection.execute(sa.select(_spending).where(_spending.c.period.in_(labels))).all()
        return {(row.scope, row.name, row.period): (int(row.tokens), int(row.nano_usd)) for row in rows}

    def _changed(self, connection: sa.Connection) -> None:
        connection.execute(_changes.update().values(number=_changes.c.number + 1))

    def list(self) -> list[Budget]:
        """Every budget: all, then teams, deployments and keys, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(_budgets)).all()
        return sorted((_budget(row) for row in rows), key=_order)


def _same(budget: Budget) -> sa.ColumnElement[bool]:
    return (
        (_budgets.c.scope == str(budget.scope))
        & (_budgets.c.name == budget.name)
        & (_budgets.c.unit == str(budget.unit))
        & (_budgets.c.period == str(budget.period))
    )


def _budget(row: sa.Row[Any]) -> Budget:
    return Budget(
        scope=Scope(row.scope), name=row.name, unit=Unit(row.unit), period=Period(row.period), amount=int(row.amount)
    )


def _order(budget: Budget) -> tuple[int, str, str, int]:
    scopes = (Scope.ALL, Scope.TEAM, Scope.DEPLOYMENT, Scope.KEY)
    return scopes.index(budget.scope), budget.name, budget.unit, list(Period).index(budget.period)
