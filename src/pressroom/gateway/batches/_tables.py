"""The tables of files and batches, and their migrations."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

files = sa.Table(
    "batch_files",
    metadata,
    # The order of pages: two files of one moment need one, too.
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("filename", sa.String(255), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("owner", sa.String(80), nullable=False, server_default=""),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("input_file", sa.String(64), nullable=False),
    sa.Column("window", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("metadata", sa.JSON),
    sa.Column("problems", sa.JSON, nullable=False),
    sa.Column("model", sa.String(255)),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Column("output", sa.String(64), nullable=False),
    sa.Column("errors", sa.String(64), nullable=False),
    sa.Column("has_output", sa.Boolean, nullable=False),
    sa.Column("has_errors", sa.Boolean, nullable=False),
    sa.Column("results_expire_s", sa.Integer),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("in_progress_at", sa.Float),
    sa.Column("finalizing_at", sa.Float),
    sa.Column("completed_at", sa.Float),
    sa.Column("failed_at", sa.Float),
    sa.Column("expired_at", sa.Float),
    sa.Column("cancelling_at", sa.Float),
    sa.Column("cancelled_at", sa.Float),
    sa.Column("owner", sa.String(80), nullable=False, server_default=""),
    sa.Column("key_name", sa.String(64), nullable=False, server_default=""),
)


def first_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)


def owners(connection: sa.Connection) -> None:
    """The columns that a database of the first step may not have. What is in it belongs to nobody's key."""
    for table in (files, batches):
        known = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                kind = column.type.compile(connection.dialect)
                connection.execute(
                    sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind} NOT NULL DEFAULT ''")
                )


MIGRATIONS = (first_tables, owners)
