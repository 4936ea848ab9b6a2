"""What the gateway answers by itself: models, health, figures, and who may ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pressroom.gateway._origin import is_loopback
from pressroom.gateway.metrics import Metrics
from pressroom.gateway.routes import Route
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Echoes, chat, post, route_to, until


def get(path: str, *lines: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", *(lines or ["Host: localhost"]), "", ""]).encode()


@pytest.fixture
def gateway(echo: Echoes) -> Iterator[GatewayThread]:
    starting = Route(model="org/slow", ready=False, detail="it loads its weights", retry_after_s=7)
    with GatewayThread(route_to(echo().port, context=512, created=5), starting) as running:
        yield running


@pytest.fixture
def client(gateway: GatewayThread) -> Iterator[Client]:
    with Client(gateway.port) as connected:
        yield connected


def test_models(client: Client) -> None:
    _, _, listed = client.ask(get("/v1/models"))
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["m", "org/slow"]
    assert listed["data"][0] == {
        "id": "m", "object": "model", "created": 5, "owned_by": "pressroom", "ref": "m:1", "digest": "sha256-0123abcd",
        "engine": "echo", "context": 512, "ready": True,
    }  # fmt: skip
    for path in ("/v1/models/org/slow", "/v1/models/org%2Fslow", "/openai/v1/models/org/slow"):
        assert client.ask(get(path))[2]["id"] == "org/slow"
    status, _, body = client.ask(get("/v1/models/org/slov"))
    assert status == 404 and body["error"]["code"] == "model_not_found" and "org/slow" in body["error"]["message"]
    assert client.ask(get("/v1/models/"))[0] == 404


def test_health(client: Client, gateway: GatewayThread) -> None:
    assert client.ask(get("/health/live"))[0] == 200
    status, headers, body = client.ask(get("/health/ready"))
    assert status == 503 and headers["retry-after"]
    assert body["models"] == {"m": "ready", "org/slow": "it loads its weights"}
    gateway.routes.remove("org/slow")
    assert client.ask(get("/health/ready"))[0] == 200


def test_readiness_is_what_its_owner_says() -> None:
    with GatewayThread(ready=lambda: False) as gateway, Client(gateway.port) as client:
        assert client.ask(get("/health/ready"))[0] == 503


def test_the_index_lists_what_there_is(client: Client) -> None:
    body = client.ask(get("/"))[2]
    for path in body["paths"]:
        assert client.ask(get(path, method="DELETE"))[0] == 405


def test_unknown_paths_and_methods(client: Client) -> None:
    status, _, body = client.ask(get("/v1/rerank"))
    assert status == 404 and body["error"]["code"] == "unknown_url"
    status, headers, body = client.ask(get("/v1/chat/completions"))
    assert (status, headers["allow"], body["error"]["code"]) == (405, "POST", "method_not_supported")
    status, headers, _ = client.ask(post(b"{}", "/v1/models"))
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_models_that_are_not_there_or_not_ready(client: Client, gateway: GatewayThread) -> None:
    status, _, body = client.ask(post(chat(model="slow")))
    assert status == 404 and body["error"]["code"] == "model_not_found" and "org/slow" in body["error"]["message"]
    status, headers, body = client.ask(post(chat(model="org/slow")))
    assert (status, headers["retry-after"]) == (503, "7")
    assert "it loads its weights" in body["error"]["message"] and body["error"]["code"] == "model_not_ready"
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as official,
        pytest.raises(openai.NotFoundError, match="Did you mean"),
    ):
        official.chat.completions.create(model="mm", messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("body", "lines", "status"),
    [
        (b"{", (), 400),
        (chat(colour=1), (), 400),
        (chat(tools=[{"type": "function"}]), (), 400),
        (chat(), ("Content-Encoding: gzip",), 415),
        (chat(), ("Content-Type: text/plain",), 200),
    ],
)
def test_requests_that_are_refused_are_counted(
    client: Client, gateway: GatewayThread, body: bytes, lines: tuple[str, ...], status: int
) -> None:
    assert client.ask(post(body, "/v1/chat/completions", *lines))[0] == status
    metrics = gateway.gateway.metrics
    counts = {**metrics.of("").requests, **metrics.of("m").requests}
    assert counts == {("chat.completions", status): 1}


def test_what_is_said_back_is_short(client: Client) -> None:
    long = "x" * 1_000_000
    for body in (chat(model=long), chat(**{long: 1}), chat(logit_bias={long: "a"}), chat(stream_options={long: 1})):
        client.send(post(body))
        status, _, answer = client.response()
        assert status in (400, 404) and len(answer) < 2_000


def test_request_ids_are_unique(client: Client) -> None:
    ids = {client.ask(get("/health/live"))[1]["x-request-id"] for _ in range(50)}
    assert len(ids) == 50


# Web pages.


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8080", 200), ("127.0.0.1:1", 200), ("127.9.9.9", 200), ("[::1]:8080", 200),
        ("app.localhost", 200), ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403),
        ("10.0.0.1", 403), ("", 403), ("[evil]", 403), ("2130706433", 403),
    ],
)  # fmt: skip
def test_on_loopback_only_local_names_are_answered(client: Client, host: str, status: int) -> None:
    assert client.ask(get("/v1/models", f"Host: {host}"))[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200), ("http://127.0.0.1:8080", 200), ("https://evil.example", 403), ("null", 403),
        ("http://localhost.evil.example", 403), ("file://", 403), ("x", 403),
    ],
)  # fmt: skip
def test_pages_of_other_sites_cannot_post(client: Client, origin: str, status: int) -> None:
    for kind in ("text/plain", "application/json"):
        lines = ("Host: localhost", f"Origin: {origin}", f"Content-Type: {kind}")
        status_found, headers, _ = client.ask(post(chat(), "/v1/chat/completions", *lines[1:]))
        assert status_found == status
        assert not any(name.startswith("access-control") for name in headers)
    preflight = get("/v1/chat/completions", "Host: localhost", f"Origin: {origin}", method="OPTIONS")
    status_found, headers, _ = client.ask(preflight)
    assert status_found == 405 and not any(name.startswith("access-control") for name in headers)


def test_bound_to_the_world_any_name_is_answered(gateway: GatewayThread, client: Client) -> None:
    gateway.on_loop(lambda: gateway.gateway.bound_to("0.0.0.0"))
    assert client.ask(get("/v1/models", "Host: models.example"))[0] == 200
    same = post(chat(), "/v1/chat/completions", "Origin: https://models.example").replace(
        b"localhost", b"models.example", 1
    )
    assert client.ask(same)[0] == 200
    other = post(chat(), "/v1/chat/completions", "Origin: https://evil.example").replace(
        b"localhost", b"models.example", 1
    )
    assert client.ask(other)[0] == 403


def test_what_loopback_is() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com", "")))


# Figures.


def samples(text: str) -> dict[tuple[str, str], float]:
    """Values by name and labels."""
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics(client: Client, gateway: GatewayThread) -> None:
    for stream in (False, True):
        client.send(post(chat(stream=stream)))
        assert client.response()[0] == 200
    client.send(post(b'{"model":"m","prompt":"a b"}', "/v1/completions"))
    client.response()
    for stranger in ("x", "y"):
        client.ask(post(chat(model=stranger)))
    client.send(get("/metrics"))
    status, headers, body = client.response()
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(body.decode())
    expected: dict[tuple[str, str], float] = {
        ("pressroom_requests_total", "endpoint=chat.completions,model=m,status=200"): 2,
        ("pressroom_requests_total", "endpoint=completions,model=m,status=200"): 1,
        ("pressroom_requests_total", "endpoint=chat.completions,model=,status=404"): 2,
        ("pressroom_request_duration_seconds_count", "endpoint=chat.completions,model=m"): 2,
        ("pressroom_time_to_first_token_seconds_count", "model=m"): 1,
        ("pressroom_prompt_tokens_total", "model=m"): 8,
        ("pressroom_generation_tokens_total", "model=m"): 8,
        ("pressroom_requests_in_flight", "model=m"): 0,
        ("pressroom_upstream_retries_total", "model=m"): 0,
        ("pressroom_client_disconnects_total", "model=m"): 0,
        ("pressroom_prompt_tokens_total", "model=org/slow"): 0,
        ("vllm:num_requests_running", "model_name=m"): 0,
        ("vllm:time_to_first_token_seconds_count", "model_name=m"): 1,
        ("vllm:e2e_request_latency_seconds_count", "model_name=m"): 3,
        ("vllm:prompt_tokens_total", "model_name=m"): 8,
        ("vllm:generation_tokens_total", "model_name=m"): 8,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found[("pressroom_request_duration_seconds_sum", "endpoint=chat.completions,model=m")] > 0
    assert not any("stranger" in labels or "model=x" in labels for _, labels in found)
    assert any(name == "process_cpu_seconds_total" for name, _ in found)


def test_requests_that_run_are_seen_in_the_figures(echo: Echoes) -> None:
    engine = echo(tokens=1000, delay_s=0.01)
    with (
        GatewayThread(route_to(engine.port)) as gateway,
        Client(gateway.port) as asking,
        Client(gateway.port) as client,
    ):
        asking.send(post(chat(stream=True)))
        until(lambda: engine.active == 1)
        client.send(get("/metrics"))
        assert samples(client.response()[2].decode())[("vllm:num_requests_running", "model_name=m")] == 1


def test_buckets_are_cumulative() -> None:
    histogram = Metrics().of("m").first_tokens
    for seconds in (0.0, 0.001, 0.0011, 0.3, 1e9):
        histogram.observe(seconds)
    buckets: dict[str, Any] = dict(histogram.buckets())
    assert buckets["0.001"] == 2 and buckets["0.0025"] == 3 and buckets["0.5"] == 4 and buckets["+Inf"] == 5
    values = [count for _, count in histogram.buckets()]
    assert values == sorted(values)


def test_a_fault_of_the_gateway_is_a_500_and_not_the_end(
    gateway: GatewayThread, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> bool:
        raise RuntimeError("a fault")

    gateway.gateway._ready = fail
    client.send(get("/health/ready"))
    status, headers, body = client.response()
    assert status == 500 and headers["connection"] == "close"
    assert json.loads(body)["error"]["type"] == "server_error" and b"a fault" not in body
    assert "a fault" in caplog.text
    with Client(gateway.port) as other:
        assert other.ask(get("/health/live"))[0] == 200
