"""Wishes in the database: what should run, written by anyone, and what does, written by the server process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pressroom.deploy import _tables as tables
from pressroom.deploy._standings import Standings, forget
from pressroom.deploy.base import Deployment, Observed, Phase, Rollout, RouteWish, Standing, Variant, route_from
from pressroom.deploy.checks import Checks
from pressroom.kernel import DeployError, NotFoundError, RefError, Workspace, did_you_mean, is_name

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
        self._standings = Standings(self._database, self._server)
        self._bell = workspace.dir / "run" / "wished"

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
        routes: Sequence[RouteWish] = (),
        policy: dict[str, Any] | None = None,
        cache: dict[str, Any] | None = None,
        rollout: dict[str, Any] | None = None,
    ) -> Deployment:
        """Wish that `name` is answered by the version `digest`, or by `routes`. The same wish again starts nothing
        anew, and one that differs in nothing but weights, policy or cache restarts nothing.

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
                routes=tuple(routes),
                policy=policy or {},
                cache=cache or {},
                rollout=rollout or {},
            )
            if before and dataclasses.replace(wish, generation=before.generation) == before:
                return before
            self._write(connection, wish, new=before is None)
            if before is None or not before.running:
                forget(connection, name, history=False)  # nobody is served: there is nothing that must go on
        self._ring()
        return wish

    def put_routes(self, wish: Deployment, routes: Sequence[RouteWish], *, rollout: Checks) -> Deployment:
        """Wish the same with other versions on its routes: as long as the wish is still what it was.

        Raises:
            DeployError: somebody else has changed it meanwhile, or forgotten it.
        """
        with self._database.begin() as connection:
            row = connection.execute(
                sa.select(tables.deployments).where(tables.deployments.c.name == wish.name)
            ).one_or_none()
            now = _deployment(row) if row else None
            if now != wish:
                raise DeployError(
                    f"{wish.name} was {'changed' if now else 'forgotten'} by somebody else this very moment",
                    hint="Look at `press ps`, and try it again.",
                    deployment=wish.name,
                )
            plain = not wish.routes and len(routes) == 1
            changed = dataclasses.replace(
                wish.alone(routes[0]),
                routes=() if plain else tuple(routes),
                policy=wish.policy,
                cache=wish.cache,
                rollout=rollout.as_dict(),
                generation=wish.generation + 1,
            )
            self._write(connection, changed, new=False)
        self._ring()
        return changed

    def _write(self, connection: sa.Connection, wish: Deployment, *, new: bool) -> None:
        values = dataclasses.asdict(wish)
        table = tables.deployments
        if new:
            connection.execute(table.insert().values(values))
        else:
            connection.execute(table.update().where(table.c.name == wish.name).values(values))

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
            forget(connection, name, history=True)
        self._ring()

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

    def standing(self, name: str) -> Standing:
        """What has the traffic of `name` and what had it before, as the server process wrote it down last."""
        return self._standings.get(name)

    def write_standing(self, standing: Standing) -> None:
        """For the server process: keep what has the traffic."""
        self._standings.write(standing)

    def rollouts(self, name: str) -> Sequence[Rollout]:
        """What came of the versions that were to take the traffic of `name`, newest first. Raises NotFoundError."""
        self.get(name)
        return self._standings.rollouts(name)

    def rollout(self, name: str, route: str, generation: int) -> Rollout | None:
        """What is known of the roll-out of one wish on one route."""
        return self._standings.rollout(name, route, generation)

    def write_rollout(self, rollout: Rollout) -> None:
        """For the server process: keep what is known of a roll-out."""
        self._standings.write_rollout(rollout)

    def close_rollouts(self, name: str, generation: int) -> None:
        """For a server process that begins: what was not decided of wishes before this one is cancelled."""
        self._standings.close_rollouts(name, generation)

    def holding(self, version: Version) -> str | None:
        """Why a version may not be removed: the deployment that wants it, is served by it or could go back to it, or
        None."""
        for wish in self.list():
            standing = self.standing(wish.name)
            lets_go = f"`press stop {wish.name} --forget` lets go of it"
            if version.digest in _digests(wish.ways):
                state = "runs" if wish.running else "is stopped but keeps"
                return f"the deployment {wish.name!r} {state} it ({lets_go})"
            if version.digest in _digests(standing.serving):
                return f"the deployment {wish.name!r} is answered by it until the next version takes over ({lets_go})"
            if standing.warm and version.digest in _digests(standing.previous or ()):
                return f"the deployment {wish.name!r} keeps it warm for `press rollback` ({lets_go})"
        return None

    def bell(self) -> int:
        """A number that changes soon after a wish did, cheap to look at; 0 where it cannot be told."""
        try:
            return self._bell.stat().st_mtime_ns
        except OSError:
            return 0

    def _ring(self) -> None:
        """Let the server process look at once: without it, it looks a few times a second."""
        with contextlib.suppress(OSError):  # a disk that is full holds up no wish
            self._bell.parent.mkdir(parents=True, exist_ok=True)
            self._bell.touch()
            now = time.time_ns()
            os.utime(self._bell, ns=(now, now))

    def _set_running(self, wish: Deployment, *, running: bool) -> Deployment:
        changed = dataclasses.replace(wish, running=running, generation=wish.generation + 1)
        with self._database.begin() as connection:
            connection.execute(
                tables.deployments.update()
                .where(tables.deployments.c.name == wish.name)
                .values(running=running, generation=changed.generation)
            )
        self._ring()
        return changed


def _deployment(row: sa.Row[Any]) -> Deployment:
    known = dict(row._mapping)
    variants = tuple(Variant(**variant) for variant in known["variants"])
    routes = tuple(route_from(record) for record in known["routes"])
    return Deployment(**{**known, "variants": variants, "routes": routes})


def _digests(routes: Sequence[RouteWish]) -> set[str]:
    """Every version that these routes may answer with."""
    found = {route.digest for route in routes}
    found.update(variant.digest for route in routes for variant in route.variants)
    return found
