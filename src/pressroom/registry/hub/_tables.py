"""What the hub keeps beside the registry: names that were made before their first push, and where `main` is."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

repositories = sa.Table(
    "hub_repositories",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    # Equal files are the version they were before, so a push may bring `main` back to an older number.
    sa.Column("head_number", sa.Integer),
    sa.Column("head_at", sa.Float),
)


def first_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS = (first_tables,)
