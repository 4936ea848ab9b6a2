"""Chats in OpenAI's words through Anthropic's Messages API and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .test_vendor_faults import failing
from .test_vendor_openai import CHAT, chat
from .vendor_servers import Answer, ScriptedVendor, ask, events, served, stream

USAGE = {"input_tokens": 5, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 100, "output_tokens": 7}
COUNTED = {
    "prompt_tokens": 125,
    "completion_tokens": 7,
    "total_tokens": 132,
    "prompt_tokens_details": {"cached_tokens": 100},
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA, "strict": True}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": SCHEMA}}


def message(*blocks: dict[str, Any], stop: str = "end_turn") -> dict[str, Any]:
    base = {"id": "msg_1", "type": "message", "role": "assistant", "model": "upstream-model"}
    return {**base, "content": list(blocks), "stop_reason": stop, "stop_sequence": None, "usage": USAGE}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def sent(**fields: Any) -> dict[str, Any]:
    """What the vendor is asked for a chat."""
    with ScriptedVendor(Answer(body=message(text("ok")))) as vendor, served(vendor.url, "anthropic") as url:
        status, answer, _ = ask(url, CHAT, chat(**fields))
    assert status == 200, answer
    body = vendor.asked[0].body
    assert isinstance(body, dict)
    return body


def refused(**fields: Any) -> dict[str, Any]:
    """The error for a chat that the vendor is not asked."""
    with ScriptedVendor(Answer(body=message(text("ok")))) as vendor, served(vendor.url, "anthropic") as url:
        status, answer, _ = ask(url, CHAT, chat(**fields))
    assert status == 400 and not vendor.asked
    error = answer["error"]
    assert isinstance(error, dict)
    return error


# Requests


def test_headers_and_the_least_request() -> None:
    with ScriptedVendor(Answer(body=message(text("ok")))) as vendor, served(vendor.url, "anthropic") as url:
        ask(url, CHAT, chat())
    (asked,) = vendor.asked
    assert asked.path == "/v1/messages" and asked.headers["x-api-key"] == "the-key-of-the-tests"
    assert asked.headers["anthropic-version"] == "2023-06-01" and "authorization" not in asked.headers
    turn = {"role": "user", "content": [text("hi")]}
    assert asked.body == {"model": "upstream-model", "max_tokens": 4096, "messages": [turn]}


def test_sampling() -> None:
    body = sent(max_tokens=9, temperature=0.3, top_p=0.9, top_k=5, stop="x", user="u", seed=None, n=1, logprobs=False)
    assert body.pop("messages") and body.pop("model")
    assert body == {
        "max_tokens": 9,
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 5,
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u"},
    }
    assert sent(max_completion_tokens=3, max_tokens=9)["max_tokens"] == 3
    assert sent(stop=["a", "b"])["stop_sequences"] == ["a", "b"]
    assert "stop_sequences" not in sent(stop=[])


def test_a_conversation_alternates_and_instructions_stand_apart() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"n": 1}'}}
    body = sent(
        tools=[TOOL],
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": "one"},
            {"role": "user", "content": [{"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "let me see", "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "assistant", "content": None, "tool_calls": [{**call, "id": "c2"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "3"}]},
            {"role": "user", "content": ""},
            {"role": "user", "content": "go on"},
        ],
    )
    assert body["system"] == "Be brief.\n\nBe kind."
    use = {"type": "tool_use", "id": "c1", "name": "add", "input": {"n": 1}}
    assert body["messages"] == [
        {"role": "user", "content": [text("one"), text("two")]},
        {"role": "assistant", "content": [text("let me see"), use, {**use, "id": "c2"}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "2"},
                {"type": "tool_result", "tool_use_id": "c2", "content": "3"},
                text("go on"),
            ],
        },
    ]


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, {"type": "tool", "name": "add"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"tool_choice": "required", "parallel_tool_calls": True}, {"type": "any"}),
    ],
)
def test_tools(fields: dict[str, Any], choice: dict[str, Any] | None) -> None:
    body = sent(tools=[TOOL, {"type": "function", "function": {"name": "bare", "strict": True}}], **fields)
    assert body["tools"] == [
        {"name": "add", "description": "Adds.", "input_schema": SCHEMA},
        {"name": "bare", "input_schema": {"type": "object"}, "strict": True},
    ]
    assert body.get("tool_choice") == choice


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"seed": 1}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"temperature": 1.5}, "temperature"),
        ({"min_p": 0.1}, "min_p"),
        ({"grammar": "x"}, "grammar"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": FORMAT, "tools": [TOOL]}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"messages": [{"role": "user", "content": "a", "name": "ann"}]}, "messages[0].name"),
        ({"messages": [{"role": "function", "content": "a"}]}, "messages[0].role"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert error["code"] == "unsupported_parameter" and error["param"] == param


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "only instructions"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": 7}],
        [{"role": "tool", "content": "2"}],
        [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[1]"}}]}],
        [{"role": "assistant", "tool_calls": [7]}],
        [{"role": "assistant", "tool_calls": 7}],
    ],
)
def test_conversations_that_are_none_are_refused_here(messages: list[dict[str, Any]]) -> None:
    assert refused(messages=messages)["type"] == "invalid_request_error"


# Answers


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_why_it_ended(stop: str, finish: str) -> None:
    with ScriptedVendor(Answer(body=message(text("ok"), stop=stop))) as vendor, served(vendor.url, "anthropic") as url:
        answer = ask(url, CHAT, chat())[1]
    assert answer["choices"][0]["finish_reason"] == finish


def test_a_whole_answer() -> None:
    blocks = (
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        text("Let me "),
        text("add."),
        {"type": "tool_use", "id": "t1", "name": "add", "input": {"n": 1}},
        {"type": "tool_use", "id": "t2", "name": "add", "input": {}},
    )
    with (
        ScriptedVendor(Answer(body=message(*blocks, stop="tool_use"))) as vendor,
        served(vendor.url, "anthropic") as url,
    ):
        answer = ask(url, CHAT, chat())[1]
    assert answer["object"] == "chat.completion" and answer["model"] == "mine" and answer["usage"] == COUNTED
    call = {"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"n":1}'}}
    second = {"id": "t2", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Let me add.",
        "reasoning": "hm",
        "reasoning_content": "hm",
        "tool_calls": [call, second],
    }


def blocks_of(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    pieces = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    begin = {"type": "content_block_start", "index": index, "content_block": start}
    return [begin, *pieces, {"type": "content_block_stop", "index": index}]


def streamed(*blocks: list[dict[str, Any]], stop: str = "end_turn", end: bool = True) -> Answer:
    start = {**message(), "usage": {**USAGE, "output_tokens": 1}, "stop_reason": None}
    last = [
        {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]
    middle = [event for block in blocks for event in block]
    return Answer(
        stream=True,
        pieces=events({"type": "message_start", "message": start}, {"type": "ping"}, *middle, *(last if end else [])),
    )


THOUGHT = blocks_of(
    0,
    {"type": "thinking", "thinking": ""},
    {"type": "thinking_delta", "thinking": "hm"},
    {"type": "signature_delta", "signature": "s"},
)
SAID = blocks_of(1, text(""), {"type": "text_delta", "text": "Let "}, {"type": "text_delta", "text": "me."})
CALL = blocks_of(
    2,
    {"type": "tool_use", "id": "t1", "name": "add", "input": {}},
    {"type": "input_json_delta", "partial_json": ""},
    {"type": "input_json_delta", "partial_json": '{"n"'},
    {"type": "input_json_delta", "partial_json": ": 1}"},
)
BARE = blocks_of(3, {"type": "tool_use", "id": "t2", "name": "now", "input": {}})
NEW = [{"type": "something_new", "index": 9}, *blocks_of(8, {"type": "new_block"}, {"type": "new_delta", "x": 1})]


def test_a_streamed_answer() -> None:
    answer = streamed(THOUGHT, NEW, SAID, CALL, BARE, stop="tool_use")
    with ScriptedVendor(answer) as vendor, served(vendor.url, "anthropic") as url:
        *chunks, usage, done = stream(url, CHAT, chat(tools=[TOOL], stream_options={"include_usage": True}))
    assert vendor.asked[0].body["stream"] is True and "stream_options" not in vendor.asked[0].body
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"] == COUNTED
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in [*chunks, usage]} == {
        ("msg_1", "chat.completion.chunk", "mine")
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {"reasoning": "hm", "reasoning_content": "hm"}
    assert [delta["content"] for delta in deltas[1:] if delta.get("content")] == ["Let ", "me."]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    whole: dict[int, str] = {}
    for call in calls:
        whole[call["index"]] = whole.get(call["index"], "") + call["function"]["arguments"]
    assert whole == {0: '{"n": 1}', 1: "{}"}
    assert [(call["id"], call["function"]["name"]) for call in calls if "id" in call] == [("t1", "add"), ("t2", "now")]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["tool_calls"]


def test_a_schema_is_a_tool_that_must_be_called_and_its_input_the_answer() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "count", "input": {"n": 1}}
    answer = streamed(SAID, CALL, stop="tool_use")
    with (
        ScriptedVendor(Answer(body=message(text("Sure:"), use, stop="tool_use")), answer) as vendor,
        served(vendor.url, "anthropic") as url,
    ):
        whole = ask(url, CHAT, chat(response_format=FORMAT))[1]
        *chunks, _done = stream(url, CHAT, chat(response_format=FORMAT))
    body = vendor.asked[0].body
    (tool,) = body["tools"]
    assert tool["name"] == "count" and tool["input_schema"] == SCHEMA and tool["strict"] is True
    assert body["tool_choice"] == {"type": "tool", "name": "count", "disable_parallel_tool_use": True}
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": '{"n":1}'}
    assert whole["choices"][0]["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "stop"
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert json.loads(said) == {"n": 1} and not any("tool_calls" in c["choices"][0]["delta"] for c in chunks)


def test_an_answer_that_does_not_keep_to_the_schema_is_an_error() -> None:
    with ScriptedVendor(Answer(body=message(text("no")))) as vendor, served(vendor.url, "anthropic") as url:
        assert ask(url, CHAT, chat(response_format=FORMAT))[1]["error"]["code"] == "vendor_malformed"
    with ScriptedVendor(streamed(SAID)) as vendor, served(vendor.url, "anthropic") as url:
        assert stream(url, CHAT, chat(response_format=FORMAT))[-1]["error"]["code"] == "vendor_malformed"
    cut = message(text("no"), stop="max_tokens")
    with ScriptedVendor(Answer(body=cut)) as vendor, served(vendor.url, "anthropic") as url:
        choice = ask(url, CHAT, chat(response_format=FORMAT))[1]["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == ""


def test_completions_are_chats_and_embeddings_are_none() -> None:
    with (
        ScriptedVendor(Answer(body=message(text("ok"))), streamed(SAID)) as vendor,
        served(vendor.url, "anthropic") as url,
    ):
        answer = ask(url, "/v1/completions", {"prompt": "a", "max_tokens": 2})[1]
        chunks = stream(url, "/v1/completions", {"prompt": "a"})
        assert ask(url, "/v1/embeddings", {"input": "a"})[1]["error"]["code"] == "unsupported_parameter"
    assert answer["choices"][0]["text"] == "ok" and answer["usage"] == COUNTED
    assert [chunk["choices"][0]["text"] for chunk in chunks[:-1]] == ["Let ", "me.", ""]


# Errors


@pytest.mark.parametrize(
    ("status", "kind", "found", "code"),
    [
        (400, "invalid_request_error", 400, None),
        (401, "authentication_error", 502, "vendor_refused_key"),
        (404, "not_found_error", 502, "vendor_not_found"),
        (413, "request_too_large", 413, None),
        (500, "api_error", 502, "vendor_error"),
        (529, "overloaded_error", 503, "vendor_unavailable"),
    ],
)
def test_errors(status: int, kind: str, found: int, code: str | None) -> None:
    fault = Answer(status=status, body={"type": "error", "error": {"type": kind, "message": "said"}})
    with ScriptedVendor(fault) as vendor, served(vendor.url, "anthropic", retries=0) as url:
        got, answer, _ = ask(url, CHAT, chat())
    assert got == found and answer["error"]["code"] == code


def test_a_prompt_that_is_too_long_is_called_so() -> None:
    fault = failing(400, "prompt is too long: 200001 tokens > 200000 maximum", type="invalid_request_error")
    with ScriptedVendor(fault) as vendor, served(vendor.url, "anthropic") as url:
        assert ask(url, CHAT, chat())[1]["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "last",
    [
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        {"type": "content_block_delta", "index": 7, "delta": {"type": "input_json_delta", "partial_json": "{"}},
        None,
    ],
)
def test_a_stream_that_breaks_off_ends_with_an_error(last: dict[str, Any] | None) -> None:
    answer = streamed(SAID, [last] if last else [], end=False)
    with ScriptedVendor(answer) as vendor, served(vendor.url, "anthropic") as url:
        *chunks, error = stream(url, CHAT, chat())
    assert chunks[-1]["choices"][0]["delta"] == {"content": "me."} and error["error"]["code"].startswith("vendor_")
    assert len(vendor.asked) == 1


def test_an_overload_before_the_first_piece_is_tried_again() -> None:
    busy = Answer(stream=True, pieces=events({"type": "error", "error": {"type": "overloaded_error", "message": "x"}}))
    with ScriptedVendor(busy, streamed(SAID)) as vendor, served(vendor.url, "anthropic") as url:
        assert stream(url, CHAT, chat())[-1] == "[DONE]"
    assert len(vendor.asked) == 2


def test_answers_of_any_shape_are_survived() -> None:
    odd: list[Any] = [{}, {"content": 7}, {"content": [7]}, {"content": None}, [], 7, None, "x"]
    kinds = ("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta")
    strange = [{"type": kind, **more} for kind in kinds for more in ({}, {"index": [], "delta": 7, "message": 7})]
    answers = [Answer(body=body) for body in odd]
    with ScriptedVendor(*answers) as vendor, served(vendor.url, "anthropic", breaker_failures=0) as url:
        for _ in odd:
            assert ask(url, CHAT, chat())[1]["error"]["code"] == "vendor_malformed"
    with ScriptedVendor(streamed(strange)) as vendor, served(vendor.url, "anthropic") as url:
        assert stream(url, CHAT, chat())[-1] == "[DONE]"
