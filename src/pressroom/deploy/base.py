"""What should run, and what does.

The wish (`Deployment`) is written to the database by anyone; the one server process of the workspace reads it,
brings it about and writes back what it sees (`Observed`). So nothing is lost when either side is killed, and no
control port is open.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.engines.base import Capabilities, Engine
from pressroom.kernel import CapabilityError, Workspace
from pressroom.registry.base import Version

if TYPE_CHECKING:
    from pressroom.engines import Estimate


class Phase(StrEnum):
    """Where a deployment is. `waiting`: no server process runs, or it has not looked yet, or there is no room for it
    now. `asleep`: nobody asked for it in a while, and the next request starts it."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPED = "stopped"
    ASLEEP = "asleep"


#: The engine of a deployment whose variants are chosen among by the load.
AUTO = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One form of a model that `auto` may answer with: a version, and the engine that runs it."""

    ref: str
    digest: str
    engine: str


#: The name of the one route of a deployment whose routes nobody named.
MAIN = "main"


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteWish:
    """One way to answer to a deployment's name: a version on an engine, of one's own or a vendor's.

    `weight` is its share of the requests beside the other routes' weights; with 0 it gets those only that the policy
    sends there. `price` is what a million tokens cost in US dollars (`prompt`, `completion`, `cached`) and a request
    (`request`), where it is not the price list's.
    """

    name: str
    ref: str
    digest: str
    engine: str
    options: dict[str, Any] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    replicas: int = 1
    idle_stop_s: float | None = None
    weight: float = 1.0
    price: dict[str, Any] | None = None

    @property
    def mark(self) -> str:
        """What engines are told apart by: two wishes with the same mark are brought about by the same ones."""
        forms = [dataclasses.astuple(variant) for variant in self.variants]
        what = [self.ref, self.digest, self.engine, self.options, forms, self.replicas]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `route_from` reads it."""
        return {**dataclasses.asdict(self), "variants": [dataclasses.asdict(variant) for variant in self.variants]}


def route_from(record: Mapping[str, Any]) -> RouteWish:
    """What `RouteWish.as_dict` gave."""
    return RouteWish(**{**record, "variants": tuple(Variant(**variant) for variant in record["variants"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """A wish: what should answer to `name`. `generation` rises with every change of the wish.

    `replicas` copies of it run, each an engine of its own. Where `engine` is AUTO, `variants` are what is chosen among.
    `idle_stop_s` is after how many seconds without a request it falls asleep: 0 for never, None for the setting's.

    One of several `routes` is described by each of these, and the fields above are the first one's. `policy` and
    `cache` are how requests are spread over them and what is answered from before, as the file of a deployment says it.
    `rollout` is what a new version goes through before it takes over (`Checks.as_dict`); where it is empty, it takes
    over when it answers, and what it replaces ends.
    """

    name: str
    ref: str
    digest: str
    engine: str
    options: dict[str, Any] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    replicas: int = 1
    idle_stop_s: float | None = None
    running: bool = True
    generation: int = 1
    created: float = 0.0
    routes: tuple[RouteWish, ...] = ()
    policy: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    rollout: dict[str, Any] = field(default_factory=dict)

    @property
    def ways(self) -> tuple[RouteWish, ...]:
        """Its routes, at least one."""
        if self.routes:
            return self.routes
        return (
            RouteWish(
                name=MAIN,
                ref=self.ref,
                digest=self.digest,
                engine=self.engine,
                options=self.options,
                variants=self.variants,
                replicas=self.replicas,
                idle_stop_s=self.idle_stop_s,
            ),
        )

    def alone(self, way: RouteWish) -> Deployment:
        """The deployment as it would be if this route were all of it: what a cluster is asked to launch."""
        return dataclasses.replace(
            self,
            ref=way.ref,
            digest=way.digest,
            engine=way.engine,
            options=way.options,
            variants=way.variants,
            replicas=way.replicas,
            idle_stop_s=way.idle_stop_s,
            routes=(),
            policy={},
            cache={},
            rollout={},
        )


class Verdict(StrEnum):
    """What came of a roll-out."""

    UNDER_WAY = "under way"
    TOOK_OVER = "took over"
    #: It failed a check, or did not come up.
    WITHDRAWN = "withdrawn"
    #: The wish was taken back, or stopped, before it was decided.
    CANCELLED = "cancelled"
    #: A newer version was wished before it was decided.
    REPLACED = "replaced"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One version on its way to a route of a deployment, of the wish `generation`. `steps` are what happened, each with
    `at` (seconds since the epoch) and `says`; `figures` what was measured. `ended` is 0 while it is under way."""

    name: str
    route: str
    generation: int
    from_ref: str
    from_digest: str
    to_ref: str
    to_digest: str
    engine: str
    verdict: Verdict = Verdict.UNDER_WAY
    reason: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What has the traffic of a deployment, whatever is wished of it, and what had it before; None for nothing.
    `warm` are the marks of the routes that are still loaded beside it."""

    name: str
    serving: tuple[RouteWish, ...] = ()
    previous: tuple[RouteWish, ...] | None = None
    #: The wish that `serving` replaced `previous` for.
    generation: int = 0
    warm: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What the server process saw last, of `generation`. `since` and `seen` in seconds since the epoch."""

    name: str
    generation: int
    phase: Phase
    detail: str = ""
    url: str = ""
    pid: int | None = None
    restarts: int = 0
    memory_bytes: int = 0
    context: int = 0
    since: float = 0.0
    seen: float = 0.0
    #: One entry a copy: version, engine, phase, pid, memory, and what was measured of it.
    copies: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """One started copy of a deployment, as its cluster sees it. `host` and `port` are set while it is ready."""

    phase: Phase
    detail: str = ""
    host: str = ""
    port: int = 0
    pid: int | None = None
    context: int = 0
    slots: int = 0
    #: Of the engine behind it.
    version: str = ""
    restarts: int = 0
    memory_bytes: int = 0
    peak_memory_bytes: int = 0
    since: float = 0.0


class Replica(ABC):
    """A started copy that is kept alive. Its methods may be called from any thread."""

    #: What the engine behind it can do; may change once it has come up.
    capabilities: Capabilities

    @abstractmethod
    def running(self) -> Running:
        """How it is now; does not block."""

    @abstractmethod
    def stop(self) -> None:
        """End it; returns when nothing of it is left. Calling it twice does nothing."""


class Cluster(ABC):
    """Where deployments run. A backend is one file under `deploy/backends/` with a subclass called `Backend`.

    Promises: `launch` returns at once and the replica comes up by itself; one that dies is started again; all end when
    the server process does, also on `kill -9`.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def needs(self, wish: Deployment) -> Estimate | None:
        """What memory a copy of what is wished would take here; None where that is not this machine's, or not known.

        Raises:
            NotFoundError, PluginError, EngineError: as `launch`.
        """
        return None

    @abstractmethod
    def launch(self, wish: Deployment, *, label: str = "") -> Replica:
        """Start a copy of what is wished. `label` tells the log of one copy from another's.

        Raises:
            NotFoundError: the version, or its bytes, are gone.
            PluginError, EngineError: the engine does not exist or cannot load this kind of weights.
        """


#: Options of a deployment that every engine has.
SIZES = ("context", "slots", "threads")


def own_options(options: Mapping[str, Any], engine: str) -> dict[str, Any]:
    """The options that are for this engine: of those written `engine.option`, its own."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        prefix, dot, option = key.rpartition(".")
        if not dot or prefix == engine:
            found[option] = value
    return found


def log_file(logs: Path, name: str, label: str = "") -> Path:
    """Where an engine of a deployment writes; the namespace of a name becomes part of the file's name."""
    return logs / f"{name.replace('/', '--')}{f'.{label}' if label else ''}.log"


def check_format(version: Version, engine: str, kind: type[Engine]) -> None:
    """Raise CapabilityError where an engine does not load this kind of weights."""
    found = version.format
    if kind.formats and found not in kind.formats:
        raise CapabilityError(
            f"the engine {engine!r} cannot run {version.name}:{version.number}: its format is {found}",
            hint=f"{engine} loads {', '.join(kind.formats)}.",
            engine=engine,
            format=found,
        )
