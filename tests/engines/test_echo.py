"""The echo's own count of tokens, to the word, whoever heard of them: what other counts are compared with."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from pressroom.engines.backends.echo import EchoServer


async def exchange(port: int, path: str, body: dict[str, Any], *, after: int | None = None, how: str = "") -> bytes:
    """All that comes; where `after` bytes have come, the client closes its side (`half`) or is gone (`reset`)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = json.dumps(body).encode()
    writer.write(
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
        % (path.encode(), len(sent), sent)
    )
    came = b""
    while after is None or len(came) < after:
        piece = await reader.read(300)
        came += piece
        if not piece or b"[DONE]" in came:
            break
    if how == "half":
        writer.write_eof()
        while piece := await reader.read(65536):
            came += piece
    if how == "reset":
        writer.transport.abort()
    writer.close()
    return came


async def counts(port: int) -> dict[str, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /counts HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    found: dict[str, int] = json.loads(await reader.readexactly(length))
    writer.close()
    return found


def stated(came: bytes) -> dict[str, int]:
    """The last usage in an answer."""
    usage = came.rpartition(b'"usage":')[2]
    found: dict[str, int] = json.JSONDecoder().raw_decode(usage.decode())[0]
    return found


def body_for(path: str, stream: bool) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "a b c"}]} if "chat" in path else {"prompt": "a b c"}
    return {**asked, "stream": stream, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(("stream", "delay_s"), [(True, 0.0), (True, 0.0005), (False, 0.0), (False, 0.0005)])
def test_what_is_stated_is_what_was_counted(path: str, stream: bool, delay_s: float) -> None:
    async def run() -> None:
        server = EchoServer("echo", options={"tokens": 100, "delay_s": delay_s, "keep_alive_max": 1})
        port = await server.listen()
        chance = random.Random(5)
        asked = [
            exchange(port, path, body_for(path, stream), after=chance.choice([None, 0, 1, 200, 2000]), how="half")
            for _ in range(16)
        ]
        came = await asyncio.gather(*asked)
        said = [stated(one) for one in came]
        found = await counts(port)
        server.close()
        assert found["requests"] == 16
        assert found["prompt_tokens"] == sum(one["prompt_tokens"] for one in said) == 48
        assert found["completion_tokens"] == sum(one["completion_tokens"] for one in said)
        assert server.active == 0
        if delay_s:
            assert {b'"cut":true' in one for one in came} == {True, False}

    asyncio.run(run())


def test_words_nobody_heard_of_are_counted_as_well() -> None:
    async def run() -> None:
        server = EchoServer("echo", options={"tokens": 300, "delay_s": 0.0005})
        port = await server.listen()
        came = await exchange(port, "/v1/completions", body_for("/v1/completions", True), after=2000, how="reset")
        while server.active:
            await asyncio.sleep(0.01)
        found = await counts(port)
        server.close()
        assert came.count(b'"text":" ') <= found["completion_tokens"] < 300
        assert found == {"requests": 1, "prompt_tokens": 3, "completion_tokens": found["completion_tokens"]}

    asyncio.run(run())


def test_refused_requests_are_not_counted() -> None:
    async def run() -> None:
        server = EchoServer("echo", context=2)
        port = await server.listen()
        assert b" 400 " in await exchange(port, "/v1/completions", {"prompt": "a b c"})
        assert b" 400 " in await exchange(port, "/v1/completions", {})
        found = await counts(port)
        server.close()
        assert found == {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}

    asyncio.run(run())
