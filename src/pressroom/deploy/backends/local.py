"""Deployments as engine processes on this machine, each kept alive by a supervisor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pressroom.deploy.base import Cluster, Deployment, Phase, Replica, Running, check_format, log_file
from pressroom.engines import Capabilities, Engine, EngineSpec, Standing, Supervisor, create, engine_class
from pressroom.kernel import Ref
from pressroom.registry import Registry


class Backend(Cluster):
    """Runs engines beside the gateway."""

    def launch(self, wish: Deployment) -> Replica:
        settings = self.workspace.settings.engines
        kind = engine_class(wish.engine)
        model: Path | None = None
        if kind.formats:
            registry = Registry(self.workspace)
            version = registry.get(Ref(Ref.parse(wish.ref).name, None, wish.digest))
            check_format(version, wish.engine, kind)
            model = registry.materialise(version)
        options = dict(wish.options)
        spec = EngineSpec(
            name=wish.name,
            model=model,
            context=int(options.pop("context", settings.context)),
            slots=int(options.pop("slots", settings.slots)),
            threads=int(options.pop("threads", settings.threads)),
            start_timeout_s=settings.start_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
            log=log_file(self.workspace.path("logs"), wish.name),
            options=options,
        )
        return _Supervised(lambda: create(wish.engine, spec), kind.capabilities)


# The supervisor's words are about an engine, the deployment's about a wish; here they mean the same.
_PHASES = {standing: Phase(standing.value) for standing in Standing}


class _Supervised(Replica):
    """An engine with its supervisor."""

    def __init__(self, make: Callable[[], Engine], capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self._supervisor = Supervisor(make)
        self._supervisor.start()

    def running(self) -> Running:
        snapshot = self._supervisor.snapshot
        endpoint = snapshot.endpoint
        return Running(
            phase=_PHASES[snapshot.standing],
            detail=snapshot.detail,
            host=endpoint.host if endpoint else "",
            port=endpoint.port if endpoint else 0,
            pid=endpoint.pid if endpoint else None,
            context=endpoint.context if endpoint else 0,
            restarts=snapshot.restarts,
            memory_bytes=snapshot.memory_bytes,
            since=snapshot.since,
        )

    def stop(self) -> None:
        self._supervisor.stop()
