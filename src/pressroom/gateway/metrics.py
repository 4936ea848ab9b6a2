"""The gateway's figures: plain integers on the hot path, Prometheus families at the scrape.

`pressroom_*` are in base units. The same data also appears under the names vLLM uses, whatever the engine, so that
dashboards and routers made for vLLM work. Everything is changed and read on the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

# From the gateway's own cost to a long answer on a small machine; seconds.
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts of seconds by bucket."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        found: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*(str(bound) for bound in _BOUNDS), "+Inf"), self.counts, strict=True):
            running += count
            found.append((bound, running))
        return found


class Series:
    """The figures of one model."""

    __slots__ = (
        "disconnects",
        "durations",
        "first_tokens",
        "generation_tokens",
        "in_flight",
        "prompt_tokens",
        "requests",
        "retries",
    )

    def __init__(self) -> None:
        #: By endpoint and status. A client that left counts as 499, a stream that broke as 502.
        self.requests: dict[tuple[str, int], int] = {}
        self.durations: dict[str, Histogram] = {}
        self.first_tokens = Histogram()
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.in_flight = 0
        self.retries = 0
        self.disconnects = 0

    def count(self, endpoint: str, status: int) -> None:
        key = (endpoint, status)
        self.requests[key] = self.requests.get(key, 0) + 1

    def took(self, endpoint: str, seconds: float) -> None:
        histogram = self.durations.get(endpoint)
        if histogram is None:
            histogram = self.durations[endpoint] = Histogram()
        histogram.observe(seconds)


class HubSeries:
    """The figures of the hub. llhttp knows a few dozen methods, so strangers cannot add series without end."""

    __slots__ = ("received", "requests", "running", "sent")

    def __init__(self) -> None:
        #: By method and status. A client that left counts as 499.
        self.requests: dict[tuple[str, int], int] = {}
        self.received = 0
        self.sent = 0
        #: Asked at the scrape: how many requests run.
        self.running: Callable[[], int] = int

    def finished(self, method: bytes, status: int, received: int = 0, sent: int = 0) -> None:
        """Count a request; `received` and `sent` are the bytes of its body and of its answer's."""
        key = (method.decode("latin-1"), status)
        self.requests[key] = self.requests.get(key, 0) + 1
        self.received += received
        self.sent += sent


class Metrics:
    """All series. Requests for models that do not exist share the one called '': strangers cannot add series."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {"": Series()}
        #: How many requests wait for an engine of a model; asked at the scrape.
        self.waiting: Callable[[str], int] = lambda model: 0
        #: Of the hub, once one is mounted.
        self.hub: HubSeries | None = None
        #: Families that others collect.
        self.more: list[Callable[[], Iterable[Metric]]] = []
        #: Adds the figures of other processes of this server, where there are some.
        self.joined: Callable[[Iterable[Metric]], Iterable[Metric]] = iter
        self._registry: CollectorRegistry | None = None

    def of(self, model: str) -> Series:
        """The series of a model that has, or had, a route."""
        found = self._series.get(model)
        if found is None:
            found = self._series[model] = Series()
        return found

    def render(self) -> tuple[str, bytes]:
        """The content type and the text of a scrape."""
        from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, ProcessCollector, generate_latest

        if self._registry is None:
            self._registry = CollectorRegistry()
            ProcessCollector(registry=self._registry)
            self._registry.register(_Joined(self))
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Every family of this process, made now."""
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge
        from prometheus_client.core import HistogramMetricFamily

        requests = Counter("pressroom_requests", "Requests, by outcome.", labels=["model", "endpoint", "status"])
        durations = HistogramMetricFamily(
            "pressroom_request_duration_seconds",
            "From the request to the end of its answer.",
            labels=["model", "endpoint"],
        )
        for model, series in self._series.items():
            for (endpoint, status), count in series.requests.items():
                requests.add_metric([model, endpoint, str(status)], count)
            for endpoint, histogram in series.durations.items():
                durations.add_metric([model, endpoint], histogram.buckets(), histogram.total)
        yield requests
        yield durations
        models = {model: series for model, series in self._series.items() if model}
        for name, label in (("pressroom_time_to_first_token_seconds", "model"), (_VLLM_TTFT, "model_name")):
            first = HistogramMetricFamily(name, "From a streamed request to the first piece of it.", labels=[label])
            for model, series in models.items():
                first.add_metric([model], series.first_tokens.buckets(), series.first_tokens.total)
            yield first
        latency = HistogramMetricFamily(
            "vllm:e2e_request_latency_seconds", "From the request to the end of its answer.", labels=["model_name"]
        )
        for model, series in models.items():
            merged = _merged(series.durations.values())
            latency.add_metric([model], merged.buckets(), merged.total)
        yield latency
        for names, attribute, text in _COUNTERS:
            for name in names:
                counter = Counter(name, text, labels=["model_name" if name.startswith("vllm:") else "model"])
                for model, series in models.items():
                    counter.add_metric([model], getattr(series, attribute))
                yield counter
        for name in ("pressroom_requests_in_flight", "vllm:num_requests_running"):
            gauge = Gauge(
                name, "Requests that run now.", labels=["model_name" if name.startswith("vllm:") else "model"]
            )
            for model, series in models.items():
                gauge.add_metric([model], series.in_flight)
            yield gauge
        for name in ("pressroom_requests_waiting", "vllm:num_requests_waiting"):
            label = "model_name" if name.startswith("vllm:") else "model"
            gauge = Gauge(name, "Requests that wait for an engine to start or come back.", labels=[label])
            for model in models:
                gauge.add_metric([model], self.waiting(model))
            yield gauge
        if self.hub is not None:
            yield from _of_hub(self.hub)
        for collect in self.more:
            yield from collect()


class _Joined:
    """What the registry asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.joined(self._metrics.collect())


def _of_hub(series: HubSeries) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily as Counter
    from prometheus_client.core import GaugeMetricFamily as Gauge

    requests = Counter("pressroom_hub_requests", "Requests to the hub, by outcome.", labels=["method", "status"])
    for (method, status), count in series.requests.items():
        requests.add_metric([method, str(status)], count)
    yield requests
    yield Counter("pressroom_hub_received_bytes", "Bytes of bodies that the hub was sent.", value=series.received)
    yield Counter("pressroom_hub_sent_bytes", "Bytes of bodies that the hub sent.", value=series.sent)
    yield Gauge("pressroom_hub_requests_in_flight", "Requests to the hub that run now.", value=series.running())


_VLLM_TTFT = "vllm:time_to_first_token_seconds"

_COUNTERS = (
    (("pressroom_prompt_tokens", "vllm:prompt_tokens"), "prompt_tokens", "Tokens of prompts."),
    (("pressroom_generation_tokens", "vllm:generation_tokens"), "generation_tokens", "Tokens generated."),
    (("pressroom_upstream_retries",), "retries", "Requests sent again because a pooled connection had been closed."),
    (("pressroom_client_disconnects",), "disconnects", "Clients that left before their answer was complete."),
)


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    merged = Histogram()
    for histogram in histograms:
        merged.counts = [a + b for a, b in zip(merged.counts, histogram.counts, strict=True)]
        merged.total += histogram.total
    return merged
