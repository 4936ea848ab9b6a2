"""Deployments as engine processes on this machine, each kept alive by a supervisor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pressroom.deploy.base import Cluster, Deployment, Phase, Replica, Running, check_format, log_file, own_options
from pressroom.engines import (
    Capabilities,
    Engine,
    EngineSpec,
    Estimate,
    Policy,
    Standing,
    Supervisor,
    create,
    engine_class,
    estimate,
)
from pressroom.kernel import Ref, this_machine
from pressroom.registry import Registry


class Backend(Cluster):
    """Runs engines beside the gateway."""

    def needs(self, wish: Deployment) -> Estimate | None:
        spec = self._spec(wish, "")
        return estimate(
            spec.model, engine=wish.engine, context=spec.context, slots=spec.slots, options=dict(spec.options)
        )

    def launch(self, wish: Deployment, *, label: str = "") -> Replica:
        spec = self._spec(wish, label)
        return _Supervised(
            lambda: create(wish.engine, spec),
            engine_class(wish.engine).capabilities,
            Policy(patience=self.workspace.settings.engines.patience_s),
        )

    def _spec(self, wish: Deployment, label: str) -> EngineSpec:
        settings = self.workspace.settings.engines
        kind = engine_class(wish.engine)
        model: Path | None = None
        if kind.formats:
            registry = Registry(self.workspace)
            version = registry.get(Ref(Ref.parse(wish.ref).name, None, wish.digest))
            check_format(version, wish.engine, kind)
            model = registry.materialise(version)
        options = {**kind.defaults(self.workspace), **own_options(wish.options, wish.engine)}
        threads = int(options.pop("threads", settings.threads))
        if not threads and wish.replicas > 1:
            # Engines that each take all cores stand in each other's way: measured at a tenth of their speed.
            threads = max(1, this_machine().physical_cores // wish.replicas)
        return EngineSpec(
            name=wish.name,
            model=model,
            context=int(options.pop("context", settings.context)),
            slots=int(options.pop("slots", settings.slots)) or kind.default_slots,
            threads=threads,
            start_timeout_s=settings.start_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
            log=log_file(self.workspace.path("logs"), wish.name, label),
            options=options,
        )


# The supervisor's words are about an engine, the deployment's about a wish; here they mean the same.
_PHASES = {standing: Phase(standing.value) for standing in Standing}


class _Supervised(Replica):
    """An engine with its supervisor."""

    def __init__(self, make: Callable[[], Engine], capabilities: Capabilities, policy: Policy) -> None:
        self.capabilities = capabilities
        self._supervisor = Supervisor(make, policy=policy)
        self._supervisor.start()

    def running(self) -> Running:
        snapshot = self._supervisor.snapshot
        endpoint = snapshot.endpoint
        if endpoint is not None and endpoint.capabilities is not None:
            self.capabilities = endpoint.capabilities
        return Running(
            phase=_PHASES[snapshot.standing],
            detail=snapshot.detail,
            host=endpoint.host if endpoint else "",
            port=endpoint.port if endpoint else 0,
            pid=endpoint.pid if endpoint else None,
            context=endpoint.context if endpoint else 0,
            slots=endpoint.slots if endpoint else 0,
            version=endpoint.version if endpoint else "",
            restarts=snapshot.restarts,
            memory_bytes=snapshot.memory_bytes,
            peak_memory_bytes=snapshot.peak_memory_bytes,
            since=snapshot.since,
        )

    def stop(self) -> None:
        self._supervisor.stop()
