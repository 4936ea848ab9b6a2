"""Load on a deployment through the gateway, and what its clients see of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway.bench.base import BenchError, BenchSettings, Round, Slo, Spread
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway.bench.bench import Bench

__all__ = ["Bench", "BenchError", "BenchSettings", "Round", "Slo", "Spread"]

# Where each name is that needs the HTTP libraries: loaded when used.
__getattr__ = _lazily(__name__, {"Bench": "bench"})
