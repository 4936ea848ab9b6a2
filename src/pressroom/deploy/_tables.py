"""The tables of wishes and observations, and their migrations."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("ref", sa.String(400), nullable=False),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("engine", sa.String(64), nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("running", sa.Boolean, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)

observed = sa.Table(
    "deployments_observed",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("url", sa.String(200), nullable=False),
    sa.Column("pid", sa.Integer),
    sa.Column("restarts", sa.Integer, nullable=False),
    sa.Column("memory_bytes", sa.BigInteger, nullable=False),
    sa.Column("context", sa.Integer, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("seen", sa.Float, nullable=False),
    # Which server process saw it: what an earlier one wrote before it was killed does not count.
    sa.Column("server", sa.String(64), nullable=False),
)


def first_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS = (first_tables,)
