"""Wishes in the database: what should run, written by anyone, and what does, written by the server process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pressroom.deploy import _tables as tables
from pressroom.deploy.base import Deployment, Observed, Phase, Variant
from pressroom.kernel import NotFoundError, RefError, Workspace, did_you_mean, is_name

if TYPE_CHECKING:
    from pressroom.registry.base import Version

# The lock that the one server process of a workspace holds for as long as it lives.
SERVER_LOCK = "server"


class Deployments:
    """The wishes and observations of one workspace. Thread-safe; several processes may use it at once."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._database = workspace.database
        self._database.migrate("deploy", tables.MIGRATIONS)

    def put(
        self,
        name: str,
        *,
        ref: str,
        digest: str,
        engine: str,
        options: dict[str, Any] | None = None,
        variants: Sequence[Variant] = (),
        replicas: int = 1,
        idle_stop_s: float | None = None,
    ) -> Deployment:
        """Wish that `name` is answered by the version `digest`. The same wish again starts nothing anew.

        Raises:
            RefError: the name is not one.
        """
        if not is_name(name):
            raise RefError(
                f"{name!r} cannot name a deployment",
                hint="Names use letters, digits, '.', '_' and '-', and start with a letter or a digit.",
                asked=name,
            )
        with self._database.begin() as connection:
            row = connection.execute(
                sa.select(tables.deployments).where(tables.deployments.c.name == name)
            ).one_or_none()
            before = _deployment(row) if row else None
            wish = Deployment(
                name=name,
                ref=ref,
                digest=digest,
                engine=engine,
                options=options or {},
                variants=tuple(variants),
                replicas=replicas,
                idle_stop_s=idle_stop_s,
                generation=before.generation + 1 if before else 1,
                created=before.created if before else time.time(),
            )
            if before and dataclasses.replace(wish, generation=before.generation) == before:
                return before
            values = dataclasses.asdict(wish)
            if before:
                connection.execute(tables.deployments.update().where(tables.deployments.c.name == name).values(values))
            else:
                connection.execute(tables.deployments.insert().values(values))
        return wish

    def get(self, name: str) -> Deployment:
        """Raises NotFoundError, with the nearest names."""
        with self._database.reading() as connection:
            row = connection.execute(
                sa.select(tables.deployments).where(tables.deployments.c.name == name)
            ).one_or_none()
        if row is None:
            known = [wish.name for wish in self.list()]
            raise NotFoundError(
                f"there is no deployment called {name!r}",
                hint=did_you_mean(
                    name, known, otherwise="`press ps` lists them; `press deploy REF --as NAME` makes one."
                ),
                asked=name,
                known=known,
            )
        return _deployment(row)

    def list(self) -> list[Deployment]:
        """Every wish, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(tables.deployments).order_by(tables.deployments.c.name)).all()
        return [_deployment(row) for row in rows]

    def stop(self, name: str) -> Deployment:
        """Wish that `name` runs no more; it stays listed and can be started again. Raises NotFoundError."""
        wish = self.get(name)
        return self._set_running(wish, running=False) if wish.running else wish

    def start(self, name: str) -> Deployment:
        """Wish that a stopped deployment runs again. Raises NotFoundError."""
        wish = self.get(name)
        return wish if wish.running else self._set_running(wish, running=True)

    def retry(self, name: str) -> Deployment:
        """Ask for one that failed to be tried anew. Raises NotFoundError."""
        return self._set_running(self.get(name), running=True)

    def delete(self, name: str) -> None:
        """Forget the wish; a server process that runs it stops it. Raises NotFoundError."""
        self.get(name)
        with self._database.begin() as connection:
            connection.execute(tables.deployments.delete().where(tables.deployments.c.name == name))
            connection.execute(tables.observed.delete().where(tables.observed.c.name == name))

    def observe(self, seen: Observed) -> None:
        """Write down what the server process sees; a word on an older wish does not replace one on a newer."""
        values = {**dataclasses.asdict(seen), "server": self._server()}
        with self._database.begin() as connection:
            known = connection.scalar(
                sa.select(tables.observed.c.generation).where(tables.observed.c.name == seen.name)
            )
            if known is None:
                connection.execute(tables.observed.insert().values(values))
            elif known <= seen.generation:
                connection.execute(tables.observed.update().where(tables.observed.c.name == seen.name).values(values))

    def observed(self, wish: Deployment) -> Observed:
        """What is known of a wish now. Without a server process nothing runs, whatever was written last."""
        server = self._server()
        of_wish = (tables.observed.c.name == wish.name) & (tables.observed.c.server == server)
        with self._database.reading() as connection:
            row = connection.execute(sa.select(tables.observed).where(of_wish)).one_or_none() if server else None
        if row is not None and row.generation >= wish.generation:
            known = {field.name: row._mapping[field.name] for field in dataclasses.fields(Observed)}
            return Observed(**{**known, "phase": Phase(row.phase)})
        if not wish.running and row is None:
            return Observed(name=wish.name, generation=wish.generation, phase=Phase.STOPPED)
        detail = "" if server else "no server process runs"
        return Observed(name=wish.name, generation=wish.generation, phase=Phase.WAITING, detail=detail)

    def _server(self) -> str:
        """Which server process runs now, '' for none: its process number alone could be another's tomorrow."""
        holder = self._workspace.lock_holder(SERVER_LOCK)
        return f"{holder.get('pid')}-{holder.get('since')}" if holder else ""

    def measured(self, digest: str, engine: str, what: str, conditions: str) -> dict[str, Any] | None:
        """What was measured of a version on an engine under these conditions, or None."""
        table = tables.measured
        found = (
            (table.c.digest == digest)
            & (table.c.engine == engine)
            & (table.c.what == what)
            & (table.c.conditions == conditions)
        )
        with self._database.reading() as connection:
            figures: dict[str, Any] | None = connection.scalar(sa.select(table.c.figures).where(found))
        return figures

    def write_measured(self, digest: str, engine: str, what: str, conditions: str, figures: dict[str, Any]) -> None:
        """Keep what was measured, in place of what was before."""
        key = {"digest": digest, "engine": engine, "what": what, "conditions": conditions}
        table = tables.measured
        with self._database.begin() as connection:
            same = sa.and_(*(table.c[name] == value for name, value in key.items()))
            connection.execute(table.delete().where(same))
            connection.execute(table.insert().values(**key, figures=figures, at=time.time()))

    def holding(self, version: Version) -> str | None:
        """Why a version may not be removed: the deployment that wants it, or None."""
        for wish in self.list():
            if version.digest in (wish.digest, *(variant.digest for variant in wish.variants)):
                state = "runs" if wish.running else "is stopped but keeps"
                return f"the deployment {wish.name!r} {state} it (`press stop {wish.name} --forget` lets go of it)"
        return None

    def _set_running(self, wish: Deployment, *, running: bool) -> Deployment:
        changed = dataclasses.replace(wish, running=running, generation=wish.generation + 1)
        with self._database.begin() as connection:
            connection.execute(
                tables.deployments.update()
                .where(tables.deployments.c.name == wish.name)
                .values(running=running, generation=changed.generation)
            )
        return changed


def _deployment(row: sa.Row[Any]) -> Deployment:
    known = dict(row._mapping)
    return Deployment(**{**known, "variants": tuple(Variant(**variant) for variant in known["variants"])})
