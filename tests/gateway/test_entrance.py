"""Who asks, through every door, and what a key changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from pressroom.gateway import Books
from pressroom.gateway.access import Access
from pressroom.gateway.cache import CachePolicy
from pressroom.gateway.grpc import inference_pb2 as messages
from pressroom.gateway.money import Accounts
from pressroom.kernel import Keys, Workspace
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, chat, post, route_to
from .test_grant import Kept

INFER = "/inference.GRPCInferenceService/ModelInfer"
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"


class Guarded:
    """A gateway that asks for keys, over two models."""

    def __init__(self, workspace: Workspace, port: int) -> None:
        self.keys = Keys(workspace)
        self.access = Access(self.keys, require_key=True)
        self.access.renew()
        self.ledger = Kept()
        self.gateway = GatewayThread(
            route_to(port, model="m"),
            route_to(port, model="other"),
            access=self.access,
            books=Books(Accounts(), self.ledger),
            grpc=True,
        )

    def key(self, name: str, *rights: str, **more: Any) -> str:
        secret = self.keys.create(name, rights, **more)[1]
        self.access.renew()
        return secret

    def send(self, raw: bytes) -> tuple[int, dict[str, str], Any]:
        client = Client(self.gateway.port)
        found = client.ask(raw)
        client.close()
        return found

    def post(self, path: str, body: Any, key: str = "", *lines: str) -> tuple[int, dict[str, str], Any]:
        said = (f"Authorization: Bearer {key}",) if key else ()
        return self.send(post(body if isinstance(body, bytes) else json.dumps(body).encode(), path, *said, *lines))

    def get(self, path: str, key: str = "") -> tuple[int, dict[str, str], Any]:
        said = f"Authorization: Bearer {key}\r\n" if key else ""
        return self.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{said}\r\n".encode())

    def call(self, path: str, message: Any, key: str = "") -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{self.gateway.grpc_port}") as channel:
            method = channel.unary_unary(path)
            metadata = (("authorization", f"Bearer {key}"),) if key else ()
            return method(message.SerializeToString(), timeout=30, metadata=metadata)


@pytest.fixture
def guarded(tmp_path: Path, echo: Callable[..., Any]) -> Iterator[Guarded]:
    with Workspace.open(tmp_path) as workspace:
        made = Guarded(workspace, echo(tokens=3).port)
        with made.gateway:
            yield made


def infer(model: str) -> Any:
    request = messages.ModelInferRequest(model_name=model)
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"hello")
    return request


DOORS = [
    ("/v1/chat/completions", chat()),
    ("/v1/completions", {"model": "m", "prompt": "hello"}),
    ("/v2/models/m/generate", {"text_input": "hello"}),
    ("/v2/models/m/infer", {"inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}),
]


@pytest.mark.parametrize(("path", "body"), DOORS)
def test_no_door_opens_without_a_key(guarded: Guarded, path: str, body: Any) -> None:
    secret = guarded.key("a", "ask")
    for wrong in ("", "pr-" + "x" * 43, "none"):
        status, headers, answer = guarded.post(path, body, wrong)
        assert status == 401, wrong
        assert headers["www-authenticate"] == "Bearer"
        assert isinstance(answer["error"], str if path.startswith("/v2") else dict)
    assert guarded.post(path, body, secret)[0] == 200
    assert [row.key for row in guarded.ledger.rows] == ["a"]


def test_grpc_says_who_it_is_in_its_metadata(guarded: Guarded) -> None:
    secret = guarded.key("a", "ask:m")
    with pytest.raises(grpc.RpcError) as caught:
        guarded.call(INFER, infer("m"))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert guarded.call(INFER, infer("m"), secret)
    with pytest.raises(grpc.RpcError) as other:
        guarded.call(INFER, infer("other"), secret)
    assert other.value.code() is grpc.StatusCode.NOT_FOUND
    assert guarded.call("/inference.GRPCInferenceService/ServerLive", messages.ServerLiveRequest())


def test_a_key_sees_the_models_it_may_ask(guarded: Guarded) -> None:
    secret = guarded.key("a", "ask:m")
    assert [model["id"] for model in guarded.get("/v1/models", secret)[2]["data"]] == ["m"]
    assert guarded.get("/v1/models/other", secret)[0] == 404
    status, _, answer = guarded.post("/v1/chat/completions", chat().replace(b'"m"', b'"other"'), secret)
    assert status == 404
    assert answer["error"]["code"] == "model_not_found"
    assert "other" not in answer["error"]["message"].replace("`other`", "")
    assert guarded.get("/v2/models/other", secret)[0] == 404
    assert guarded.post("/v2/models/other/generate", {"text_input": "x"}, secret)[0] == 404


def test_only_an_admin_loads_models(guarded: Guarded) -> None:
    ask, admin = guarded.key("a", "ask"), guarded.key("b", "admin")
    assert guarded.post("/v2/repository/models/m/load", {}, ask)[0] == 403
    assert guarded.post("/v2/repository/models/m/load", {}, admin)[0] == 400  # there is no control here
    request = messages.RepositoryModelLoadRequest(model_name="m")
    with pytest.raises(grpc.RpcError) as caught:
        guarded.call(LOAD, request, ask)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_what_says_that_it_lives_needs_no_key(guarded: Guarded) -> None:
    for path in ("/health/live", "/health/ready", "/v2", "/v2/health/live", "/v2/health/ready"):
        assert guarded.get(path)[0] == 200, path


def test_a_revoked_key_opens_nothing_on_a_connection_it_had_opened(guarded: Guarded) -> None:
    secret = guarded.key("a", "ask")
    client = Client(guarded.gateway.port)
    request = post(chat(), "/v1/chat/completions", f"Authorization: Bearer {secret}")
    assert client.ask(request)[0] == 200
    assert client.ask(request)[0] == 200
    guarded.keys.revoke("a")
    guarded.access.renew()
    assert client.ask(request)[0] == 401
    client.close()


def test_the_limits_of_a_key_hold(guarded: Guarded) -> None:
    secret = guarded.key("a", "ask", requests_per_minute=3)
    found = [guarded.post("/v1/chat/completions", chat(max_tokens=3), secret) for _ in range(5)]
    assert [status for status, _, _ in found] == [200, 200, 200, 429, 429]
    _, headers, answer = found[-1]
    assert answer["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(headers["retry-after"]) <= 60


@pytest.mark.parametrize(("across", "shared"), [(False, ""), ("team", "team"), (True, "all")])
def test_what_is_kept_for_one_key_is_given_to_another_only_where_that_is_said(
    guarded: Guarded, echo: Callable[..., Any], across: bool | str, shared: str
) -> None:
    a, b = guarded.key("a", "ask", team="press"), guarded.key("b", "ask", team="press")
    c = guarded.key("c", "ask", team="bindery")
    cache = CachePolicy.parse({"exact": True, "across_keys": across})
    guarded.gateway.routes.put("m", [route_to(echo(tokens=3).port)], cache=cache)

    def kept(key: str) -> bool:
        status, headers, _ = guarded.post("/v1/chat/completions", chat(temperature=0), key)
        assert status == 200
        return headers.get("pressroom-cache") == "exact"

    assert not kept(a)
    assert kept(a)
    assert kept(b) is (shared in ("team", "all"))
    assert kept(c) is (shared == "all")


def test_a_tag_is_written_down_and_must_be_one(guarded: Guarded) -> None:
    secret = guarded.key("a", "ask", team="press")
    assert guarded.post("/v1/chat/completions", chat(), secret, "pressroom-tag: internal")[0] == 200
    (row,) = guarded.ledger.rows
    assert (row.tag, row.key, row.team) == ("internal", "a", "press")
    assert guarded.post("/v1/chat/completions", chat(), secret, f"pressroom-tag: {'x' * 65}")[0] == 400
