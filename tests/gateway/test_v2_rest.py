"""KServe V2 over REST, as bytes on a connection."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from pressroom.engines.base import Capabilities
from pressroom.gateway.routes import Route
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Echoes, post, route_to, until
from .test_gateway import get
from .v2_doors import Control, ask, events, generate, infer, tensor

INFER, GENERATE, STREAM = (f"/v2/models/m/{verb}" for verb in ("infer", "generate", "generate_stream"))
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 3,
    "total_tokens": 6,
    "prompt_tokens_details": {"cached_tokens": 0},
}


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def gateway(echo: Echoes, control: Control) -> Iterator[GatewayThread]:
    starting = Route(model="org/slow", ready=False, detail="it loads its weights", retry_after_s=7)
    with GatewayThread(route_to(echo().port), starting, control=control) as running:
        yield running


@pytest.fixture
def client(gateway: GatewayThread) -> Iterator[Client]:
    with Client(gateway.port) as connected:
        yield connected


def texts(answer: dict[str, Any]) -> list[str]:
    (found,) = (output["data"] for output in answer["outputs"] if output["name"] == "text_output")
    return list(found)


# The server and its models.


def test_server(client: Client, gateway: GatewayThread) -> None:
    assert client.ask(get("/v2"))[2]["name"] == "pressroom"
    assert client.ask(get("/v2/"))[0] == 200
    assert client.ask(get("/v2/health/live"))[2]["live"] is True
    status, headers, body = client.ask(get("/v2/health/ready"))
    assert (status, body) == (503, {"live": True, "ready": False}) and headers["retry-after"]
    gateway.routes.remove("org/slow")
    assert client.ask(get("/v2/health/ready"))[::2] == (200, {"live": True, "ready": True})


def test_model(client: Client) -> None:
    for path in ("/v2/models/m", "/v2/models/m/versions/1", "/v2/models/%6d"):
        status, _, found = client.ask(get(path))
        assert status == 200 and (found["name"], found["versions"], found["platform"]) == ("m", ["1"], "pressroom_echo")
        assert found["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}]
        assert found["outputs"][0] == {"name": "text_output", "datatype": "BYTES", "shape": [-1]}
    assert client.ask(get("/v2/models/m/ready"))[::2] == (200, {"name": "m", "ready": True})
    assert client.ask(get("/v2/models/m/versions/1/ready"))[0] == 200
    status, headers, found = client.ask(get("/v2/models/org/slow/ready"))
    assert (status, headers["retry-after"], found["ready"]) == (503, "7", False)
    config = client.ask(get("/v2/models/m/config"))[2]
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert [each["name"] for each in config["input"] if not each.get("optional")] == ["text_input"]


def test_one_that_sleeps_is_ready(client: Client, gateway: GatewayThread) -> None:
    """Clients ask whether it is before they ask anything else, and would never wake it."""
    gateway.routes.set(Route(model="nap", ready=False, coming=True, asleep=True, detail="it is asleep"))
    try:
        assert client.ask(get("/v2/models/nap/ready"))[::2] == (200, {"name": "nap", "ready": True})
        assert client.ask(get("/v1/models/nap"))[2]["ready"] is True
    finally:
        gateway.routes.remove("nap")


def test_what_is_not_there(client: Client) -> None:
    for path in ("/v2/models/n", "/v2/models/n/ready", "/v2/models/n/versions/1", "/v2/models/", "/v2/nothing"):
        status, _, body = client.ask(get(path))
        assert status == 404 and type(body["error"]) is str
    status, body = ask(client, "/v2/models/org/slov/generate", generate())
    assert status == 404 and "org/slow" in body["error"]
    for path in ("/v2/models/m/versions/2", "/v2/models/m/versions/2/ready"):
        status, _, body = client.ask(get(path))
        assert status == 400 and "has no version '2'" in body["error"] and "'1'" in body["error"]
    assert ask(client, "/v2/models/m/versions/2/infer", infer(tensor("text_input", ["x"])))[0] == 400
    for path, allow in ((GENERATE, "POST"), ("/v2/repository/models/m/load", "POST")):
        status, headers, body = client.ask(get(path))
        assert (status, headers["allow"]) == (405, allow) and "POST" in body["error"]
    assert ask(client, "/v2", b"{}")[0] == 405


def test_the_version_is_that_of_the_reference(echo: Echoes) -> None:
    from dataclasses import replace

    route = replace(route_to(echo().port), ref="smollm2:12")
    with GatewayThread(route) as gateway, Client(gateway.port) as client:
        assert client.ask(get("/v2/models/m"))[2]["versions"] == ["12"]
        assert ask(client, "/v2/models/m/versions/12/generate", generate())[1]["model_version"] == "12"
        gateway.routes.set(replace(route, ref="smollm2:13"))
        assert ask(client, GENERATE, generate())[1]["model_version"] == "13"


# generate


def test_generate(client: Client) -> None:
    assert ask(client, GENERATE, generate()) == (
        200,
        {
            "text_output": "hello big world",
            "model_name": "m",
            "model_version": "1",
            "finish_reason": "stop",
            "usage": USAGE,
        },
    )
    _, cut = ask(client, GENERATE, generate(max_tokens=2))
    assert (cut["text_output"], cut["finish_reason"]) == ("hello big", "length")
    # Triton takes parameters beside the text, too.
    body = json.dumps({"id": "7", "text_input": "hello big world", "max_tokens": 1, "stream": False}).encode()
    _, found = ask(client, GENERATE, body)
    assert (found["text_output"], found["id"]) == ("hello", "7")


def test_generate_as_a_conversation(gateway: GatewayThread, client: Client, echo: Echoes) -> None:
    _, found = ask(client, GENERATE, generate(chat=True))
    assert (found["text_output"], found["usage"]) == ("hello big world", USAGE)
    metrics = gateway.gateway.metrics
    assert metrics.of("m").requests == {("v2.generate", 200): 1}
    # An engine that only converses is asked to.
    gateway.routes.set(route_to(echo().port, capabilities=Capabilities(completions=False)))
    assert ask(client, GENERATE, generate())[0] == 200
    assert ask(client, GENERATE, generate(chat=False))[0] == 400


def test_generate_with_sampling_parameters_as_clients_of_triton_send_them(client: Client) -> None:
    given = json.dumps({"max_tokens": "1", "temperature": "0.1"})
    for parameters in ({"sampling_parameters": given}, {"sampling_parameters": {"max_tokens": 1}}):
        _, found = ask(client, GENERATE, generate(**parameters, exclude_input_in_output=True))
        assert found["text_output"] == "hello"


def test_generate_in_tensors(client: Client) -> None:
    status, found = ask(client, GENERATE, infer(tensor("text_input", ["hello big world"])))
    assert status == 200 and texts(found) == ["hello big world"]


def test_generate_stream(client: Client) -> None:
    found = events(client, STREAM, generate())
    assert [each["text_output"] for each in found] == ["hello", " big", " world", ""]
    assert [each["done"] for each in found] == [False, False, False, True]
    assert all(each["model_name"] == "m" for each in found)
    assert (found[-1]["finish_reason"], found[-1]["usage"]) == ("stop", USAGE)
    assert "usage" not in found[0]
    whole = "".join(each["text_output"] for each in events(client, STREAM, generate(chat=True, max_tokens=2)))
    assert whole == "hello big"


def test_generate_stream_in_tensors(client: Client) -> None:
    found = events(client, STREAM, infer(tensor("text_input", ["hello big"]), id="9"))
    assert [texts(each) for each in found] == [["hello"], [" big"], [""]]
    assert all(each["id"] == "9" for each in found)
    last = {output["name"]: output["data"] for output in found[-1]["outputs"]}
    assert (last["finish_reason"], last["completion_tokens"]) == (["stop"], [2])
    found = events(client, STREAM, infer(tensor("text_input", ["hello big"]), outputs=[{"name": "finish_reason"}]))
    assert [each["outputs"][0]["data"] for each in found] == [["stop"]]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "'text_input' is missing"),
        (b'{"text_input": 5}', "must be a string"),
        (b'{"text_input": "x", "parameters": []}', "must be an object"),
        (b'{"text_input": "x", "id": 5}', "'id' must be a string"),
        (generate(colour="red"), "no parameter 'colour'"),
        (generate(temprature=1), "Did you mean temperature"),
        (generate(logprobs=3), "no parameter 'logprobs'"),
        (generate(n=2), "no parameter 'n'"),
        (generate(temperature=9), "'temperature'"),
        (generate(max_tokens=0), "'max_tokens'"),
        (generate(max_tokens="5"), "'max_tokens'"),
        (generate(stop=["a", "b", "c", "d", "e"]), "'stop'"),
        (generate(best_of=2), "'best_of'"),
        (generate(chat="yes"), "'chat' must be true or false"),
        (generate(stream=True), "generate answers in one piece"),
        (generate(exclude_input_in_output=False), "never repeat"),
        (generate(sampling_parameters="{"), "not valid JSON"),
        (generate(sampling_parameters={"sampling_parameters": {}}), "cannot hold itself"),
        (generate(response_format={"type": "json_object"}), "no parameter 'response_format'"),
        (generate(chat=True, response_format={"type": "json_object"}), "cannot be held to a format"),
    ],
)
def test_generate_refuses(client: Client, body: bytes, says: str) -> None:
    status, answer = ask(client, GENERATE, body)
    assert status == 400 and says in answer["error"], answer


def test_an_unknown_parameter_gets_the_list_of_those_there_are(client: Client) -> None:
    for conversation in (False, True):
        error = ask(client, GENERATE, generate(colour=1, chat=conversation))[1]["error"]
        for name in ("temperature", "top_p", "max_tokens", "stop", "seed", "presence_penalty", "chat"):
            assert name in error


def test_not_for_streams(client: Client) -> None:
    assert "in pieces" in ask(client, STREAM, generate(stream=False))[1]["error"]
    assert "One text at a time" in ask(client, STREAM, infer(tensor("text_input", ["a", "b"])))[1]["error"]
    body = infer(tensor("text_input", ["a"]), parameters={"binary_data_output": True})
    assert "cannot be binary" in ask(client, STREAM, body)[1]["error"]
    assert ask(client, STREAM, generate(), "Content-Encoding: gzip")[0] == 415


# infer


def test_infer(client: Client) -> None:
    status, found = ask(client, INFER, infer(tensor("text_input", ["hello big world"])))
    assert status == 200
    assert found == {
        "model_name": "m",
        "model_version": "1",
        "outputs": [
            {"name": "text_output", "datatype": "BYTES", "shape": [1], "data": ["hello big world"]},
            {"name": "finish_reason", "datatype": "BYTES", "shape": [1], "data": ["stop"]},
            {"name": "prompt_tokens", "datatype": "INT64", "shape": [1], "data": [3]},
            {"name": "completion_tokens", "datatype": "INT64", "shape": [1], "data": [3]},
            {"name": "cached_tokens", "datatype": "INT64", "shape": [1], "data": [0]},
        ],
    }
    # The short way to write it and the long one give the same.
    named = [{"name": output["name"]} for output in found["outputs"]]
    assert ask(client, INFER, infer(tensor("text_input", ["hello big world"]), outputs=named))[1] == found


@pytest.mark.parametrize("name", ["text_input", "prompt", "text"])
def test_the_text_may_have_three_names(client: Client, name: str) -> None:
    assert texts(ask(client, INFER, infer(tensor(name, ["a b"])))[1]) == ["a b"]


def test_infer_with_several_texts(client: Client, gateway: GatewayThread) -> None:
    many = [f"text number {number}" for number in range(40)]
    _, found = ask(client, INFER, infer(tensor("text_input", many), id="many"))
    assert texts(found) == many and found["id"] == "many"
    assert gateway.gateway.metrics.of("m").requests == {("v2.infer", 200): 40}
    square = tensor("text_input", [["a", "b"], ["c", "d e"]], shape=[2, 2])
    _, found = ask(client, INFER, infer(square))
    assert texts(found) == ["a", "b", "c", "d e"]
    assert {tuple(output["shape"]) for output in found["outputs"]} == {(2, 2)}
    assert found["outputs"][3]["data"] == [1, 1, 1, 2]


def test_parameters_as_tensors(client: Client) -> None:
    text = tensor("text_input", ["hello big world", "one two three"])
    _, found = ask(client, INFER, infer(text, tensor("max_tokens", [1], "INT32"), tensor("temperature", [0.7], "FP32")))
    assert texts(found) == ["hello", "one"]
    _, found = ask(client, INFER, infer(text, tensor("max_tokens", [1, 2], "INT32")))
    assert texts(found) == ["hello", "one two"]
    _, found = ask(client, INFER, infer(text, tensor("chat", [True], "BOOL"), tensor("stop", ["x", "y", "z"])))
    assert texts(found) == ["hello big world", "one two three"]
    _, found = ask(client, INFER, infer(text, tensor("sampling_parameters", ['{"max_tokens": 2}'])))
    assert texts(found) == ["hello big", "one two"]
    _, found = ask(client, INFER, infer(text, parameters={"max_tokens": 2, "content_type": "str"}))
    assert texts(found) == ["hello big", "one two"]


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


def binary(text: bytes, count: int, *, size: int | None = None, **more: Any) -> tuple[bytes, str]:
    given = {
        "name": "text_input",
        "datatype": "BYTES",
        "shape": [count],
        "parameters": {"binary_data_size": len(text) if size is None else size},
    }
    head = infer(given, **more)
    return head + text, f"Inference-Header-Content-Length: {len(head)}"


def test_binary_in_and_out(client: Client) -> None:
    for elements in ([b"hello big world"], [b"a b", "grüße".encode()]):
        for more in ({"parameters": {"binary_data_output": True}}, {}):
            body, line = binary(packed(*elements), len(elements), **more)
            client.send(post(body, INFER, line))
            status, headers, answer = client.response()
            assert status == 200
            length = int(headers.get("inference-header-content-length", len(answer)))
            head, follows = json.loads(answer[:length]), answer[length:]
            outputs = {output["name"]: output for output in head["outputs"]}
            assert head["outputs"][0]["shape"] == [len(elements)]
            if not more:
                assert outputs["text_output"]["data"] == [each.decode() for each in elements] and not follows
                continue
            assert follows[: outputs["text_output"]["parameters"]["binary_data_size"]] == packed(*elements)
            assert sum(output["parameters"]["binary_data_size"] for output in head["outputs"]) == len(follows)
            counts = [len(each.split()) for each in elements]
            assert struct.unpack(f"<{len(elements)}q", follows[-16 * len(elements) : -8 * len(elements)]) == tuple(
                counts
            )


def test_binary_for_some_outputs(client: Client) -> None:
    outputs = [
        {"name": "completion_tokens", "parameters": {"binary_data": False}},
        {"name": "text_output", "parameters": {"binary_data": True}},
    ]
    client.send(post(infer(tensor("text_input", ["a b"]), outputs=outputs), INFER))
    _, headers, answer = client.response()
    length = int(headers["inference-header-content-length"])
    found = json.loads(answer[:length])["outputs"]
    assert [output["name"] for output in found] == ["completion_tokens", "text_output"]
    assert found[0]["data"] == [2] and "data" not in found[1] and answer[length:] == packed(b"a b")
    assert headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("body", "line", "says"),
    [
        (*binary(packed(b"a"), 2), "ends before"),
        (*binary(packed(b"a", b"b"), 1), "more than its 1 elements"),
        (*binary(b"\xff\xff\xff\xff", 1), "ends before"),
        (*binary(packed(b"\xff\xfe"), 1), "not UTF-8"),
        (*binary(packed(b"a"), 1, size=3), "2 bytes follow"),
        (*binary(packed(b"a"), 1, size=6), "claims 6 bytes, and 5 are left"),
        (*binary(packed(b"a"), 1, size=-1), "claims -1 bytes"),
        (*binary(packed(b"a"), 1, size=True), "claims True bytes"),  # type: ignore[arg-type]
        (b"{}", "Inference-Header-Content-Length: 9", "the body has 2 bytes"),
        (b"{}", "Inference-Header-Content-Length: -1", "the body has 2 bytes"),
        (b"{}", "Inference-Header-Content-Length: 99999999999999999999", "the body has 2 bytes"),
        (binary(packed(b"a"), 1)[0][:-5], "X-None: 1", "there is no Inference-Header-Content-Length"),
    ],
)
def test_binary_refuses(client: Client, body: bytes, line: str, says: str) -> None:
    status, answer = ask(client, INFER, body, line)
    assert status == 400 and says in answer["error"], answer


TEXT = tensor("text_input", ["x"])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{}", "'inputs' must be an array"),
        (b'{"inputs": [5]}', "must be an object"),
        (b'{"inputs": [{"name": "text_input"}]}', "must have a 'name', a 'datatype'"),
        (infer({**TEXT, "colour": 1}), "has 'colour'"),
        (infer(TEXT, colour=1), "has 'colour'"),
        (infer({**TEXT, "parameters": {"shared_memory_region": "r"}}), "'shared_memory_region'"),
        (infer(TEXT, outputs=[{"name": "text_output", "parameters": {"classification": 1}}]), "'classification'"),
        (infer(TEXT, outputs=[{"name": "logits"}]), "no output 'logits'"),
        (infer(TEXT, outputs=[{"name": "text_output"}, {"name": "text_output"}]), "asked for twice"),
        (infer(TEXT, outputs={}), "'outputs' must be an array"),
        (infer(TEXT, outputs=[5]), "must be an object with a 'name'"),
        (infer({**TEXT, "parameters": []}), "must be an object"),
        (infer(tensor("max_tokens", [1], "INT32")), "'text_input' is missing"),
        (infer(TEXT, tensor("prompt", ["y"])), "more than one text"),
        (infer(TEXT, tensor("max_tokens", [1], "INT32"), tensor("max_tokens", [2], "INT32")), "given twice"),
        (infer(TEXT, tensor("max_tokens", [1], "INT32"), parameters={"max_tokens": 2}), "given twice"),
        (infer(TEXT, tensor("max_tokens", [1, 2], "INT32")), "one for each text"),
        (infer(TEXT, tensor("chat", [True, False], "BOOL")), "for the whole request"),
        (infer(TEXT, tensor("weights", [1], "INT32")), "no parameter 'weights'"),
        (infer(tensor("text_input", ["x"], "INT32")), "datatype is BYTES"),
        (infer(TEXT, tensor("seed", [1], "INT128")), "Datatypes are"),
        (infer(TEXT, tensor("seed", [1.5], "INT64")), "must be an integer"),
        (infer(TEXT, tensor("seed", [300], "INT8")), "INT8 does not hold"),
        (infer(TEXT, tensor("seed", [-1], "UINT8")), "UINT8 does not hold"),
        (infer(TEXT, tensor("seed", [True], "INT64")), "must be an integer"),
        (infer(TEXT, tensor("top_p", ["x"], "FP32")), "must be a number"),
        (infer(TEXT, tensor("chat", [1], "BOOL")), "must be a boolean"),
        (infer(tensor("text_input", [5])), "must be a string"),
        (infer(tensor("text_input", ["x"], shape=[2])), "has 2 elements, but its data have 1"),
        (infer(tensor("text_input", ["x", "y"], shape=[1])), "has 1 elements, but its data have 2"),
        (infer(tensor("text_input", ["x"], shape=[-1])), "at least 0"),
        (infer(tensor("text_input", ["x"], shape=["1"])), "at least 0"),  # type: ignore[list-item]
        (infer(tensor("text_input", [], shape=[0])), "has no elements"),
        (infer(tensor("text_input", ["x"], shape=[1] * 9)), "more than 8 dimensions"),
        (infer(tensor("text_input", ["x"], shape=[2**62, 2**62])), "at most 1024"),
        (infer(tensor("text_input", ["x"] * 1025)), "at most 1024"),
        (infer(tensor("text_input", [["x"], ["y", "z"]], shape=[2, 1])), "not nested"),
        (infer(tensor("text_input", [["x"], 5], shape=[2, 1])), "not nested"),
        (infer({**TEXT, "data": "x"}), "must be an array"),
        (infer(*([TEXT] * 65)), "at most 64"),
        (infer(TEXT, parameters={"sequence_id": 5, "sequence_start": True}), "no parameter 'sequence_id'"),
        (infer(TEXT, parameters={"content_type": "np"}), "'content_type'"),
        (infer(TEXT, parameters={"stream": True}), "infer answers in one piece"),
        (infer(tensor("text_input", ["x", "y"]), tensor("temperature", [9.0], "FP32")), "'temperature'"),
    ],
)
def test_infer_refuses(client: Client, body: bytes, says: str) -> None:
    status, answer = ask(client, INFER, body)
    assert status == 400 and says in answer["error"], answer


def test_what_never_reaches_an_engine_is_counted(client: Client, gateway: GatewayThread) -> None:
    ask(client, INFER, b"{}")
    ask(client, "/v2/models/none/generate", generate())
    ask(client, GENERATE, generate(max_tokens=0))
    metrics = gateway.gateway.metrics
    assert metrics.of("m").requests == {("v2.infer", 400): 1, ("v2.generate", 400): 1}
    assert metrics.of("").requests == {("v2.generate", 404): 1}


# The repository.


def test_repository(client: Client, control: Control, gateway: GatewayThread) -> None:
    rows = ask(client, "/v2/repository/index", b"")[1]
    assert rows == [
        {"name": "m", "version": "3", "state": "READY", "reason": ""},
        {"name": "other", "version": "3", "state": "UNAVAILABLE", "reason": ""},
    ]
    assert [row["name"] for row in ask(client, "/v2/repository/index", b'{"ready": true}')[1]] == ["m"]
    assert ask(client, "/v2/repository/models/other/load", b"{}")[0] == 200
    assert ask(client, "/v2/repository/models/other/unload", b'{"parameters": {"unload_dependents": false}}')[0] == 200
    assert control.calls == [("load", "other"), ("unload", "other")]
    status, answer = ask(client, "/v2/repository/models/third/load", b"")
    assert status == 404 and "There are: m, other." in answer["error"]
    for body in (b'{"ready": 1}', b'{"x": 1}', b"[]"):
        assert ask(client, "/v2/repository/index", body)[0] == 400
    assert ask(client, "/v2/repository/models/other/load", b'{"x": 1}')[0] == 400
    for parameters in ({"config": "{}"}, {"unload_dependents": True}, []):
        body = json.dumps({"parameters": parameters}).encode()
        assert ask(client, "/v2/repository/models/other/load", body)[0] == 400
    assert ask(client, "/v2/repository/models/other/start", b"")[0] == 404
    assert client.ask(get("/v2/models/other"))[2]["versions"] == ["3"]  # it could be served
    assert client.ask(get("/v2/models/third"))[0] == 404


def test_a_load_holds_nothing_up_and_ends_when_its_client_left(client: Client, control: Control) -> None:
    control.go_on.clear()
    with Client(client.socket.getpeername()[1]) as waiting:
        waiting.send(post(b"", "/v2/repository/models/other/load"))
        assert ask(client, GENERATE, generate())[0] == 200
    control.go_on.set()
    until(lambda: control.calls == [("load", "other")])
    assert ask(client, GENERATE, generate())[0] == 200


def test_without_a_control(echo: Echoes) -> None:
    starting = Route(model="slow", ready=False, detail="it loads its weights")
    with GatewayThread(route_to(echo().port), starting) as gateway, Client(gateway.port) as client:
        rows = {row["name"]: row for row in ask(client, "/v2/repository/index", b"")[1]}
        assert (rows["m"]["state"], rows["slow"]["state"]) == ("READY", "UNAVAILABLE")
        assert rows["slow"]["reason"] == "it loads its weights"
        status, answer = ask(client, "/v2/repository/models/m/unload", b"")
        assert status == 400 and "cannot unload" in answer["error"]
