"""Hits as the official client reads them, of answers that real servers gave."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest

from pressroom.gateway.cache import Cache, Hit, Key
from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols.openai import CHAT, COMPLETION, EMBEDDING
from pressroom.gateway.routes import Route

from ..engines_and_clients import Echoes  # noqa: TID252
from .asking import ALICE, ON, Heard, answer, keep, missed, route, stream, table

_ENDPOINTS = {endpoint.path.decode(): endpoint for endpoint in (CHAT, COMPLETION, EMBEDDING)}


class _Server(ThreadingHTTPServer):
    """Answers from a cache, and nothing else."""

    cache: Cache


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["content-length"])))
        found = self.server.cache.look(ON, ALICE, _ENDPOINTS[self.path], fields)
        if isinstance(found, Hit):
            found.give(self)
        else:
            self.failed(Problem(404, "it is not there"))

    def whole(self, body: bytes, route: Route) -> None:
        self._head(200, "application/json", body, route.cache)

    def begin(self, route: Route) -> None:
        self._head(200, "text/event-stream", b"", route.cache)

    def data(self, data: bytes) -> None:
        self.wfile.write(data)

    def end(self) -> None:
        self.wfile.flush()

    def failed(self, problem: Problem) -> None:
        self._head(problem.status, "application/json", problem.body(), "")

    def _head(self, status: int, kind: str, body: bytes, cache: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("pressroom-cache", cache)
        if body:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def cache() -> Cache:
    return Cache(table())


@pytest.fixture
def client(cache: Cache) -> Iterator[openai.OpenAI]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.cache = cache
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
            yield made
        server.shutdown()
        thread.join(30)


@pytest.fixture
def echo() -> Iterator[Callable[..., Any]]:
    echoes = Echoes()
    yield echoes
    echoes.close()


_ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "one two three"}], "temperature": 0}


def _ask_engine(port: int, path: str, fields: dict[str, Any]) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, json.dumps(fields), {"content-type": "application/json"})
    said = connection.getresponse().read()
    connection.close()
    return said


def test_a_stream_of_an_engine_is_read_whole(cache: Cache, client: openai.OpenAI, echo: Callable[..., Any]) -> None:
    fields = {**_ASKED, "stream": True, "stream_options": {"include_usage": True}}
    said = _ask_engine(echo().port, "/v1/chat/completions", fields)
    stream(cache, missed(cache, fields), said)
    raw = client.chat.completions.with_raw_response.create(**_ASKED)
    found = raw.parse()
    assert raw.headers["pressroom-cache"] == "exact"
    assert found.choices[0].message.content == "one two three" and found.choices[0].finish_reason == "stop"
    assert found.object == "chat.completion" and found.usage is not None and found.usage.completion_tokens == 3
    again = client.chat.completions.create(**_ASKED)
    assert again.id != found.id and again.created >= found.created > 0


def test_a_whole_answer_of_an_engine_is_read_as_a_stream(
    cache: Cache, client: openai.OpenAI, echo: Callable[..., Any]
) -> None:
    keep(cache, _ASKED, _ask_engine(echo().port, "/v1/chat/completions", _ASKED))
    chunks = list(client.chat.completions.create(**_ASKED, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(client.chat.completions.create(**_ASKED, stream=True))
    assert all(chunk.usage is None for chunk in without)


def test_the_client_puts_a_stream_together(cache: Cache, client: openai.OpenAI) -> None:
    """The client's own reader of streams checks their order strictly."""
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [call]}}
    keep(cache, {**_ASKED, "tools": tools}, answer(choices=[choice]))
    with client.chat.completions.stream(**_ASKED, tools=tools) as told:
        message = told.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].id == "call_1" and message.tool_calls[0].function.arguments == '{"a": 1}'
    whole = client.chat.completions.create(**_ASKED, tools=tools).choices[0].message
    assert whole.tool_calls is not None and whole.tool_calls[0].id == "call_1"


def test_text_completions(cache: Cache, client: openai.OpenAI, echo: Callable[..., Any]) -> None:
    fields: dict[str, Any] = {"model": "m", "prompt": "one two three", "temperature": 0}
    asked = {**fields, "stream": True}
    said = _ask_engine(echo().port, "/v1/completions", asked)
    stream(cache, missed(cache, asked, endpoint=COMPLETION), said)
    found = client.completions.create(**fields)
    assert found.choices[0].text == "one two three" and found.object == "text_completion"
    assert found.usage is not None and found.usage.completion_tokens == 3
    chunks = list(client.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two three"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_embeddings(cache: Cache, client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "m", "input": ["a", "b"], "encoding_format": "float"}
    data = [{"object": "embedding", "index": index, "embedding": [0.5, index]} for index in range(2)]
    body = {"object": "list", "data": data, "model": "w", "usage": {"prompt_tokens": 2, "total_tokens": 2}}
    keep(cache, fields, json.dumps(body).encode(), endpoint=EMBEDDING)
    found = client.embeddings.create(**fields)
    assert [each.embedding for each in found.data] == [[0.5, 0.0], [0.5, 1.0]] and found.usage.total_tokens == 2


def test_what_is_not_there(cache: Cache, client: openai.OpenAI) -> None:
    assert isinstance(cache.look(ON, ALICE, CHAT, _ASKED), Key)
    cache.recording(missed(cache, _ASKED), Heard()).whole(b'{"error": {"message": "no"}}', route())
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**_ASKED)
