"""What the tests of the cache ask with: a receiver that remembers, requests, answers as engines give them."""

from __future__ import annotations

import json
from typing import Any

from pressroom.gateway.admission import Caller
from pressroom.gateway.cache import Cache, CachePolicy, Hit, Key
from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols.openai import CHAT, Endpoint
from pressroom.gateway.routes import Route, RouteTable

ON = CachePolicy(exact=True)
ALICE, BOB = Caller("alice", "red"), Caller("bob", "red")
EVE, NOBODY = Caller("eve", "blue"), Caller()


class Heard:
    """A receiver that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.body = b""
        self.stream = b""
        self.route: Route | None = None
        self.problem: Problem | None = None

    def whole(self, body: bytes, route: Route) -> None:
        self.told.append("whole")
        self.body, self.route = body, route

    def begin(self, route: Route) -> None:
        self.told.append("begin")
        self.route = route

    def data(self, data: bytes) -> None:
        self.told.append("data")
        self.stream += data

    def end(self) -> None:
        self.told.append("end")

    def failed(self, problem: Problem) -> None:
        self.told.append("failed")
        self.problem = problem

    @property
    def record(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of the stream; the last one must be `[DONE]`."""
        found = [line.removeprefix("data: ") for line in self.stream.decode().split("\n\n") if line]
        assert found[-1] == "[DONE]"
        return [json.loads(event) for event in found[:-1]]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def route(model: str = "m", *, digest: str = "sha256-one", port: int = 1) -> Route:
    return Route(model=model, host="127.0.0.1", port=port, ref=f"{model}:1", digest=digest, engine="echo")


def table(*models: str) -> RouteTable:
    routes = RouteTable()
    for model in models or ("m",):
        routes.set(route(model))
    return routes


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def answer(text: str = "hi there", *, finish: str = "stop", **more: Any) -> bytes:
    """A whole answer as llama.cpp gives it."""
    return json.dumps({
        "choices": [{"finish_reason": finish, "index": 0, "message": {"role": "assistant", "content": text}}],
        "created": 1_700_000_000,
        "model": "weights.gguf",
        "object": "chat.completion",
        "system_fingerprint": "b1",
        "usage": {"completion_tokens": 2, "prompt_tokens": 5, "total_tokens": 7},
        "id": "chatcmpl-engine",
        "timings": {"prompt_n": 5, "predicted_n": 2},
        **more,
    }).encode()  # fmt: skip


def streamed(*records: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(record).encode() + b"\n\n" for record in records) + b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any], finish: str | None = None, *, index: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-engine",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "weights.gguf",
        "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}],
        **more,
    }


def usage_chunk(**more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return {**chunk({}), "choices": [], "usage": usage, **more}


HI = streamed(
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "hi"}),
    chunk({"content": " there"}),
    chunk({}, "stop"),
    usage_chunk(),
)


def look(
    cache: Cache,
    fields: dict[str, Any],
    *,
    policy: CachePolicy = ON,
    caller: Caller = ALICE,
    endpoint: Endpoint = CHAT,
    **more: Any,
) -> Hit | Key | None:
    return cache.look(policy, caller, endpoint, fields, **more)


def missed(cache: Cache, fields: dict[str, Any], **more: Any) -> Key:
    found = look(cache, fields, **more)
    assert isinstance(found, Key)
    return found


def hit(cache: Cache, fields: dict[str, Any], **more: Any) -> Heard:
    """What a client hears, of an answer that must be there."""
    found = look(cache, fields, **more)
    assert isinstance(found, Hit)
    heard = Heard()
    found.give(heard)
    return heard


def keep(
    cache: Cache, fields: dict[str, Any], body: bytes | None = None, *, by: Route | None = None, **more: Any
) -> Key:
    """Let a whole answer to `fields` be given and kept."""
    key = missed(cache, fields, **more)
    cache.recording(key, Heard()).whole(answer() if body is None else body, by or route(fields["model"]))
    return key


def stream(cache: Cache, key: Key, data: bytes = HI, *, size: int = 7, by: Route | None = None) -> Heard:
    """Let a stream be given and kept, in pieces of `size` bytes."""
    heard = Heard()
    recording = cache.recording(key, heard)
    recording.begin(by or route())
    for start in range(0, len(data), size):
        recording.data(data[start : start + size])
    recording.end()
    return heard
