"""Figures of several processes added up."""

from __future__ import annotations

from typing import Any

import orjson
from prometheus_client.core import GaugeMetricFamily

from pressroom.gateway.metrics import Metrics
from pressroom.gateway.workers.figures import Figures, plain_families


def process(requests: int, seconds: float, running: int = 0) -> Metrics:
    metrics = Metrics()
    series = metrics.of("m")
    for _ in range(requests):
        series.count("chat", 200)
        series.took("chat", seconds)
    series.prompt_tokens = 10 * requests
    series.in_flight = running
    return metrics


def sent(metrics: Metrics) -> Any:
    return orjson.loads(orjson.dumps(plain_families(metrics.collect())))


def value(figures: Figures, metrics: Metrics, called: str, /, **labels: str) -> float | None:
    for family in figures.joined(metrics.collect()):
        for sample in family.samples:
            if sample.name == called and sample.labels == labels:
                return float(sample.value)
    return None


def test_sums_over_all_processes_and_those_that_are_gone() -> None:
    figures, server = Figures(), process(1, 0.2)
    requests: dict[str, str] = {"model": "m", "endpoint": "chat", "status": "200"}
    assert value(figures, server, "pressroom_requests_total", **requests) == 1
    figures.said(1, sent(process(4, 0.02, running=2)))
    figures.said(2, sent(process(8, 3.0, running=3)))
    figures.said(1, sent(process(5, 0.02, running=1)))
    assert value(figures, server, "pressroom_requests_total", **requests) == 14
    assert value(figures, server, "pressroom_prompt_tokens_total", model="m") == 140
    assert value(figures, server, "pressroom_requests_in_flight", model="m") == 4
    name = "pressroom_request_duration_seconds"
    assert value(figures, server, f"{name}_bucket", model="m", endpoint="chat", le="0.025") == 5
    assert value(figures, server, f"{name}_count", model="m", endpoint="chat") == 14
    figures.gone(2)
    figures.said(2, sent(process(1, 3.0, running=1)))
    assert value(figures, server, "pressroom_requests_total", **requests) == 15
    assert value(figures, server, "pressroom_requests_in_flight", model="m") == 2
    assert value(figures, server, f"{name}_bucket", model="m", endpoint="chat", le="+Inf") == 15


def test_what_only_a_worker_has_seen_is_there() -> None:
    figures, server = Figures(), Metrics()
    server.of("m")
    figures.said(1, sent(process(3, 0.02)))
    requests: dict[str, str] = {"model": "m", "endpoint": "chat", "status": "200"}
    assert value(figures, server, "pressroom_requests_total", **requests) == 3


def test_of_states_the_worst_is_shown_and_of_budgets_the_servers() -> None:
    def states(breaker: int, left: int) -> Metrics:
        metrics = Metrics()
        one = GaugeMetricFamily("pressroom_route_breaker", "x", labels=["model"])
        one.add_metric(["m"], breaker)
        two = GaugeMetricFamily("pressroom_budget_left", "x", labels=["name"])
        two.add_metric([""], left)
        metrics.more.append(lambda: [one, two])
        return metrics

    figures = Figures()
    figures.said(1, sent(states(2, 50)))
    figures.said(2, sent(states(1, 60)))
    assert value(figures, states(0, 70), "pressroom_route_breaker", model="m") == 2
    assert value(figures, states(0, 70), "pressroom_budget_left", name="") == 70
