"""The tables of the registry and their migrations."""

from __future__ import annotations

import time
from collections.abc import Iterable

import sqlalchemy as sa

from pressroom.registry._mlflow_tables import blobs_of_artifacts

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


# What people say of a version: never part of its digest, and may change.
notes = sa.Table(
    "version_notes",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("run", sa.String(200), nullable=False),
    sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
)

tags = sa.Table(
    "version_tags",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("tag", sa.String(250), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
)

# No cascade: the database itself refuses to remove a version that an alias points to.
aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("alias", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
)

# What a version's sheet must say before the alias may point to it: `bound` as pressroom.registry.floors writes it.
floors = sa.Table(
    "floors",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("alias", sa.String(64), primary_key=True),
    sa.Column("figure", sa.String(100), primary_key=True),
    sa.Column("sense", sa.String(3), primary_key=True),
    sa.Column("bound", sa.String(80), nullable=False),
)

# What happened to aliases and floors, also what was refused. Rows are only added: they outlive their version and model.
moves = sa.Table(
    "moves",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("name", sa.String(200), nullable=False, index=True),
    sa.Column("alias", sa.String(64), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("who", sa.String(200), nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("from_number", sa.Integer),
    sa.Column("from_digest", sa.String(80)),
    sa.Column("to_number", sa.Integer),
    sa.Column("to_digest", sa.String(80)),
    sa.Column("details", sa.JSON, nullable=False),
)

# SHA-256 of bytes of the store, which other hubs name files by: computed once.
hashes = sa.Table(
    "blob_hashes",
    metadata,
    sa.Column("blob", sa.String(80), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
)

# Bytes that somebody puts and registers later, and until when nobody else may let go of them.
leases = sa.Table(
    "blob_leases",
    metadata,
    sa.Column("blob", sa.String(80), primary_key=True),
    sa.Column("until", sa.Float, nullable=False),
)

# Of a version, in the order they can be removed in.
OF_A_VERSION = (pulls, figures, files, tags, notes, versions)


def used_blobs(connection: sa.Connection) -> set[str]:
    """The digests of bytes that a version, an artifact of MLflow or a lease keeps."""
    kept = sa.select(leases.c.blob).where(leases.c.until > time.time())
    of_versions = connection.scalars(sa.select(files.c.blob).distinct())
    return {*of_versions, *blobs_of_artifacts(connection), *connection.scalars(kept)}


def lease(connection: sa.Connection, blobs: Iterable[str], *, until: float) -> None:
    """Keep bytes for so long (seconds since the epoch); a longer lease stays. What ran out goes with it."""
    connection.execute(leases.delete().where(leases.c.until < time.time()))
    for blob in dict.fromkeys(blobs):
        if connection.scalar(sa.select(leases.c.until).where(leases.c.blob == blob)) is None:
            connection.execute(leases.insert().values(blob=blob, until=until))
        else:
            shorter = (leases.c.blob == blob) & (leases.c.until < until)
            connection.execute(leases.update().where(shorter).values(until=until))


def release(connection: sa.Connection, blobs: Iterable[str]) -> None:
    for blob in dict.fromkeys(blobs):
        connection.execute(leases.delete().where(leases.c.blob == blob))


def pointing_to(connection: sa.Connection, name: str, number: int) -> list[str]:
    """The aliases of a version, looked up so that nobody moves one until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("LOCK TABLE aliases IN SHARE ROW EXCLUSIVE MODE"))
    of_version = (aliases.c.name == name) & (aliases.c.number == number)
    return [*connection.scalars(sa.select(aliases.c.alias).where(of_version).order_by(aliases.c.alias))]


def first_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[names, versions, files, figures])


def remember_pulls(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[pulls])


def words_and_aliases(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[notes, tags, aliases, floors, moves])


def hashes_and_leases(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[hashes, leases])


MIGRATIONS = (first_tables, remember_pulls, words_and_aliases, hashes_and_leases)
