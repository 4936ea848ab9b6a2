"""The contract of `pressroom.engines.base` as tests: subclass, say which engine and what to run, get the full check.

class TestMine(EngineContract):
    engine_name = "mine"

    @pytest.fixture
    def spec(self, tmp_path):
        return EngineSpec(name="mine", model=..., log=tmp_path / "engine.log")
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from pressroom.engines import Endpoint, Engine, EngineSpec, State, create, engine_class
from pressroom.kernel import EngineStartError

# A guard against a test that hangs, far above what any of them takes.
_PATIENCE_S = 60.0
_PROMPT = "Say hello to the reader of this book."

# Starts an engine, says its process, and waits to be killed.
_PARENT = """
import json, sys, time
from pathlib import Path
from pressroom.engines import EngineSpec, create
given = json.loads(sys.argv[1])
spec = given["spec"]
for name in ("model", "log"):
    spec[name] = spec[name] and Path(spec[name])
engine = create(given["engine"], EngineSpec(**spec))
print(engine.start().pid, flush=True)
time.sleep(3600)
"""


class EngineContract:
    """Set `engine_name` and override the fixture `spec`; every test gets an engine of its own."""

    engine_name: ClassVar[str]

    @pytest.fixture
    def spec(self, tmp_path: Path) -> EngineSpec:
        """What to run. Its `log` must be set."""
        return EngineSpec(name="tested", log=tmp_path / "engine.log")

    @pytest.fixture
    def engine(self, spec: EngineSpec) -> Iterator[Engine]:
        engine = create(self.engine_name, spec)
        yield engine
        engine.stop()

    @pytest.fixture
    def endpoint(self, engine: Engine) -> Endpoint:
        return engine.start()

    @pytest.fixture
    def talker(self, spec: EngineSpec) -> Iterator[Endpoint]:
        """Where an engine answers that takes longer over 100,000 tokens than it takes to leave it; to be overridden
        where the one of `spec` does not."""
        engine = create(self.engine_name, spec)
        yield engine.start()
        engine.stop()

    # The process

    def test_before_start_there_is_nothing(self, engine: Engine) -> None:
        assert engine.pid is None
        assert engine.health().state is State.STOPPED
        engine.stop()
        engine.stop()

    def test_start_answers_and_stop_ends_it(self, engine: Engine) -> None:
        endpoint = engine.start()
        assert endpoint.host == "127.0.0.1", "an engine is for this machine only"
        assert endpoint.port > 0 and endpoint.pid == _pid(engine)
        assert endpoint.version, "the sheet says which version measured"
        assert psutil.pid_exists(endpoint.pid)
        health = engine.health()
        assert health.state is State.READY, health.detail
        assert 0 < health.memory_bytes <= health.peak_memory_bytes
        engine.stop()
        assert not psutil.pid_exists(endpoint.pid)
        assert _pid(engine) is None
        assert engine.health().state is State.STOPPED
        engine.stop()

    def test_it_can_be_started_again(self, engine: Engine) -> None:
        first = engine.start()
        engine.stop()
        second = engine.start()
        assert second.pid != first.pid
        assert engine.health().state is State.READY

    def test_a_killed_engine_is_dead(self, engine: Engine, endpoint: Endpoint) -> None:
        os.kill(endpoint.pid, signal.SIGKILL)
        _until(lambda: engine.pid is None)
        health = engine.health()
        assert health.state is State.DEAD
        assert "SIGKILL" in health.detail

    def test_it_does_not_outlive_a_killed_parent(self, spec: EngineSpec) -> None:
        plain = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
        given = {"engine": self.engine_name, "spec": plain}
        parent = subprocess.Popen(
            [sys.executable, "-c", _PARENT, json.dumps(given, default=str)], stdout=subprocess.PIPE
        )
        assert parent.stdout is not None
        with parent.stdout:
            pid = int(parent.stdout.readline())
        process = psutil.Process(pid)
        parent.kill()
        parent.wait()
        _until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)

    def test_ctrl_c_is_left_to_the_parent(self, engine: Engine, endpoint: Endpoint) -> None:
        os.kill(endpoint.pid, signal.SIGINT)
        assert _ask(endpoint, "/v1/completions", {"prompt": _PROMPT, "max_tokens": 4})[0] == 200
        assert engine.health().state is State.READY

    def test_what_it_writes_is_kept(self, spec: EngineSpec, endpoint: Endpoint) -> None:
        assert spec.log is not None and spec.log.is_file()

    def test_weights_it_cannot_load_are_an_error(self, spec: EngineSpec, tmp_path: Path) -> None:
        if not engine_class(self.engine_name).formats:
            pytest.skip("this engine needs no weights")
        broken = tmp_path / f"broken.{engine_class(self.engine_name).formats[0]}"
        broken.write_bytes(bytes(range(256)) * 64)
        engine = create(self.engine_name, dataclasses.replace(spec, model=broken))
        with pytest.raises(EngineStartError) as caught:
            engine.start()
        assert spec.name in caught.value.message and caught.value.hint
        assert engine.pid is None
        engine.stop()

    def test_an_unknown_option_is_an_error(self, spec: EngineSpec) -> None:
        engine = create(self.engine_name, dataclasses.replace(spec, options={"no_such_option": 1}))
        with pytest.raises(EngineStartError, match="no_such_option"):
            engine.start()
        engine.stop()

    # The answers

    def test_chat(self, endpoint: Endpoint, spec: EngineSpec) -> None:
        self._needs("chat")
        status, answer = _ask(endpoint, "/v1/chat/completions", _chat())
        assert status == 200, answer
        assert answer["object"] == "chat.completion"
        assert answer["model"] == spec.name
        (choice,) = answer["choices"]
        assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
        assert choice["finish_reason"] in ("stop", "length")
        _check_usage(answer["usage"])

    def test_completions(self, endpoint: Endpoint, spec: EngineSpec) -> None:
        self._needs("completions")
        status, answer = _ask(endpoint, "/v1/completions", {"prompt": _PROMPT, "max_tokens": 8, "temperature": 0})
        assert status == 200, answer
        assert answer["object"] == "text_completion"
        assert answer["model"] == spec.name
        (choice,) = answer["choices"]
        assert isinstance(choice["text"], str) and choice["finish_reason"] in ("stop", "length")
        _check_usage(answer["usage"])

    def test_max_tokens_is_kept(self, endpoint: Endpoint) -> None:
        status, answer = _ask(endpoint, "/v1/completions", {"prompt": _PROMPT, "max_tokens": 2, "temperature": 0})
        assert status == 200
        assert answer["usage"]["completion_tokens"] <= 2

    def test_chat_stream(self, endpoint: Endpoint) -> None:
        self._needs("chat", "streaming")
        whole = _ask(endpoint, "/v1/chat/completions", _chat())[1]
        chunks = _stream(endpoint, "/v1/chat/completions", _chat(stream_options={"include_usage": True}))
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        *said, last = chunks
        assert said[0]["choices"][0]["delta"]["role"] == "assistant"
        text = "".join(choice["delta"].get("content") or "" for chunk in said for choice in chunk["choices"])
        assert text == whole["choices"][0]["message"]["content"], "streamed or not, a greedy answer is the same"
        reasons = [choice["finish_reason"] for chunk in said for choice in chunk["choices"]]
        assert reasons[-1] in ("stop", "length") and not any(reasons[:-1])
        assert last["choices"] == []
        _check_usage(last["usage"])

    def test_completions_stream(self, endpoint: Endpoint) -> None:
        self._needs("completions", "streaming")
        body = {"prompt": _PROMPT, "max_tokens": 8, "temperature": 0}
        whole = _ask(endpoint, "/v1/completions", body)[1]
        chunks = _stream(endpoint, "/v1/completions", {**body, "stream_options": {"include_usage": True}})
        assert {chunk["object"] for chunk in chunks} == {"text_completion"}
        text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
        assert text == whole["choices"][0]["text"]
        _check_usage(next(chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")))

    def test_several_at_once(self, endpoint: Endpoint) -> None:
        answers: list[tuple[int, Any]] = []
        threads = [
            threading.Thread(target=lambda: answers.append(_ask(endpoint, "/v1/chat/completions", _chat())))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [status for status, _ in answers] == [200] * 8

    def test_a_client_that_leaves_disturbs_nobody(self, engine: Engine, endpoint: Endpoint) -> None:
        connection = _connection(endpoint)
        body = {"prompt": _PROMPT, "max_tokens": 512, "stream": True, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        connection.getresponse().readline()
        connection.close()
        assert _ask(endpoint, "/v1/chat/completions", _chat())[0] == 200
        assert engine.health().state is State.READY

    # A client that closes its side only: it leaves, and hears what that came to

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
    def test_a_cut_stream_ends_with_its_counts(self, talker: Endpoint, path: str) -> None:
        self._needs("says_counts", "streaming", "chat" if "chat" in path else "completions")
        before, rest = _cut(talker, path, {**_long(path), "stream": True})
        assert b"data: [DONE]" not in before, "it was over before it could be cut"
        events = [event.removeprefix(b"data: ") for event in (before + rest).split(b"\n\n") if event.strip()]
        assert events[-1] == b"[DONE]", "its end is well formed"
        last = json.loads(events[-2])
        assert last["choices"] == [] and last["cut"] is True
        _check_cut(last["usage"])
        said = [json.loads(event) for event in events[:-2] if event.startswith(b"{")]
        assert not any(choice.get("finish_reason") for chunk in said for choice in chunk["choices"])
        assert _ask(talker, path, {**_long(path), "max_tokens": 4})[0] == 200

    def test_a_cut_answer_is_its_counts(self, talker: Endpoint) -> None:
        self._needs("says_counts", "completions")
        _, rest = _cut(talker, "/v1/completions", _long("/v1/completions"))
        answer = json.loads(rest)
        assert answer["choices"] == [] and answer["cut"] is True
        _check_cut(answer["usage"])
        assert _ask(talker, "/v1/completions", {"prompt": _PROMPT, "max_tokens": 4})[0] == 200

    def test_a_bad_body_is_refused_and_survived(self, engine: Engine, endpoint: Endpoint) -> None:
        for body in (b"{", b"[]", b'{"messages": 7}', b'{"messages": [{"role": 1}]}', b"\xff\xfe"):
            connection = _connection(endpoint)
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            # llama.cpp says 500 for some wrong types; what counts here is that it is an error with a JSON body.
            assert 400 <= response.status <= 500, body
            assert "error" in json.loads(response.read())
            connection.close()
        assert engine.health().state is State.READY

    # What it says it can do

    def test_logprobs(self, endpoint: Endpoint) -> None:
        self._needs("logprobs", "chat")
        status, answer = _ask(endpoint, "/v1/chat/completions", _chat(logprobs=True, top_logprobs=2))
        assert status == 200, answer
        for token in answer["choices"][0]["logprobs"]["content"]:
            assert token["logprob"] <= 0 and len(token["top_logprobs"]) == 2

    def test_json_schema(self, endpoint: Endpoint) -> None:
        self._needs("json_schema", "chat")
        schema = {
            "type": "object",
            "properties": {"loud": {"type": "boolean"}},
            "required": ["loud"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        status, answer = _ask(endpoint, "/v1/chat/completions", _chat(response_format=wanted, max_tokens=64))
        assert status == 200, answer
        found = json.loads(answer["choices"][0]["message"]["content"])
        assert list(found) == ["loud"] and isinstance(found["loud"], bool)

    def test_tools(self, endpoint: Endpoint) -> None:
        self._needs("tools", "chat")
        function = {"name": "greet", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}}
        wanted = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
        status, answer = _ask(endpoint, "/v1/chat/completions", _chat(**wanted, max_tokens=128))
        assert status == 200, answer
        (call, *_) = answer["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "greet" and isinstance(json.loads(call["function"]["arguments"]), dict)

    def test_embeddings(self, endpoint: Endpoint) -> None:
        self._needs("embeddings")
        status, answer = _ask(endpoint, "/v1/embeddings", {"input": ["one", "two"]})
        assert status == 200, answer
        first, second = (entry["embedding"] for entry in answer["data"])
        assert len(first) == len(second) > 0 and first != second

    def _needs(self, *names: str) -> None:
        """Skip a test of what the engine does not say that it can; override where that depends on the model."""
        capabilities = engine_class(self.engine_name).capabilities
        lacking = [name for name in names if not getattr(capabilities, name)]
        if lacking:
            pytest.skip(f"this engine does not say that it can: {', '.join(lacking)}")


def _pid(engine: Engine) -> int | None:
    return engine.pid  # through a function: it changes between two looks, which the type checker cannot know


def _chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 8, "temperature": 0, **more}


def _connection(endpoint: Endpoint) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=_PATIENCE_S)


def _ask(endpoint: Endpoint, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    connection = _connection(endpoint)
    try:
        sent = json.dumps({"model": "tested", **body})
        connection.request("POST", path, sent, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _stream(endpoint: Endpoint, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it should."""
    connection = _connection(endpoint)
    try:
        sent = json.dumps({"model": "tested", **body, "stream": True})
        connection.request("POST", path, sent, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers.get_content_type() == "text/event-stream"
        events = [event for event in response.read().decode().split("\n\n") if event.strip()]
    finally:
        connection.close()
    data = [event.removeprefix("data: ") for event in events if not event.startswith(":")]
    assert data[-1] == "[DONE]"
    return [json.loads(event) for event in data[:-1]]


def _long(path: str) -> dict[str, Any]:
    """What takes an engine longer than it takes to leave."""
    asked = _chat() if "chat" in path else {"prompt": _PROMPT, "temperature": 0}
    return {"model": "tested", **asked, "max_tokens": 100_000, "ignore_eos": True}


def _cut(endpoint: Endpoint, path: str, body: dict[str, Any]) -> tuple[bytes, bytes]:
    """What came of an answer before the client closed its side, and after that until the engine closed its own. The
    answer's status is 200; of a stream the first bytes are waited for."""
    connection = _connection(endpoint)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        assert connection.sock is not None
        line = connection.sock.dup()  # the client's own is closed with the answer
        if not body.get("stream"):
            time.sleep(0.05)  # so that it has begun; if it has not, that is an answer too
            line.shutdown(socket.SHUT_WR)
            response = connection.getresponse()
            before = b""
        else:
            response = connection.getresponse()
            before = response.read1()
            line.shutdown(socket.SHUT_WR)
        assert response.status == 200
        rest = response.read()
        assert line.recv(1) == b"", "it closes its side as well"
        line.close()
        return before, rest
    finally:
        connection.close()


def _check_cut(usage: dict[str, Any]) -> None:
    assert usage["prompt_tokens"] >= 0 and 0 <= usage["completion_tokens"] < 100_000
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def _check_usage(usage: dict[str, Any]) -> None:
    assert usage["prompt_tokens"] > 0 and usage["completion_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def _until(condition: Any) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
