"""What is asked of a benchmark, and what comes of it. All times in the results are milliseconds."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pressroom.kernel import PressroomError


class BenchError(PressroomError):
    """A benchmark cannot begin, because the deployment does not answer a first request."""

    code = "bench"


@dataclass(frozen=True, kw_only=True, slots=True)
class Slo:
    """What a request must keep to in order to count as goodput, in milliseconds; None: no such bound."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchSettings:
    """One benchmark: a round for each number of clients, each for `seconds`, or for `requests` where that is set."""

    clients: tuple[int, ...] = (1, 4, 16, 64)
    seconds: float = 10.0
    requests: int | None = None
    prompt_tokens: int = 128
    tokens: int = 64
    endpoint: str = "chat"
    stream: bool = True
    #: Let prompts have their first three quarters in common, as those of one application have.
    same_prefix: bool = False
    slo: Slo | None = None
    #: The prompts of a benchmark follow from it: the same ones again may be in a cache.
    seed: int = field(default_factory=lambda: secrets.randbits(31))


@dataclass(frozen=True, slots=True)
class Spread:
    """How values are spread: percentiles with linear interpolation between the two nearest, as NumPy's."""

    p50: float
    p90: float
    p99: float
    mean: float
    highest: float

    @staticmethod
    def of(values: Sequence[float], *, scale: float = 1.0) -> Spread | None:
        """The spread of values times `scale`; None where there are none."""
        if not values:
            return None
        ordered = sorted(values)
        p50, p90, p99 = (percentile(ordered, share) * scale for share in (0.5, 0.9, 0.99))
        return Spread(p50, p90, p99, math.fsum(ordered) / len(ordered) * scale, ordered[-1] * scale)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of the ascending values lies."""
    place = (len(ordered) - 1) * share
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What `clients` at once were given in `seconds`.

    Throughput is what came within these seconds. Latencies are of every request that was begun in them, also where it
    ended later: leaving those out would make long answers look short. Latencies are None where nothing was measured,
    and those that need pieces also where answers were not streamed. `itl_ms` is the time between two pieces of an
    answer, `tpot_ms` that of a whole answer after its first piece by its tokens after the first.
    """

    clients: int
    seconds: float
    requests: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    prompt_tokens: float
    cached_tokens: float
    output_tokens: float
    ttft_ms: Spread | None
    itl_ms: Spread | None
    tpot_ms: Spread | None
    e2e_ms: Spread | None
    #: Requests a second that kept to the bounds; None where there were no bounds.
    goodput_per_s: float | None
    #: Kind of an error: how often, and the words of the first.
    errors: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    #: Requests that had not ended long after the others.
    unfinished: int = 0
    #: The share of one core that the load generator itself used. Near 1 the figures are its own, not the engine's.
    generator_cpu: float = 0.0
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, rounded to what is meaningful."""
        record: dict[str, Any] = _rounded(asdict(self))
        record["errors"] = {kind: {"count": number, "first": text} for kind, (number, text) in self.errors.items()}
        return record


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return value
