"""KServe V2 over gRPC: what a call may say, and what it gets back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.engines.base import Capabilities
from pressroom.gateway import Route
from pressroom.gateway.grpc import _wire as wire
from pressroom.gateway.grpc import generate
from pressroom.gateway.grpc import inference_pb2 as messages
from pressroom.gateway.protocols import v2
from pressroom.gateway.protocols._v2_answers import Answer, Embeddings
from pressroom.gateway.protocols._v2_models import TEXT_OUTPUTS, Face
from pressroom.gateway.protocols._v2_requests import Job
from pressroom.gateway.protocols.openai import EMBEDDING
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Echoes, route_to
from .test_v2_bad_days import EMBEDS, MakeScript, embedded, whole
from .v2_doors import Control, ask

SERVICE = "inference.GRPCInferenceService"
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    echoes = Echoes()
    routes = (route_to(echoes().port), Route(model="slow", ready=False, detail="it loads", retry_after_s=7))
    with GatewayThread(*routes, control=Control(), grpc=True) as running:
        yield running
    echoes.close()


@pytest.fixture
def channel(gateway: GatewayThread) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as opened:
        yield opened


def call(channel: grpc.Channel, method: str, request: Any, response: Any) -> Any:
    return response.FromString(channel.unary_unary(f"/{SERVICE}/{method}")(request.SerializeToString(), timeout=30))


def infer(channel: grpc.Channel, request: Any) -> Any:
    return call(channel, "ModelInfer", request, messages.ModelInferResponse)


def refused(channel: grpc.Channel, request: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as found:
        infer(channel, request)
    return found.value


def request(*texts: bytes, raw: bool = False, shape: list[int] | None = None, **fields: Any) -> Any:
    found = messages.ModelInferRequest(model_name="m", **fields)
    given = found.inputs.add(name="text_input", datatype="BYTES", shape=[len(texts)] if shape is None else shape)
    if raw:
        found.raw_input_contents.append(b"".join(len(each).to_bytes(4, "little") + each for each in texts))
    else:
        given.contents.bytes_contents.extend(texts)
    return found


def add(found: Any, name: str, datatype: str, field: str, *values: Any) -> Any:
    tensor = found.inputs.add(name=name, datatype=datatype, shape=[len(values)])
    getattr(tensor.contents, field).extend(values)
    return found


# Inference.


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("texts", [[b"hello big world"], [b"a b", "grüße".encode()]])
def test_data_go_out_as_they_came(channel: grpc.Channel, raw: bool, texts: list[bytes]) -> None:
    found = infer(channel, request(*texts, raw=raw, id="7"))
    assert (found.model_name, found.model_version, found.id) == ("m", "1", "7")
    assert [(each.name, each.datatype, list(each.shape)) for each in found.outputs] == [
        (name, kind, [len(texts)]) for name, kind in TEXT_OUTPUTS.items()
    ]
    if raw:
        assert found.raw_output_contents[0] == b"".join(len(each).to_bytes(4, "little") + each for each in texts)
        assert not any(each.HasField("contents") for each in found.outputs)
    else:
        assert list(found.outputs[0].contents.bytes_contents) == texts and not found.raw_output_contents
        assert list(found.outputs[3].contents.int64_contents) == [len(each.split()) for each in texts]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none(channel: grpc.Channel, value: float) -> None:
    asked = request(b"x")
    asked.parameters["temperature"].double_param = value
    error = refused(channel, asked)
    assert error.code() is Code.INVALID_ARGUMENT and "temperature" in error.details()


def test_parameters(channel: grpc.Channel) -> None:
    asked = request(b"hello big world")
    asked.parameters["max_tokens"].int64_param = 2
    assert infer(channel, asked).outputs[0].contents.bytes_contents[0] == b"hello big"
    asked.parameters["temperature"].double_param = 0.7
    asked.parameters["seed"].uint64_param = 2**40
    asked.parameters["chat"].bool_param = True
    asked.parameters["content_type"].string_param = "str"
    asked.inputs[0].parameters["content_type"].string_param = "str"
    assert infer(channel, asked).outputs[0].contents.bytes_contents[0] == b"hello big"
    asked = add(request(b"hello big world"), "max_tokens", "INT32", "int_contents", 1)
    add(asked, "temperature", "FP32", "fp32_contents", 0.7)
    add(asked, "sampling_parameters", "BYTES", "bytes_contents", json.dumps({"top_p": 0.5}).encode())
    assert infer(channel, asked).outputs[0].contents.bytes_contents[0] == b"hello"


def both_kinds() -> Any:
    found = request(b"x", raw=True)
    found.inputs[0].contents.bytes_contents.append(b"x")
    return found


def with_parameter(name: str, **value: Any) -> Any:
    found = request(b"x")
    found.parameters[name].CopyFrom(messages.InferParameter(**value))
    return found


def half(*, raw: bool) -> Any:
    found = request(b"x", raw=raw)
    found.inputs.add(name="temperature", datatype="FP16", shape=[1])
    if raw:
        found.raw_input_contents.append(b"\x00\x3c")
    return found


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (messages.ModelInferRequest(model_name="m"), "'text_input' is missing"),
        (request(b"x", shape=[2]), "has 2 elements, but its data have 1"),
        (request(b"x", raw=True, shape=[2]), "ends before"),
        (request(b"x", shape=[-1]), "at least 0"),
        (request(b"x", shape=[2**62, 2**62]), "at most 1024"),
        (request(*[b"x"] * 1_025), "at most 1024"),
        (request(b"\xff"), "not UTF-8"),
        (request(b"\xff", raw=True), "not UTF-8"),
        (both_kinds(), "send one of them"),
        (request(b"x", raw_input_contents=[b"", b""]), "1 inputs and 2 raw_input_contents"),
        (add(request(b"x"), "seed", "INT64", "int_contents", 5), "belong into int64_contents"),
        (add(request(b"x"), "seed", "INT8", "int_contents", 300), "INT8 does not hold"),
        (add(request(b"x"), "seed", "NONE", "int_contents", 3), "Datatypes are"),
        (add(request(b"x"), "temperature", "FP32", "fp32_contents", float("nan")), "nan"),
        (add(request(b"x"), "temperature", "FP64", "fp64_contents", float("inf")), "inf"),
        (add(request(b"x"), "max_tokens", "INT32", "int_contents", 1, 2), "one for each text"),
        (half(raw=False), "raw_input_contents only"),
        (with_parameter("colour", string_param="red"), "no parameter 'colour'"),
        (with_parameter("colour"), "has no value"),
        (with_parameter("temperature", double_param=9.5), "'temperature'"),
        (with_parameter("stream", bool_param=True), "answers in one piece"),
        (with_parameter("sampling_parameters", string_param="{"), "not valid JSON"),
        (request(b"x", outputs=[{"name": "logits"}]), "no output 'logits'"),
        (request(b"x", model_version="9"), "no version '9'"),
        (request(b"x", id="x" * 1_025), "id is over"),
    ],
)
def test_wrong_arguments(channel: grpc.Channel, asked: Any, says: str) -> None:
    error = refused(channel, asked)
    assert error.code() is Code.INVALID_ARGUMENT and says in error.details()


def test_half_precision_comes_raw(channel: grpc.Channel) -> None:
    assert infer(channel, half(raw=True)).raw_output_contents[0] == b"\x01\x00\x00\x00x"


def test_what_cannot_be_had(channel: grpc.Channel) -> None:
    asked = request(b"x")
    asked.model_name = "n"
    assert refused(channel, asked).code() is Code.NOT_FOUND
    asked.model_name = "slow"
    error = refused(channel, asked)
    assert error.code() is Code.UNAVAILABLE and "it loads" in error.details()
    told = dict(error.trailing_metadata())
    assert (told["retry-after"], told["grpc-retry-pushback-ms"]) == ("7", "7000")
    with pytest.raises(grpc.RpcError) as unknown:
        channel.unary_unary(f"/{SERVICE}/ModelStatistics")(b"", timeout=30)
    assert unknown.value.code() is Code.UNIMPLEMENTED


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    for method in ("ModelInfer", "ModelReady", "RepositoryIndex"):
        with pytest.raises(grpc.RpcError) as found:
            channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff\xff", timeout=30)
        assert found.value.code() is Code.INVALID_ARGUMENT


def test_two_thousand_malformed_messages(channel: grpc.Channel) -> None:
    import random

    chance = random.Random(11)
    good = [request(b"hello there", raw=raw, id="9").SerializeToString() for raw in (False, True)]
    call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    for _ in range(40):
        futures = []
        for _ in range(50):
            body = bytearray(chance.choice(good))
            for _ in range(chance.randint(1, 4)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            futures.append(call.future(bytes(body), timeout=60))
        for future in futures:
            assert future.code() in (Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND), future.details()
    assert infer(channel, request(b"still here")).outputs[0].contents.bytes_contents[0] == b"still here"


def test_what_never_reaches_an_engine_is_counted(echo: Echoes) -> None:
    with (
        GatewayThread(route_to(echo().port), grpc=True) as gateway,
        grpc.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel,
    ):
        infer(channel, request(b"x"))
        refused(channel, with_parameter("colour", string_param="red"))
        metrics = gateway.gateway.metrics
        assert metrics.of("m").requests == {("v2.grpc.infer", 200): 1, ("v2.grpc.infer", 400): 1}


@pytest.mark.parametrize("raw", [False, True])
def test_a_model_that_embeds(script: MakeScript, raw: bool) -> None:
    engine = script(whole(embedded([0.5, -1.25, 3.0], [1.0, 2.0, 4.0])))
    with (
        GatewayThread(route_to(engine.port, capabilities=EMBEDS), grpc=True) as gateway,
        grpc.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel,
    ):
        found = infer(channel, request(b"a b", b"c", raw=raw))
        assert [(each.name, list(each.shape)) for each in found.outputs] == [
            ("embedding", [2, 3]),
            ("prompt_tokens", [1]),
        ]
        if raw:
            import struct

            assert struct.unpack("<6f", found.raw_output_contents[0]) == (0.5, -1.25, 3.0, 1.0, 2.0, 4.0)
        else:
            assert list(found.outputs[0].contents.fp32_contents) == [0.5, -1.25, 3.0, 1.0, 2.0, 4.0]
            assert list(found.outputs[1].contents.int64_contents) == [5]


# The same bytes as the real messages.


def job(names: list[str] | None, shape: list[int], id: str | None) -> Job:
    face = Face(Route(model="m", ref="m:2"))
    found = v2.read_generate(face, b'{"text_input": "x"}')
    assert found is not None
    found.outputs, found.shape, found.id = names, shape, id
    return found


_answers = st.builds(
    Answer,
    st.text(max_size=200),
    st.sampled_from(["stop", "length"]),
    st.fixed_dictionaries(
        {"prompt_tokens": st.integers(0, 2**40), "prompt_tokens_details": st.just({"cached_tokens": 300})}
    ),
)


@settings(max_examples=200)
@given(
    st.lists(_answers, min_size=1, max_size=3),
    st.booleans(),
    st.none() | st.lists(st.sampled_from(list(TEXT_OUTPUTS)), unique=True, min_size=1),
    st.none() | st.text(max_size=300),
)
def test_the_bytes_are_those_of_the_messages(
    answers: list[Answer], raw: bool, names: list[str] | None, id: str | None
) -> None:
    asked = job(names, [len(answers)], id)
    expected = messages.ModelInferResponse(model_name="m", model_version="2", id=id or "")
    for name in asked.names:
        kind = TEXT_OUTPUTS[name]
        output = expected.outputs.add(name=name, datatype=kind, shape=asked.shape)
        values = [each.value(name) for each in answers]
        if raw:
            packed = (
                [each.encode() for each in values]
                if kind == "BYTES"
                else [each.to_bytes(8, "little") for each in values]
            )
            sizes = [len(each).to_bytes(4, "little") if kind == "BYTES" else b"" for each in packed]
            pairs = zip(sizes, packed, strict=True)
            expected.raw_output_contents.append(b"".join(size + data for size, data in pairs))
        elif kind == "BYTES":
            output.contents.bytes_contents.extend(each.encode() for each in values)
        else:
            output.contents.int64_contents.extend(values)
    assert messages.ModelInferResponse.FromString(wire.response(asked, answers, raw=raw)) == expected
    expected.parameters["triton_final_response"].bool_param = True
    found = messages.ModelStreamInferResponse.FromString(wire.last(asked, answers, raw=raw))
    assert found == messages.ModelStreamInferResponse(infer_response=expected)
    found = messages.ModelStreamInferResponse.FromString(wire.refusal("wröng", id or "", face=asked.face))
    assert (found.error_message, found.infer_response.id) == ("wröng", id or "")


@given(st.integers(0, 3), st.booleans())
def test_embeddings_are_those_of_the_messages(width: int, raw: bool) -> None:
    import struct

    face = Face(Route(model="m", capabilities=Capabilities(chat=False, completions=False, embeddings=True)))
    asked = Job(face, EMBEDDING, [{}], shape=[2], outputs=None, stream=None, id=None)
    values = [float(number) for number in range(2 * width)]
    rows = struct.pack(f"<{2 * width}f", *values)
    found = messages.ModelInferResponse.FromString(wire.response(asked, Embeddings(rows, width, 300), raw=raw))
    assert list(found.outputs[0].shape) == [2, width]
    if raw:
        assert found.raw_output_contents[0] == rows
    else:
        assert list(found.outputs[0].contents.fp32_contents) == values
        assert list(found.outputs[1].contents.int64_contents) == [300]


def test_the_messages_are_made_from_the_proto() -> None:
    pytest.importorskip("grpc_tools")
    assert generate.MADE.read_text(encoding="utf-8") == generate.made(), (
        "run `python -m pressroom.gateway.grpc.generate`"
    )


def test_names_and_numbers_are_those_that_clients_have() -> None:
    """tritonclient brings the published messages with it."""
    from tritonclient.grpc import service_pb2

    for name, mine in messages.DESCRIPTOR.message_types_by_name.items():
        _compare(mine, service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(f"inference.{name}"))
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for name, method in messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name.items():
        assert method.input_type.name == theirs[name].input_type.name
        assert method.output_type.name == theirs[name].output_type.name


def _compare(mine: Any, theirs: Any) -> None:
    for name, field in mine.fields_by_name.items():
        other = theirs.fields_by_name[name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated), (
            field.full_name
        )
    for name, nested in mine.nested_types_by_name.items():
        _compare(nested, theirs.nested_types_by_name[name])


# Health and reflection.


def test_health(gateway: GatewayThread, channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        found = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
        assert found.status == health_pb2.HealthCheckResponse.NOT_SERVING  # one model is not ready
    with pytest.raises(grpc.RpcError) as unknown:
        stub.Check(health_pb2.HealthCheckRequest(service="none"), timeout=30)
    assert unknown.value.code() is Code.NOT_FOUND
    watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
    slow = gateway.routes.get("slow")
    assert slow is not None
    gateway.routes.remove("slow")
    try:
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
    finally:
        watching.cancel()
        gateway.routes.set(slow)


def test_reflection(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {SERVICE, "grpc.health.v1.Health"} <= services
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName(SERVICE)
    assert {"ModelInfer", "ModelStreamInfer", "ServerLive"} <= set(service.methods_by_name)
    assert service.methods_by_name["ModelInfer"].input_type.fields_by_name["raw_input_contents"].number == 7
    # What newer clients ask for, with the same messages.
    from grpc_reflection.v1alpha import reflection_pb2

    asked = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
    newer = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    (answer,) = newer(iter([asked]), timeout=30)
    listed = reflection_pb2.ServerReflectionResponse.FromString(answer).list_services_response.service
    assert SERVICE in {each.name for each in listed}


def test_both_doors_count_in_the_same_figures(gateway: GatewayThread, channel: grpc.Channel) -> None:
    infer(channel, request(b"x"))
    with Client(gateway.port) as client:
        assert ask(client, "/v2/models/m/generate", b'{"text_input": "x"}')[0] == 200
        client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        _, _, text = client.response()
    for door in ("v2.grpc.infer", "v2.generate"):
        assert f'endpoint="{door}"'.encode() in text
