"""The OpenAPI document, and requests made from it: none may end in anything that the document does not say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks

from pressroom.engines.base import Capabilities
from pressroom.gateway.openapi import document
from pressroom.gateway.protocols.openai import ENDPOINTS
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Echoes, route_to

PATHS: dict[str, Any] = orjson.loads(document())["paths"]
OPERATIONS = [(path, method) for path, item in PATHS.items() for method in item if method != "parameters"]


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    echoes = Echoes()
    # As if it could do everything: what the echo does not know it ignores, and the gateway's own part is what counts.
    able = Capabilities(logprobs=True, json_schema=True, tools=True)
    with GatewayThread(route_to(echoes(tokens=3).port, capabilities=able)) as gateway:
        yield gateway
    echoes.close()


def test_every_field_that_is_checked_is_described() -> None:
    for endpoint in ENDPOINTS:
        schema = PATHS[endpoint.path.decode()]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == set(endpoint.fields) and schema["additionalProperties"] is False
        assert schema["properties"][endpoint.conversation]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_requests_made_from_the_document(gateway: GatewayThread, path: str, method: str) -> None:
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    cases = schema[path][method].as_strategy()

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases, st.booleans())
    def ask(case: schemathesis.Case, named: bool) -> None:
        if named and "model" in (case.path_parameters or {}):
            case.path_parameters["model"] = "m"
        if named and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "m"
        # A request the document allows may still be one that this model or engine refuses; what must be is a status,
        # a type of content and a shape that the document names.
        case.call_and_validate(
            checks=[
                checks.status_code_conformance,
                checks.content_type_conformance,
                checks.response_schema_conformance,
                _no_fault,
            ]
        )

    ask()


def _no_fault(context: Any, response: Any, case: Any) -> None:
    assert response.status_code != 500, response.text
