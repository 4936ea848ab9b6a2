"""What runs a model: the contract, the backends, the supervisor that keeps one alive, and the measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.engines._load import create, engine_class, engine_names, engines_for
from pressroom.engines.base import Capabilities, Endpoint, Engine, EngineSpec, Health, State
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.engines._measure import measure
    from pressroom.engines._perplexity import Beside, Perplexity, perplexity
    from pressroom.engines._speed import Speed, speed
    from pressroom.engines.memory import Action, Decision, Estimate, MachineMemory, MemoryLedger, available, estimate
    from pressroom.engines.parity import Parity, ParityReference, check_parity, kept_reference, parity_reference
    from pressroom.engines.supervisor import Policy, Snapshot, Standing, Supervisor

__all__ = [
    "Action",
    "Beside",
    "Capabilities",
    "Decision",
    "Endpoint",
    "Engine",
    "EngineSpec",
    "Estimate",
    "Health",
    "MachineMemory",
    "MemoryLedger",
    "Parity",
    "ParityReference",
    "Perplexity",
    "Policy",
    "Snapshot",
    "Speed",
    "Standing",
    "State",
    "Supervisor",
    "available",
    "check_parity",
    "create",
    "engine_class",
    "engine_names",
    "engines_for",
    "estimate",
    "kept_reference",
    "measure",
    "parity_reference",
    "perplexity",
    "speed",
]

# Where each name is that only a running or a measured model needs: loaded when used.
__getattr__ = _lazily(
    __name__,
    {
        "Action": "memory",
        "Beside": "_perplexity",
        "Decision": "memory",
        "Estimate": "memory",
        "MachineMemory": "memory",
        "MemoryLedger": "memory",
        "Parity": "parity",
        "ParityReference": "parity",
        "Perplexity": "_perplexity",
        "Policy": "supervisor",
        "Snapshot": "supervisor",
        "Speed": "_speed",
        "Standing": "supervisor",
        "Supervisor": "supervisor",
        "available": "memory",
        "check_parity": "parity",
        "estimate": "memory",
        "kept_reference": "parity",
        "measure": "_measure",
        "parity_reference": "parity",
        "perplexity": "_perplexity",
        "speed": "_speed",
    },
)
