"""The tables of what MLflow keeps here: files of runs and logged models, and what MLflow says of models and versions.

Nothing here needs MLflow: whoever collects unused bytes asks `blobs_of_artifacts`.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

metadata = sa.MetaData()

# Bytes compare as bytes on both databases, so that a folder is a range of paths.
_PATH = sa.String(1000).with_variant(sa.String(1000, collation="C"), "postgresql")

# `path` is the whole one below the workspace's root of artifacts: experiment, run or logged model, folders, name.
artifacts = sa.Table(
    "mlflow_artifacts",
    metadata,
    sa.Column("path", _PATH, primary_key=True),
    sa.Column("blob", sa.String(80), nullable=False, index=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

# Models that MLflow made or described; those that came another way need no row.
models = sa.Table(
    "mlflow_models",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
)

model_tags = sa.Table(
    "mlflow_model_tags",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("tag", sa.String(250), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

# What MLflow wants to hear again of a version that it registered. Numbers are not used again: a row may outlive it.
versions = sa.Table(
    "mlflow_versions",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("run_link", sa.Text, nullable=False),
    sa.Column("model_id", sa.String(200), nullable=False),
)


def first_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS = (first_tables,)


def blobs_of_artifacts(connection: sa.Connection) -> set[str]:
    """The digests of bytes that an artifact keeps; none where MLflow was never here."""
    if not sa.inspect(connection).has_table(artifacts.name):
        return set()
    return set(connection.scalars(sa.select(artifacts.c.blob).distinct()))


def below(folder: str) -> sa.ColumnElement[bool]:
    """The condition for all that is in a folder and its folders ("": everything)."""
    if not folder:
        return sa.true()
    # '0' is the character after '/'.
    return (artifacts.c.path >= f"{folder}/") & (artifacts.c.path < f"{folder}0")


def put(connection: sa.Connection, rows: Iterable[tuple[str, str, int]], *, at: float) -> None:
    """Set (path, blob, size); what was at a path before is replaced."""
    for path, blob, size in rows:
        values = {"blob": blob, "size": size, "at": at}
        if not connection.execute(artifacts.update().where(artifacts.c.path == path).values(**values)).rowcount:
            connection.execute(artifacts.insert().values(path=path, **values))
