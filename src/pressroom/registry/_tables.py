"""The tables of the registry and their migrations."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

# The highest number a name ever had: numbers are not used again, also after a version is removed.
names = sa.Table(
    "names",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("last_number", sa.Integer, nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("parent", sa.String(80)),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.UniqueConstraint("name", "digest"),
)

files = sa.Table(
    "version_files",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("path", sa.String(500), primary_key=True),
    sa.Column("blob", sa.String(80), nullable=False, index=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
)

figures = sa.Table(
    "figures",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("figure", sa.String(100), primary_key=True),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("value", sa.JSON, nullable=False),
    sa.Column("unit", sa.String(40), nullable=False),
    sa.Column("how", sa.Text, nullable=False),
    sa.Column("measured_on", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
)

# What a source brought when it was last asked: `asked` is a digest of the source as it was written.
pulls = sa.Table(
    "pulls",
    metadata,
    sa.Column("asked", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
)


def first_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[names, versions, files, figures])


def remember_pulls(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[pulls])


MIGRATIONS = (first_tables, remember_pulls)
