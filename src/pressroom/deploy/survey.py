"""What is measured of a deployment while it runs: how fast each variant of `auto` is at which load, and whether each
copy says what its model says.

Measured once for a version, an engine and a machine, then kept in the database.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pressroom.deploy.base import AUTO, Phase, Running
from pressroom.deploy.deployments import Deployments
from pressroom.deploy.fleet import Copy, Fleet
from pressroom.engines import Endpoint, speed
from pressroom.kernel import EngineError, PressroomError, Ref, Workspace, this_machine

_log = logging.getLogger(__name__)

# Clients at once that the variants of `auto` are compared at; between them the figures are interpolated.
_CLIENTS = (1, 4, 8, 16, 64)
_TOKENS = 48
_FEWEST_TOKENS = 8
_WARM_UP = 8
# One measurement is to take about this long at most: a slow machine gets fewer tokens, not a longer start.
_LONGEST_S = 10.0
_CONDITIONS_LENGTH = 200


class Surveyor:
    """Measures fleets, one thing at a time, in a thread; `before` and `after` are called by the reconciler and return
    at once. Without a workspace no parity is checked.
    """

    def __init__(self, deployments: Deployments, workspace: Workspace | None = None) -> None:
        self._deployments = deployments
        self._workspace = workspace
        self._begun: set[str] = set()
        self._speeds: dict[str, tuple[tuple[int, float], ...]] = {}  # by the key of the copy
        self._stopping = threading.Event()
        self._one_at_a_time = threading.Lock()

    def before(self, fleet: Fleet) -> None:
        """Measure what `auto` must know of a fleet before it takes traffic, and hold it back until that is known."""
        if fleet.wish.engine != AUTO or fleet.speeds:
            return
        ready = [copy for copy in fleet.copies if copy.running().phase is Phase.READY]
        if any(copy.running().phase not in (Phase.READY, Phase.FAILED) for copy in fleet.copies):
            fleet.holding_back = "its engines start"
            return
        if len(ready) < 2:
            fleet.holding_back = ""  # there is nothing to choose among
            return
        known = {copy.wish.engine: self._known_speeds(copy) for copy in ready}
        if all(known.values()):
            fleet.speeds = {engine: speeds for engine, speeds in known.items() if speeds}
            for copy in ready:
                copy.figures["tokens_per_second"] = {str(n): rate for n, rate in fleet.speeds[copy.wish.engine]}
            fleet.holding_back = ""
            return
        fleet.holding_back = fleet.holding_back or "its engines are measured"
        self._once(f"speed {ready[0].key}", lambda: self._measure_speeds(fleet, ready))

    @property
    def checks_parity(self) -> bool:
        """Whether `after` checks anything."""
        return self._workspace is not None and self._workspace.settings.engines.parity

    def after(self, fleet: Fleet, *, idle: bool) -> None:
        """Check once whether each copy says what its model says, when it has nothing else to do."""
        if not self.checks_parity or fleet.holding_back:
            return
        from pressroom.engines import engine_class

        for copy in fleet.copies:
            if engine_class(copy.wish.engine).elsewhere:
                continue  # asking costs, and there are no weights to compare with
            key = f"parity {copy.key}"
            if "parity" in copy.figures or key in self._begun or not idle or copy.running().phase is not Phase.READY:
                continue
            known = self._deployments.measured(copy.wish.digest, copy.wish.engine, "parity", conditions(copy))
            if known is not None:
                copy.figures["parity"] = known
            else:
                self._once(key, lambda copy=copy: self._compare(copy))  # type: ignore[misc]

    def close(self) -> None:
        """Nothing more begins. What runs ends with the engine that it asks."""
        self._stopping.set()

    def _once(self, key: str, work: Callable[[], None]) -> None:
        if key in self._begun or self._stopping.is_set():
            return
        self._begun.add(key)

        def run() -> None:
            with self._one_at_a_time:
                if not self._stopping.is_set():
                    _logged(work)()

        # A daemon: a measurement under way does not keep the server from ending.
        threading.Thread(target=run, name="survey", daemon=True).start()

    def _compare(self, copy: Copy) -> None:
        """Check parity; whatever goes wrong with it, somebody may wait for a word."""
        try:
            self._check_parity(copy)
        except PressroomError as error:
            _log.error("whether %s says what its model says cannot be told: %s", copy.wish.name, error)
            copy.figures["parity"] = {"verdict": "unchecked", "reason": str(error)}

    def _check_parity(self, copy: Copy) -> None:
        from pressroom.engines import check_parity, engine_class, kept_reference
        from pressroom.registry import Registry

        workspace, wish = self._workspace, copy.wish
        assert workspace is not None
        now = copy.running()
        if copy.replica is None or not now.port:
            return
        endpoint = replace(_endpoint(now), capabilities=copy.replica.capabilities)
        if copy.replica.capabilities is not None and copy.replica.capabilities.embeddings:
            copy.figures["parity"] = {"verdict": "unchecked", "reason": "embeddings are not compared"}
            return
        reference, model = None, None
        if engine_class(wish.engine).formats:
            registry = Registry(workspace)
            model = registry.materialise(registry.get(Ref(Ref.parse(wish.ref).name, None, wish.digest)))
            if not self._room_for(model):
                copy.figures["parity"] = {
                    "verdict": "unchecked",
                    "reason": "no memory for a second copy of the weights",
                }
                return
            weights, folder = model, workspace.path("parity")
            threads = workspace.settings.engines.threads
            reference = lambda: kept_reference(weights, digest=wish.digest, folder=folder, threads=threads)  # noqa: E731
        found = check_parity(endpoint, model, engine=wish.engine, reference=reference).as_dict()
        figures = {name: value for name, value in found.items() if name != "prompts"}
        level = logging.WARNING if figures["verdict"] == "different" else logging.INFO
        _log.log(level, "%s on %s beside what its model says: %s", wish.name, wish.engine, figures["verdict"])
        copy.figures["parity"] = figures
        self._keep(copy, "parity", figures)

    def _keep(self, copy: Copy, what: str, figures: dict[str, Any]) -> None:
        """Write down what was measured; where that cannot be, it is measured again another time."""
        try:
            self._deployments.write_measured(copy.wish.digest, copy.wish.engine, what, conditions(copy), figures)
        except PressroomError as error:
            _log.error("what was measured of %s is not kept: %s", copy.wish.name, error)

    def _room_for(self, model: Path) -> bool:
        """Whether a second copy of the weights, as the reference is computed from them, fits beside what runs."""
        from pressroom.engines import available, estimate

        assert self._workspace is not None
        if model.is_file() and model.suffix == ".gguf":
            needed = model.stat().st_size
        else:
            options = {"dtype": "float32"}
            needed = estimate(model, engine="transformers", context=1024, slots=1, options=options).total
        return needed < available(self._workspace.settings.engines).free

    def _known_speeds(self, copy: Copy) -> tuple[tuple[int, float], ...] | None:
        wish = copy.wish
        if copy.key in self._speeds:
            return self._speeds[copy.key]
        figures = self._deployments.measured(wish.digest, wish.engine, "speed", conditions(copy))
        return tuple((int(clients), float(rate)) for clients, rate in figures["speeds"]) if figures else None

    def _measure_speeds(self, fleet: Fleet, copies: list[Copy]) -> None:
        for copy in copies:
            if self._known_speeds(copy):
                continue
            found = []
            endpoint, under = _endpoint(copy.running()), conditions(copy)
            try:
                rate = speed(endpoint, clients=1, tokens=_WARM_UP, model=copy.wish.name).tokens_per_second
                for clients in _CLIENTS:
                    fleet.holding_back = f"{copy.wish.engine} is measured at {clients} clients"
                    if self._stopping.is_set():
                        return
                    tokens = max(_FEWEST_TOKENS, min(_TOKENS, int(rate * _LONGEST_S / clients)))
                    rate = speed(endpoint, clients=clients, tokens=tokens, model=copy.wish.name).tokens_per_second
                    found.append((clients, round(rate, 1)))
            except EngineError as error:
                if self._stopping.is_set() or copy.running().phase is not Phase.READY or conditions(copy) != under:
                    self._begun.discard(f"speed {copies[0].key}")  # it ended, or starts again: measured when it is back
                    return
                # Not written down: the next copy may do better.
                _log.error("%s on %s is not chosen: %s", copy.wish.name, copy.wish.engine, error)
                self._speeds[copy.key] = tuple((clients, 0.0) for clients in _CLIENTS)
                continue
            self._speeds[copy.key] = tuple(found)
            self._keep(copy, "speed", {"speeds": found})


def conditions(copy: Copy) -> str:
    """What the figures of a copy depend on besides its version and engine."""
    now = copy.running()
    options = ",".join(f"{key}={value}" for key, value in sorted(copy.wish.options.items()))
    found = f"{this_machine()}; {now.version}; {now.slots} slots of {now.context}; {options}"
    if len(found) > _CONDITIONS_LENGTH:
        found = f"sha256-{hashlib.sha256(found.encode()).hexdigest()}"
    return found


def _endpoint(now: Running) -> Endpoint:
    return Endpoint(host=now.host, port=now.port, pid=now.pid or 0, context=now.context, slots=now.slots)


def _logged(work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            work()
        except PressroomError as error:
            _log.error("a measurement failed: %s", error)
        except Exception:  # the edge of a thread  # noqa: BLE001
            _log.exception("a measurement failed")

    return run
