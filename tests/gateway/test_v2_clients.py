"""KServe V2 with the clients people use: tritonclient over HTTP and over gRPC."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

from pressroom.gateway.routes import Route
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Echoes, route_to
from .v2_doors import Control

WAY = {"http": over_http, "grpc": over_grpc}


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    echoes = Echoes()
    starting = Route(model="slow", ready=False, detail="it loads its weights", retry_after_s=7)
    with GatewayThread(route_to(echoes().port), starting, control=Control(), grpc=True) as running:
        yield running
    echoes.close()


@pytest.fixture(params=["http", "grpc"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(gateway: GatewayThread, way: str) -> Iterator[Any]:
    port = gateway.port if way == "http" else gateway.grpc_port
    with WAY[way].InferenceServerClient(f"127.0.0.1:{port}") as connected:
        yield connected


def text(way: str, *texts: str, **more: Any) -> Any:
    found = WAY[way].InferInput("text_input", [len(texts)], "BYTES")
    found.set_data_from_numpy(np.array([each.encode() for each in texts], dtype=object), **more)
    return found


def number(way: str, name: str, datatype: str, *values: Any) -> Any:
    found = WAY[way].InferInput(name, [len(values)], datatype)
    kind = {"INT32": np.int32, "FP32": np.float32, "BOOL": bool}[datatype]
    found.set_data_from_numpy(np.array(values, dtype=kind))
    return found


def said(result: Any) -> list[str]:
    return [each.decode() if isinstance(each, bytes) else each for each in result.as_numpy("text_output")]


def test_health(client: Any) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is False  # one model is not
    assert client.is_model_ready("m") is True and client.is_model_ready("m", "1") is True
    assert client.is_model_ready("slow") is False


def test_metadata(client: Any, way: str) -> None:
    as_json = {"as_json": True} if way == "grpc" else {}
    assert client.get_server_metadata(**as_json)["name"] == "pressroom"
    found = client.get_model_metadata("m", **as_json)
    assert (found["name"], found["platform"], found["versions"]) == ("m", "pressroom_echo", ["1"])
    assert [each["name"] for each in found["inputs"]] == ["text_input"]
    assert found["outputs"][0]["name"] == "text_output"
    config = client.get_model_config("m", **as_json)
    config = config.get("config", config)
    assert config["model_transaction_policy"]["decoupled"] is True
    with pytest.raises(InferenceServerException, match="no version '9'"):
        client.get_model_metadata("m", "9")


def test_repository(client: Any, way: str) -> None:
    as_json = {"as_json": True} if way == "grpc" else {}
    rows = client.get_model_repository_index(**as_json)
    rows = rows["models"] if way == "grpc" else rows
    assert {row["name"]: row["state"] for row in rows} == {"m": "READY", "other": "UNAVAILABLE"}
    client.load_model("other")
    client.unload_model("other")
    with pytest.raises(InferenceServerException, match="There are: m, other"):
        client.load_model("third")
    with pytest.raises(InferenceServerException, match="'config'"):
        client.load_model("other", config="{}")
    assert client.get_model_metadata("other", **as_json)["name"] == "other"


def test_infer(client: Any, way: str) -> None:
    result = client.infer("m", [text(way, "hello big world")], request_id="7")
    assert said(result) == ["hello big world"]
    assert result.as_numpy("prompt_tokens").tolist() == result.as_numpy("completion_tokens").tolist() == [3]
    assert result.as_numpy("finish_reason").tolist() == [b"stop"]
    response = result.get_response()
    assert (response["id"] if way == "http" else response.id) == "7"


def test_infer_with_parameters_in_every_way(client: Any, way: str) -> None:
    words = text(way, "hello big world")
    limit = number(way, "max_tokens", "INT32", 2)
    assert said(client.infer("m", [words, limit])) == ["hello big"]
    parameters = {"max_tokens": 2, "temperature": 0.5, "chat": True}
    assert said(client.infer("m", [words], parameters=parameters)) == ["hello big"]
    parameters = {"sampling_parameters": '{"max_tokens": "1"}'}
    assert said(client.infer("m", [words], parameters=parameters)) == ["hello"]
    both = [text(way, "a b c", "d e f"), number(way, "max_tokens", "INT32", 1, 2)]
    assert said(client.infer("m", both)) == ["a", "d e"]


def test_outputs_that_are_asked_for(client: Any, way: str) -> None:
    wanted = [WAY[way].InferRequestedOutput("completion_tokens"), WAY[way].InferRequestedOutput("text_output")]
    result = client.infer("m", [text(way, "a b", "c")], outputs=wanted)
    assert said(result) == ["a b", "c"] and result.as_numpy("completion_tokens").tolist() == [2, 1]
    assert result.get_output("prompt_tokens") is None
    with pytest.raises(InferenceServerException, match="no output 'logits'"):
        client.infer("m", [text(way, "a")], outputs=[WAY[way].InferRequestedOutput("logits")])


def test_many_at_once(client: Any, way: str) -> None:
    many = [f"text number {number} — grüße 世界" for number in range(100)]
    assert said(client.infer("m", [text(way, *many)])) == many


def test_json_both_ways_over_http(gateway: GatewayThread) -> None:
    with over_http.InferenceServerClient(f"127.0.0.1:{gateway.port}") as client:
        for binary in (False, True):
            given = text("http", "a b", "grüße", binary_data=binary)
            wanted = [over_http.InferRequestedOutput("text_output", binary_data=not binary)]
            assert said(client.infer("m", [given], outputs=wanted)) == ["a b", "grüße"]


@pytest.mark.parametrize(
    ("model", "parameters", "says"),
    [
        ("none", {}, "does not exist"),
        ("m", {"colour": 1}, "no parameter 'colour'"),
        ("m", {"temperature": 9.5}, "'temperature'"),
        ("m", {"stream": True}, "answers in one piece"),
        ("slow", {}, "it loads its weights"),
    ],
)
def test_refusals(client: Any, way: str, model: str, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(InferenceServerException, match=says) as refused:
        client.infer(model, [text(way, "x")], parameters=parameters)
    codes = {"none": ("404", "NOT_FOUND"), "slow": ("503", "UNAVAILABLE")}.get(model, ("400", "INVALID_ARGUMENT"))
    assert refused.value.status() == (codes[0] if way == "http" else f"StatusCode.{codes[1]}")


# Streams over gRPC.


@pytest.fixture
def streaming(gateway: GatewayThread) -> Iterator[tuple[Any, queue.Queue[tuple[Any, Any]]]]:
    found: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with over_grpc.InferenceServerClient(f"127.0.0.1:{gateway.grpc_port}") as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        yield client, found
        client.stop_stream()


def until_final(found: queue.Queue[tuple[Any, Any]]) -> list[Any]:
    results = []
    while True:
        result, error = found.get(timeout=30)
        assert error is None, error
        results.append(result)
        if result.get_response().parameters["triton_final_response"].bool_param:
            return results


def test_stream(streaming: tuple[Any, queue.Queue[tuple[Any, Any]]]) -> None:
    client, found = streaming
    client.async_stream_infer("m", [text("grpc", "hello big world")], request_id="5", enable_empty_final_response=True)
    results = until_final(found)
    assert [said(result)[0] for result in results] == ["hello", " big", " world", ""]
    assert all(result.get_response().id == "5" for result in results)
    last = results[-1]
    assert last.as_numpy("finish_reason").tolist() == [b"stop"]
    assert last.as_numpy("completion_tokens").tolist() == [3]
    assert results[0].get_output("finish_reason") is None


def test_whole_answers_in_a_stream(streaming: tuple[Any, queue.Queue[tuple[Any, Any]]]) -> None:
    client, found = streaming
    client.async_stream_infer("m", [text("grpc", "a b", "c"), number("grpc", "stream", "BOOL", False)])
    (only,) = until_final(found)
    assert said(only) == ["a b", "c"]


def test_a_refusal_does_not_end_the_stream(streaming: tuple[Any, queue.Queue[tuple[Any, Any]]]) -> None:
    client, found = streaming
    for model, parameters, says in (
        ("none", {}, "does not exist"),
        ("m", {"colour": 1}, "no parameter 'colour'"),
        ("m", {"temperature": 9.5}, "'temperature'"),
    ):
        client.async_stream_infer(model, [text("grpc", "x")], parameters=parameters)
        result, error = found.get(timeout=30)
        assert result is None and says in str(error)
    client.async_stream_infer("m", [text("grpc", "a", "b")])
    assert "One text at a time" in str(found.get(timeout=30)[1])
    client.async_stream_infer("m", [text("grpc", "still here")])
    assert "".join(said(result)[0] for result in until_final(found)) == "still here"


def test_requests_of_a_stream_run_side_by_side(streaming: tuple[Any, queue.Queue[tuple[Any, Any]]]) -> None:
    client, found = streaming
    for place in range(100):  # more than run at once
        client.async_stream_infer("m", [text("grpc", f"number {place}")], request_id=str(place))
    told: dict[str, str] = {}
    ended = 0
    while ended < 100:
        result, error = found.get(timeout=30)
        assert error is None
        response = result.get_response()
        told[response.id] = told.get(response.id, "") + said(result)[0]
        ended += response.parameters["triton_final_response"].bool_param
    assert told == {str(place): f"number {place}" for place in range(100)}
