"""What sources brought when they were last asked; a source is known by a digest of how it was written."""

from __future__ import annotations

import time

import sqlalchemy as sa

from pressroom.registry._tables import pulls
from pressroom.registry.base import Version


def remember(connection: sa.Connection, asked: str, version: Version) -> None:
    same = (pulls.c.asked == asked) & (pulls.c.name == version.name)
    values = {"number": version.number, "at": time.time()}
    if not connection.execute(pulls.update().where(same).values(**values)).rowcount:
        connection.execute(pulls.insert().values(asked=asked, name=version.name, **values))


def brought(connection: sa.Connection, asked: str, name: str | None) -> list[tuple[str, int]]:
    """Names and numbers of what it brought, under `name` or any, newest first."""
    query = sa.select(pulls).where(pulls.c.asked == asked).order_by(pulls.c.at.desc())
    rows = connection.execute(query if name is None else query.where(pulls.c.name == name))
    return [(row.name, row.number) for row in rows]
