"""Embeddings through the gateway: what is asked for, what is refused, and that the bytes travel untouched."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import openai
import pytest

from pressroom.engines.base import Capabilities
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Script, chat, post, route_to

ENCODER = Capabilities(chat=False, completions=False, streaming=False, embeddings=True)
VECTOR = [0.5, -0.25, 1.0]


def encoder(script: Callable[..., Script]) -> Script:
    """An engine that embeds every text as the same vector, in the form that is asked for."""

    def say(connected: Any) -> None:
        asked = json.loads(engine.requests[-1].partition(b"\r\n\r\n")[2])
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        packed = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()
        vector: Any = packed if asked.get("encoding_format") == "base64" else VECTOR
        data = [{"object": "embedding", "index": number, "embedding": vector} for number in range(len(texts))]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        body = json.dumps({"object": "list", "model": "m", "data": data, "usage": usage}).encode()
        connected.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    engine = script(say)
    return engine


@pytest.mark.parametrize("form", ["float", "base64"])
def test_the_official_client(script: Callable[..., Script], form: Any) -> None:
    with (
        GatewayThread(route_to(encoder(script).port, capabilities=ENCODER)) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
    ):
        found = client.embeddings.create(model="m", input=["one", "two"], encoding_format=form)
        assert [entry.index for entry in found.data] == [0, 1]
        assert found.usage.prompt_tokens == 3
        # The client asks for base64 when nobody says, and unpacks it.
        assert client.embeddings.create(model="m", input="one").data[0].embedding == VECTOR


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [1, "a"]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
    ],
)
def test_what_is_refused(script: Callable[..., Script], fields: dict[str, Any], param: str) -> None:
    engine = encoder(script)
    with GatewayThread(route_to(engine.port, capabilities=ENCODER)) as gateway, Client(gateway.port) as client:
        status, _, body = client.ask(post(json.dumps({"model": "m", **fields}).encode(), "/v1/embeddings"))
        assert status == 400 and body["error"]["param"] == param
        status, _, body = client.ask(post(chat()))
        assert status == 400 and body["error"]["code"] == "unsupported_parameter", "an encoder does not chat"
    assert not engine.requests
