"""The other doors of workers: KServe V2 over REST and gRPC, budgets that change, and the figures of all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pressroom.gateway.money import Budgets, parse_budget
from pressroom.kernel import Workspace
from tests.gateway.engines_and_clients import Client, Echoes, chat, post, route_to, until

from .houses import House

Make = Callable[..., House]
Both = Callable[[House], dict[int, Client]]


def test_v2_over_rest(echo: Echoes, house: Make, on_both: Both) -> None:
    served = house(route_to(echo(tokens=3).port))
    for client in on_both(served).values():
        until(lambda client=client: client.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200)  # type: ignore[misc]
        text = {"text_input": "hello big world", "parameters": {"max_tokens": 5}}
        status, _, answer = client.ask(post(json.dumps(text).encode(), "/v2/models/m/generate"))
        assert status == 200 and answer["model_name"] == "m" and answer["text_output"]
        served.ready = False
        until(lambda client=client: client.ask(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 503)  # type: ignore[misc]
        served.ready = True


def test_v2_over_grpc(echo: Echoes, house: Make) -> None:
    grpc = pytest.importorskip("grpc")
    from pressroom.gateway.grpc import inference_pb2 as pb

    engine = echo(tokens=3)
    served = house(route_to(engine.port), grpc_port=0)
    assert served.grpc and not served.grpc_trouble
    for _ in range(12):  # both workers take some of them
        with grpc.insecure_channel(served.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            request = pb.ModelInferRequest(model_name="m")
            tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(b"hello big world")
            answer = call(request, timeout=30)
            assert answer.model_name == "m"
    assert engine.requests == 12


def test_a_budget_that_is_set_holds_at_every_worker(echo: Echoes, house: Make, on_both: Both, tmp_path: Path) -> None:
    served = house(route_to(echo(tokens=3).port))
    clients = on_both(served)
    for client in clients.values():
        assert client.ask(post(chat()))[0] == 200
    with Workspace.open(tmp_path) as workspace:
        Budgets(workspace).set(parse_budget("all", "1 tokens"))
    for client in clients.values():
        until(lambda client=client: client.ask(post(chat()))[0] == 429)  # type: ignore[misc]


def test_figures_of_all_workers(echo: Echoes, house: Make, on_both: Both) -> None:
    served = house(route_to(echo(tokens=3).port))
    for client in on_both(served).values():
        for _ in range(3):
            assert client.ask(post(chat()))[0] == 200

    def figure(name: str) -> float:
        with Client(served.port) as client:
            client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            _, _, body = client.response()
        found = re.search(rf"^{re.escape(name)} (\S+)$", body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    counted = 'pressroom_requests_total{endpoint="chat.completions",model="m",status="200"}'
    until(lambda: figure("pressroom_ledger_rows_total") == 6)
    with Client(served.port) as client:
        client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        text = client.response()[2].decode()
    lines = [line for line in text.splitlines() if line.startswith("pressroom_requests_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in lines) == 6, (counted, lines)
    assert len([line for line in text.splitlines() if line == "# TYPE pressroom_requests_total counter"]) == 1
