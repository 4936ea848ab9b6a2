"""What has the traffic of each deployment, and what came of the versions that were to take it, in the database."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from pressroom.deploy import _tables as tables
from pressroom.deploy.base import Rollout, RouteWish, Standing, Verdict, route_from
from pressroom.kernel.database import Database

# Of one deployment; the oldest are forgotten.
_KEPT = 200
# A step a round for days would fill a row.
_MOST_STEPS = 100


class Standings:
    """Thread-safe. `server` names the server process that runs now, '' for none."""

    def __init__(self, database: Database, server: Callable[[], str]) -> None:
        self._database = database
        self._server = server

    def get(self, name: str) -> Standing:
        """What has the traffic of `name`; of one that was never served, nothing."""
        table = tables.standing
        with self._database.reading() as connection:
            row = connection.execute(sa.select(table).where(table.c.name == name)).one_or_none()
        if row is None:
            return Standing(name=name)
        warm = row.warm if row.server and row.server == self._server() else ()
        return Standing(
            name=name,
            serving=_routes(row.serving),
            previous=None if row.previous is None else _routes(row.previous),
            generation=row.generation,
            warm=tuple(warm),
        )

    def write(self, standing: Standing) -> None:
        """Keep it, in place of what was known, as long as there is such a deployment."""
        values: dict[str, Any] = {
            "name": standing.name,
            "serving": [route.as_dict() for route in standing.serving],
            "previous": None if standing.previous is None else [route.as_dict() for route in standing.previous],
            "generation": standing.generation,
            "warm": list(standing.warm),
            "server": self._server(),
        }
        table = tables.standing
        with self._database.begin() as connection:
            if not _is_wished(connection, standing.name):
                return  # it was forgotten while it was served
            connection.execute(table.delete().where(table.c.name == standing.name))
            connection.execute(table.insert().values(values))

    def write_rollout(self, rollout: Rollout) -> None:
        """Keep what is known of a roll-out, in place of what was."""
        values = dataclasses.asdict(rollout)
        values["steps"] = values["steps"][-_MOST_STEPS:]
        table = tables.rollouts
        with self._database.begin() as connection:
            if not _is_wished(connection, rollout.name):
                return
            same = _same(rollout.name, rollout.route, rollout.generation)
            if connection.execute(table.update().where(same).values(values)).rowcount:
                return
            connection.execute(table.insert().values(values))
            oldest = connection.scalar(
                sa.select(table.c.id)
                .where(table.c.name == rollout.name)
                .order_by(table.c.id.desc())
                .offset(_KEPT - 1)
                .limit(1)
            )
            if oldest is not None:
                connection.execute(table.delete().where((table.c.name == rollout.name) & (table.c.id < oldest)))

    def close_rollouts(self, name: str, generation: int) -> None:
        """A server process begins: what an earlier one did not decide of wishes before this one, nobody will."""
        table = tables.rollouts
        open_ = (table.c.name == name) & (table.c.verdict == Verdict.UNDER_WAY.value)
        said = {"verdict": Verdict.CANCELLED.value, "reason": "the server ended before it was decided"}
        with self._database.begin() as connection:
            connection.execute(table.update().where(open_ & (table.c.generation < generation)).values(said))

    def rollouts(self, name: str, *, most: int = _KEPT) -> list[Rollout]:
        """The roll-outs of `name`, newest first."""
        table = tables.rollouts
        asked = sa.select(table).where(table.c.name == name).order_by(table.c.id.desc()).limit(most)
        with self._database.reading() as connection:
            return [_rollout(row) for row in connection.execute(asked).all()]

    def rollout(self, name: str, route: str, generation: int) -> Rollout | None:
        """What is known of one roll-out."""
        asked = sa.select(tables.rollouts).where(_same(name, route, generation))
        with self._database.reading() as connection:
            row = connection.execute(asked).one_or_none()
        return _rollout(row) if row is not None else None


def forget(connection: sa.Connection, name: str, *, history: bool) -> None:
    """Let nothing be known of what served `name`; its `history` is kept unless it is to go, too."""
    connection.execute(tables.standing.delete().where(tables.standing.c.name == name))
    if history:
        connection.execute(tables.rollouts.delete().where(tables.rollouts.c.name == name))


def _is_wished(connection: sa.Connection, name: str) -> bool:
    table = tables.deployments
    return connection.scalar(sa.select(table.c.name).where(table.c.name == name)) is not None


def _same(name: str, route: str, generation: int) -> sa.ColumnElement[bool]:
    table = tables.rollouts
    return (table.c.name == name) & (table.c.route == route) & (table.c.generation == generation)


def _routes(records: list[dict[str, Any]]) -> tuple[RouteWish, ...]:
    return tuple(route_from(record) for record in records)


def _rollout(row: sa.Row[Any]) -> Rollout:
    known = {field.name: row._mapping[field.name] for field in dataclasses.fields(Rollout)}
    return Rollout(**{**known, "verdict": Verdict(row.verdict)})
