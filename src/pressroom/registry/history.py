"""The history of aliases and floors: rows that are only ever added, in the transaction of what they tell of."""

from __future__ import annotations

import sqlalchemy as sa

from pressroom.registry import _tables as tables
from pressroom.registry.base import ACTIONS, Move


def record(connection: sa.Connection, move: Move) -> None:
    """Write the move down; it stands exactly when the caller's transaction does."""
    assert move.action in ACTIONS
    connection.execute(
        tables.moves.insert().values(
            at=move.at,
            name=move.name,
            alias=move.alias,
            action=move.action,
            who=move.who,
            why=move.why,
            from_number=move.from_number,
            from_digest=move.from_digest,
            to_number=move.to_number,
            to_digest=move.to_digest,
            details=move.details,
        )
    )


def read(connection: sa.Connection, name: str | None = None, alias: str | None = None) -> list[Move]:
    """What was written down of a model and an alias, or of all of them, oldest first."""
    query = sa.select(tables.moves).order_by(tables.moves.c.id)
    if name is not None:
        query = query.where(tables.moves.c.name == name)
    if alias is not None:
        query = query.where(tables.moves.c.alias == alias)
    return [
        Move(
            at=row.at,
            name=row.name,
            alias=row.alias,
            action=row.action,
            who=row.who,
            why=row.why,
            from_number=row.from_number,
            from_digest=row.from_digest,
            to_number=row.to_number,
            to_digest=row.to_digest,
            details=row.details,
        )
        for row in connection.execute(query)
    ]
