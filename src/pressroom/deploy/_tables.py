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
    sa.Column("variants", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("replicas", sa.Integer, nullable=False, server_default="1"),
    sa.Column("idle_stop_s", sa.Float),
    sa.Column("routes", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("policy", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("cache", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("rollout", sa.JSON, nullable=False, server_default="{}"),
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
    sa.Column("copies", sa.JSON, nullable=False, server_default="[]"),
)

# What an engine was measured to give here, so that it is measured once: `what` is "speed" or "parity".
measured = sa.Table(
    "deployments_measured",
    metadata,
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("engine", sa.String(64), primary_key=True),
    sa.Column("what", sa.String(16), primary_key=True),
    # What the figures depend on besides: the machine, the engine's version, its threads and slots.
    sa.Column("conditions", sa.String(200), primary_key=True),
    sa.Column("figures", sa.JSON, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

# What has the traffic, written by the server process when it changes hands. A server that is killed while a new version
# is on its way leaves here what the next one has to bring back.
standing = sa.Table(
    "deployments_standing",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("serving", sa.JSON, nullable=False),
    sa.Column("previous", sa.JSON),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("warm", sa.JSON, nullable=False),
    # What is warm is so in this server process only.
    sa.Column("server", sa.String(64), nullable=False),
)

rollouts = sa.Table(
    "deployments_rollouts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("route", sa.String(200), nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("from_ref", sa.String(400), nullable=False),
    sa.Column("from_digest", sa.String(80), nullable=False),
    sa.Column("to_ref", sa.String(400), nullable=False),
    sa.Column("to_digest", sa.String(80), nullable=False),
    sa.Column("engine", sa.String(64), nullable=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("steps", sa.JSON, nullable=False),
    sa.Column("figures", sa.JSON, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("ended", sa.Float, nullable=False),
    sa.UniqueConstraint("name", "route", "generation"),
)


def first_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)


def variants_and_copies(connection: sa.Connection) -> None:
    """The columns and the table that a database of the first step does not have yet."""
    _add_columns(connection, deployments, observed)
    measured.create(connection, checkfirst=True)


def routes_and_rollouts(connection: sa.Connection) -> None:
    """Several routes a deployment, and what came of its roll-outs."""
    _add_columns(connection, deployments)
    standing.create(connection, checkfirst=True)
    rollouts.create(connection, checkfirst=True)


def _add_columns(connection: sa.Connection, *tables: sa.Table) -> None:
    for table in tables:
        known = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                kind = column.type.compile(connection.dialect)
                rest = "" if column.nullable else f" NOT NULL DEFAULT '{column.server_default.arg}'"  # type: ignore[union-attr]
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}{rest}"))


MIGRATIONS = (first_tables, variants_and_copies, routes_and_rollouts)
