"""The conformance checks on engines behind a real gateway with both doors, and the page that shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pressroom.engines import EngineSpec, create, engine_class
from pressroom.gateway import Route
from pressroom.testing.conformance import CHECKS, Outcome, Result, conformance, matrix
from pressroom.testing.gateway import GatewayThread

DOCS = Path(__file__).resolve().parents[2] / "docs"


def outcomes(engine: str, spec: EngineSpec) -> dict[str, Result]:
    running = create(engine, spec)
    try:
        endpoint = running.start()
        capabilities = endpoint.capabilities or engine_class(engine).capabilities
        route = Route(
            model="m", host=endpoint.host, port=endpoint.port, ref="m:1", engine=engine, capabilities=capabilities
        )
        with GatewayThread(route, grpc=True) as gateway:
            found = conformance(gateway.url, "m", grpc=f"127.0.0.1:{gateway.grpc_port}")
    finally:
        running.stop()
    return {result.check: result for result in found}


def refused(found: dict[str, Result]) -> set[str]:
    failed = [result for result in found.values() if result.outcome is Outcome.FAILED]
    assert not failed, failed
    return {name for name, result in found.items() if result.outcome is Outcome.REFUSED}


def test_echo(tmp_path: Path) -> None:
    found = outcomes("echo", EngineSpec(name="m", context=2048, log=tmp_path / "log"))
    assert refused(found) == {
        "logprobs",
        "completion_logprobs",
        "json_object",
        "json_schema",
        "tools_required",
        "tools_auto",
        "embeddings",
    }


@pytest.mark.slow
def test_llamacpp(smollm2: Path, tmp_path: Path) -> None:
    spec = EngineSpec(name="m", model=smollm2, context=2048, slots=2, log=tmp_path / "log")
    assert refused(outcomes("llamacpp", spec)) == {"embeddings"}


def test_an_engine_that_breaks_the_protocol_is_found_out() -> None:
    """A route that promises what its engine does not do: the checks must say so, or they check nothing."""
    from pressroom.engines.base import Capabilities

    running = create("echo", EngineSpec(name="m", options={"tokens": 5}))
    try:
        endpoint = running.start()
        promises = Capabilities(logprobs=True, json_schema=True, tools=True, embeddings=True, several=True)
        route = Route(model="m", host=endpoint.host, port=endpoint.port, capabilities=promises)
        with GatewayThread(route) as gateway:
            found = {result.check: result.outcome for result in conformance(gateway.url, "m")}
    finally:
        running.stop()
    broken = {"logprobs", "completion_logprobs", "json_schema", "tools_required", "n", "truncation", "embeddings"}
    assert {name for name, outcome in found.items() if outcome is Outcome.FAILED} >= broken - {"n"}
    assert found["chat"] is Outcome.PASSED


def test_the_page_shows_the_results_it_names() -> None:
    kept = json.loads((DOCS / "conformance.json").read_text(encoding="utf-8"))
    results = {
        column: [Result(**{**each, "outcome": Outcome(each["outcome"])}) for each in one["results"]]
        for column, one in kept.items()
    }
    assert matrix(results) in (DOCS / "conformance.md").read_text(encoding="utf-8")
    assert {result.check for found in results.values() for result in found} == {check.name for check in CHECKS}
