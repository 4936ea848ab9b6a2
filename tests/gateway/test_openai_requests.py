"""Which requests are refused before an engine sees them, and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.engines.base import Capabilities
from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols.openai import CHAT, COMPLETION, ENGINE_FIELDS, Endpoint, beyond, read

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USER = {"role": "user", "content": "hi"}
ALL = Capabilities(logprobs=True, json_schema=True, tools=True)


def ask(endpoint: Endpoint = CHAT, **more: Any) -> dict[str, Any] | Problem:
    base: dict[str, Any] = {"model": "m", endpoint.conversation: [USER] if endpoint is CHAT else "hi"}
    given = {**base, **more}
    return read(json.dumps({k: v for k, v in given.items() if v is not ...}).encode(), endpoint)


def refused(**more: Any) -> Problem:
    found = ask(**more)
    assert isinstance(found, Problem), found
    assert found.status == 400 and found.type == "invalid_request_error"
    return found


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": ...}, "messages", "missing_required_parameter"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [USER, {"content": "hi"}]}, "messages[1].role", "missing_required_parameter"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "messages[0].role", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{**USER, "colour": 1}]}, "messages[0].colour", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content[0]", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{}]}]},
            "messages[0].content[0].type",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            "messages[0].content[0]",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"temperature": -1}, "temperature", "decimal_below_min_value"),
        ({"top_p": 1.5}, "top_p", "decimal_above_max_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": 2**31}, "max_tokens", "integer_above_max_value"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "integer_below_min_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "array_above_max_length"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"logit_bias": {"5": 200}}, "logit_bias.5", "decimal_above_max_value"),
        ({"logit_bias": {"5": None}}, "logit_bias.5", "invalid_type"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"n": "2"}, "n", "invalid_type"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"prediction": {}}, "prediction", "unsupported_parameter"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        ({"user": 5}, "user", "invalid_type"),
        ({"model": 5}, "model", "invalid_type"),
    ],
)
def test_what_a_chat_is_refused_for(fields: dict[str, Any], param: str, code: str) -> None:
    problem = refused(**fields)
    assert (problem.param, problem.code) == (param, code), problem.message


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": ...}, "prompt", "missing_required_parameter"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_type"),
        ({"prompt": [["a"]]}, "prompt", "invalid_type"),
        ({"prompt": ["a"] * 129}, "prompt", "array_above_max_length"),
        ({"prompt": ["a"] * 65, "n": 2}, "n", "integer_above_max_value"),
        ({"prompt": ["a", [1]]}, "prompt", "invalid_type"),
        ({"prompt": [[1], []]}, "prompt[1]", "empty_string"),
        ({"prompt": [1, -2]}, "prompt", "invalid_value"),
        ({"logprobs": 6}, "logprobs", "integer_above_max_value"),
        ({"best_of": 3}, "best_of", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"messages": [USER]}, None, None),
    ],
)
def test_what_a_completion_is_refused_for(fields: dict[str, Any], param: str | None, code: str | None) -> None:
    problem = refused(endpoint=COMPLETION, **fields)
    assert (problem.param, problem.code) == (param, code), problem.message


def test_the_words_are_openais() -> None:
    assert refused(colour=1).message == "Unrecognized request argument supplied: colour"
    assert refused(model=...).message == "you must provide a model parameter"
    assert (
        refused(temperature="x").message
        == "Invalid type for 'temperature': expected a decimal, but got a string instead."
    )
    assert (
        refused(temperature=3).message
        == "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead."
    )


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 5_000, b'{"a":NaN}', b'{"model":"\xff"}']
)
def test_a_body_that_is_no_json_object(body: bytes) -> None:
    problem = read(body, CHAT)
    assert isinstance(problem, Problem) and problem.status == 400
    assert json.loads(problem.body())["error"]["message"]


def test_what_is_accepted() -> None:
    null = dict.fromkeys(
        ("temperature", "max_tokens", "stop", "n", "tools", "response_format", "store", "audio", "user")
    )
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "s"}
    usual = {"temperature": 1, "top_p": 0.5, "stop": ["a"], "seed": -5, "n": 1, "logit_bias": {"5": -100}}
    parts = [{"role": "system", "content": [{"type": "text", "text": "x"}]}, {**USER, "name": "n"}]
    for fields in (null, harmless, usual, {"messages": parts}, {"modalities": ["text"], "prompt_cache_key": "k"}):
        assert not isinstance(found := ask(**fields), Problem), found
    assert not isinstance(ask(**dict.fromkeys(ENGINE_FIELDS, 1)), Problem)
    for prompt in ("", "x", ["x"], [1, 2], [[1, 2]], ["x", ""], [[1], [2, 3]]):
        assert not isinstance(found := ask(COMPLETION, prompt=prompt), Problem), found
    assert not isinstance(ask(stream=True, stream_options={"include_usage": True}), Problem)


@pytest.mark.parametrize(
    ("fields", "can", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, Capabilities(), "tools"),
        ({"logprobs": True}, Capabilities(), "logprobs"),
        ({"response_format": {"type": "json_object"}}, Capabilities(), "response_format"),
        ({"grammar": "root ::= x"}, Capabilities(), "grammar"),
        ({"stream": True}, Capabilities(streaming=False), "stream"),
        ({}, Capabilities(chat=False), None),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
            Capabilities(),
            "messages[1]",
        ),
    ],
)
def test_what_the_engine_cannot_do_is_said(fields: dict[str, Any], can: Capabilities, param: str | None) -> None:
    asked = ask(**fields)
    assert not isinstance(asked, Problem)
    problem = beyond(asked, CHAT, can)
    assert problem is not None and (problem.status, problem.param) == (400, param)
    assert problem.code == "unsupported_parameter"
    assert beyond(asked, CHAT, ALL) is None


def test_nothing_is_said_where_nothing_special_is_asked() -> None:
    fields = ask(tools=[], logprobs=False, response_format={"type": "text"}, stream=False)
    assert not isinstance(fields, Problem)
    assert beyond(fields, CHAT, Capabilities()) is None
    text = ask(COMPLETION, logprobs=0)
    assert not isinstance(text, Problem)
    assert beyond(text, COMPLETION, Capabilities()) is not None  # 0 asks for the log probability of what was said
    assert beyond(text, COMPLETION, Capabilities(completions=False)) is not None


def names() -> st.SearchStrategy[str]:
    return st.sampled_from(sorted({*CHAT.fields, *COMPLETION.fields, "role", "content", "type", "text"}))


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | names(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(names(), JSON, max_size=6), st.sampled_from([CHAT, COMPLETION]), st.booleans())
@settings(max_examples=2_000)
def test_any_json_is_judged(fields: dict[str, Any], endpoint: Endpoint, complete: bool) -> None:
    if complete:
        fields = {**fields, "model": "m", endpoint.conversation: [USER] if endpoint is CHAT else "hi"}
    found = read(json.dumps(fields).encode(), endpoint)
    if isinstance(found, Problem):
        assert found.status == 400 and found.message
        json.loads(found.body())
    else:
        beyond(found, endpoint, Capabilities())
