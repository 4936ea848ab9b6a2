"""What should run, and what does.

The wish (`Deployment`) is written to the database by anyone; the one server process of the workspace reads it,
brings it about and writes back what it sees (`Observed`). So nothing is lost when either side is killed, and no
control port is open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """Where a deployment is. `waiting`: no server process runs, or it has not looked yet."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """A wish: the version that should answer to `name`. `generation` rises with every change of the wish."""

    name: str
    ref: str
    digest: str
    engine: str
    options: dict[str, Any] = field(default_factory=dict)
    running: bool = True
    generation: int = 1
    created: float = 0.0


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
