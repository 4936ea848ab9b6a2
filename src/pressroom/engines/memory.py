"""What a model needs of memory before it starts, what there is, and who has it.

An estimate is made from the header of the weights alone, in milliseconds. It is meant to be a little too large: what
runs must be at most what was estimated, and the estimate at most a quarter over it. docs/memory.md has the formulas and
how they compare with measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressroom.engines._footprint_kinds import KINDS, Asked, Parts, unknown, weightless
from pressroom.engines._footprint_ledger import Action, Decision, MemoryLedger
from pressroom.engines._footprint_machine import MachineMemory, available

__all__ = ["Action", "Decision", "Estimate", "MachineMemory", "MemoryLedger", "available", "estimate"]

# What an engine gives a request where nobody says: the model's own context, at most this.
_DEFAULT_CONTEXT = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Bytes: the weights (as often as the engine holds them), the keys and values of all slots at full length, and
    everything else. `later` is the part of `total` that is not taken at the start, only as requests come. `how` says
    what was counted, and what had to be guessed."""

    weights: int
    kv_cache: int
    overhead: int
    total: int
    later: int
    how: str


def estimate(
    model: Path | None, *, engine: str, context: int, slots: int, options: Mapping[str, Any] | None = None
) -> Estimate:
    """What `engine` will take for `slots` requests of `context` tokens each; 0 is what the engine would choose.

    `model` is a GGUF file, a safetensors file or a folder; None for an engine without weights. An engine that is not
    known here gets the figures of the hungriest one that is.

    Raises:
        WeightsError, NotFoundError, StoreError: the file is not there, damaged, or does not say what it is.
    """
    given = dict(options or {})
    if model is None or engine in ("echo", "vendor"):
        return _estimate(weightless(engine), ())
    from pressroom.engines._footprint_shape import shape_of

    shape = shape_of(model)
    trained = shape.info.context_length or _DEFAULT_CONTEXT
    asked = Asked(context or min(trained, _DEFAULT_CONTEXT), max(1, slots), given)
    return _estimate(KINDS.get(engine, unknown)(shape, asked), shape.guesses)


def _estimate(parts: Parts, guesses: tuple[str, ...]) -> Estimate:
    return Estimate(
        weights=parts.weights,
        kv_cache=parts.kv_cache,
        overhead=parts.overhead,
        total=parts.weights + parts.kv_cache + parts.overhead,
        later=parts.later,
        how="; ".join((*parts.how, *guesses)),
    )
