"""Streams given whole, and whole answers given as streams."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pressroom.gateway.cache import Cache, Key
from pressroom.gateway.protocols.openai import COMPLETION

from .asking import HI, Heard, answer, chat, chunk, hit, keep, look, missed, route, stream, streamed, table, usage_chunk

_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}


def test_a_stream_is_given_whole() -> None:
    cache = Cache(table())
    passed = stream(cache, missed(cache, chat(stream=True)))
    assert passed.stream == HI and passed.told[0] == "begin" and passed.told[-1] == "end"
    record = hit(cache, chat()).record
    assert record["object"] == "chat.completion"
    assert record["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi there"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert record["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


@pytest.mark.parametrize("with_usage", [False, True])
def test_a_whole_answer_is_given_as_a_stream(with_usage: bool) -> None:
    cache = Cache(table())
    keep(cache, chat())
    heard = hit(cache, chat(stream=True, stream_options={"include_usage": with_usage}))
    assert heard.told == ["begin", "data", "end"]
    events = heard.events
    assert all(event["object"] == "chat.completion.chunk" for event in events)
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "hi there"}, {}]
    assert [c["finish_reason"] for event in events for c in event["choices"]] == [None, None, "stop"]
    usages = [event for event in events if "usage" in event]
    assert len(usages) == with_usage
    if with_usage:
        assert usages[0] is not None and events[-1]["choices"] == [] and events[-1]["usage"]["total_tokens"] == 7


def test_a_stream_is_given_as_a_stream() -> None:
    cache = Cache(table())
    stream(cache, missed(cache, chat(stream=True)))
    events = hit(cache, chat(stream=True)).events
    assert "".join(c["delta"].get("content") or "" for event in events for c in event["choices"]) == "hi there"


def test_a_stream_that_says_no_tokens_is_given_to_those_who_do_not_ask() -> None:
    cache = Cache(table())
    stream(cache, missed(cache, chat(stream=True)), streamed(chunk({"content": "hi"}), chunk({}, "stop")))
    assert hit(cache, chat(stream=True)).events
    assert isinstance(look(cache, chat()), Key)
    assert isinstance(look(cache, chat(stream=True, stream_options={"include_usage": True})), Key)
    keep(cache, chat())
    assert hit(cache, chat(stream=True, stream_options={"include_usage": True})).events


def test_tokens_may_be_counted_by_somebody_else() -> None:
    cache = Cache(table())
    recording = cache.recording(missed(cache, chat(stream=True)), Heard())
    recording.begin(route())
    recording.data(streamed(chunk({"content": "hi"}), chunk({}, "stop")))
    recording.usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    recording.end()
    assert hit(cache, chat()).record["usage"]["total_tokens"] == 4


def test_the_tokens_of_a_stream_of_llamacpp_are_in_its_timings() -> None:
    cache = Cache(table())
    last = chunk({}, "stop", timings={"cache_n": 10, "prompt_n": 4, "predicted_n": 3, "predicted_ms": 9.5})
    stream(cache, missed(cache, chat(stream=True)), streamed(chunk({"content": "hi"}), last))
    record = hit(cache, chat()).record
    assert record["usage"] == {
        "prompt_tokens": 14,
        "completion_tokens": 3,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 10},
    }
    assert "timings" not in record


def test_tool_calls_both_ways() -> None:
    cache = Cache(table())
    fields = chat(tools=[{"type": "function", "function": {"name": "f"}}])
    pieces = [
        chunk({"role": "assistant", "content": None, "tool_calls": [{"index": 0, **_CALL}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"name": None, "arguments": ": 1}"}}]}),
        chunk({"tool_calls": [{"index": 1, **_CALL, "id": "call_2"}]}),
        chunk({}, "tool_calls"),
        usage_chunk(),
    ]
    stream(cache, missed(cache, {**fields, "stream": True}), streamed(*pieces))
    message = hit(cache, fields).record["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": ""}},
    ]
    choices = [c for event in hit(cache, {**fields, "stream": True}).events for c in event["choices"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": None}
    assert [call["index"] for call in choices[1]["delta"]["tool_calls"]] == [0, 1]
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_several_answers_and_their_probabilities() -> None:
    cache = Cache(table())

    def likely(token: str) -> dict[str, Any]:
        return {"content": [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}

    def piece(index: int, token: str) -> dict[str, Any]:
        made = chunk({"content": token}, index=index)
        made["choices"][0]["logprobs"] = likely(token)
        return made

    fields = chat(n=2, logprobs=True)
    pieces = [piece(1, "b"), piece(0, "a"), piece(0, "A"), chunk({}, "stop", index=0), chunk({}, "length", index=1)]
    stream(cache, missed(cache, {**fields, "stream": True}), streamed(*pieces, usage_chunk()))
    one, two = hit(cache, fields).record["choices"]
    assert (one["message"]["content"], two["message"]["content"]) == ("aA", "b")
    assert [each["token"] for each in one["logprobs"]["content"]] == ["a", "A"]
    assert (one["finish_reason"], two["finish_reason"]) == ("stop", "length")
    again = [c for event in hit(cache, {**fields, "stream": True}).events for c in event["choices"]]
    assert [c["index"] for c in again] == [0, 0, 0, 1, 1, 1]
    assert [each["token"] for c in again for each in (c.get("logprobs") or {}).get("content", [])] == ["a", "A", "b"]


def test_thoughts_are_kept_apart() -> None:
    cache = Cache(table())
    pieces = [
        chunk({"reasoning_content": "hm", "reasoning": "hm"}),
        chunk({"reasoning_content": "m", "reasoning": "m"}),
    ]
    stream(
        cache,
        missed(cache, chat(stream=True)),
        streamed(*pieces, chunk({"content": "yes"}), chunk({}, "stop"), usage_chunk()),
    )
    message = hit(cache, chat()).record["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "yes", "reasoning": "hmm", "reasoning_content": "hmm"}
    deltas = [c["delta"] for event in hit(cache, chat(stream=True)).events for c in event["choices"]]
    assert deltas[1:3] == [{"reasoning": "hmm", "reasoning_content": "hmm"}, {"content": "yes"}]


def test_text_completions_both_ways() -> None:
    cache = Cache(table())
    fields = {"model": "m", "prompt": "say", "temperature": 0, "logprobs": 1}

    def piece(text: str, finish: str | None = None) -> dict[str, Any]:
        logprobs = {"tokens": [text], "token_logprobs": [-1.0], "top_logprobs": [{text: -1.0}], "text_offset": [0]}
        choice = {"index": 0, "text": text, "logprobs": logprobs if text else None, "finish_reason": finish}
        return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "w", "choices": [choice]}

    last = {**piece("", "length"), "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
    key = missed(cache, {**fields, "stream": True}, endpoint=COMPLETION)
    stream(cache, key, streamed(piece("hel"), piece("lo"), last))
    record = hit(cache, fields, endpoint=COMPLETION).record
    assert record["object"] == "text_completion" and record["id"].startswith("cmpl-")
    assert record["choices"][0]["text"] == "hello"
    assert record["choices"][0]["logprobs"]["text_offset"] == [0, 3]
    assert record["usage"]["total_tokens"] == 3
    asked = {**fields, "stream": True, "stream_options": {"include_usage": True}}
    events = hit(cache, asked, endpoint=COMPLETION).events
    assert [c["text"] for event in events for c in event["choices"]] == ["hello", ""]
    assert events[-1]["usage"]["total_tokens"] == 3 and events[0]["object"] == "text_completion"


@pytest.mark.parametrize(
    "text", ['"', '","x":"', "\\", '\\"}]}', "é\n\n", "😀", "data: [DONE]", "\u2028", "", '{"error": 1}', "a" * 500]
)
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("escaped", [False, True])
def test_any_text_comes_out_as_it_went_in(text: str, spaced: bool, escaped: bool) -> None:
    pieces = [chunk({"content": part}) for part in ("x", text, text, "y", *text, text)]
    separators = (", ", ": ") if spaced else (",", ":")
    records = [chunk({"role": "assistant"}), *pieces, chunk({"content": ""}, "stop"), usage_chunk()]
    lines = [json.dumps(record, separators=separators, ensure_ascii=escaped) for record in records]
    data = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()
    cache = Cache(table())
    stream(cache, missed(cache, chat(stream=True)), data, size=50)
    record = hit(cache, chat()).record
    assert record["choices"][0]["message"]["content"] == f"x{text}{text}y{text}{text}"
    deltas = [c["delta"] for event in hit(cache, chat(stream=True)).events for c in event["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == f"x{text}{text}y{text}{text}"


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\n\n", b"\r\n\r\n"),
        lambda data: b": a comment\n\n" + data,
        lambda data: data.replace(b"data: {", b"data:{"),
        lambda data: data[:-2],
        lambda data: data[:-1],
        lambda data: data.replace(b"data: [DONE]", b"event: end\ndata: [DONE]"),
    ],
)
def test_streams_as_other_servers_write_them(change: Any) -> None:
    cache = Cache(table())
    stream(cache, missed(cache, chat(stream=True)), change(HI))
    assert hit(cache, chat()).record["choices"][0]["message"]["content"] == "hi there"


def test_a_template_is_not_taken_for_another_choice() -> None:
    cache = Cache(table())
    pieces = [
        chunk({"content": text}, index=index) for index, text in [(0, "a"), (0, "b"), (1, "c"), (0, "d"), (1, "e")]
    ]
    ends = [chunk({}, "stop", index=0), chunk({}, "stop", index=1), usage_chunk()]
    stream(cache, missed(cache, chat(n=2, stream=True)), streamed(*pieces, *ends))
    choices = hit(cache, chat(n=2)).record["choices"]
    assert [choice["message"]["content"] for choice in choices] == ["abd", "ce"]


def test_a_template_is_of_the_text_of_a_choice() -> None:
    def piece(beside: str, text: str, finish: str | None = None) -> dict[str, Any]:
        return {"text": beside, "choices": [{"index": 0, "text": text, "finish_reason": finish}]}

    cache = Cache(table())
    fields = {"model": "m", "prompt": "say", "temperature": 0, "stream": True}
    changing = streamed(piece("x", "a"), piece("y", "a"), piece("x", "", "stop"))
    stream(cache, missed(cache, fields, endpoint=COMPLETION), changing)
    assert isinstance(look(cache, fields, endpoint=COMPLETION), Key)
    stream(cache, missed(cache, fields, endpoint=COMPLETION), streamed(piece("x", "a"), piece("x", "a", "stop")))
    assert hit(cache, fields, endpoint=COMPLETION).events[0]["choices"][0]["text"] == "aa"


def test_long_streams() -> None:
    words = [f" word{number}" for number in range(3_000)]
    data = streamed(*(chunk({"content": word}) for word in words), chunk({}, "stop"), usage_chunk())
    assert len(data) < 1 << 20
    cache = Cache(table())
    stream(cache, missed(cache, chat(stream=True)), data, size=4_096)
    assert hit(cache, chat()).record["choices"][0]["message"]["content"] == "".join(words)


def test_what_is_beside_the_choices_is_kept_if_it_does_not_change() -> None:
    cache = Cache(table())
    same = {"system_fingerprint": "b1", "provider": "x"}
    stream(
        cache,
        missed(cache, chat(stream=True)),
        streamed(
            chunk({"content": "a"}, **same, obfuscation="1"), chunk({}, "stop", **same, obfuscation="2"), usage_chunk()
        ),
    )
    record = hit(cache, chat()).record
    assert record["provider"] == "x" and record["system_fingerprint"] == "b1" and "obfuscation" not in record


def test_what_a_message_has_besides_is_in_the_first_piece() -> None:
    cache = Cache(table())
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "stop_reason": 2,
        "message": {
            "role": "assistant",
            "content": "a",
            "annotations": [{"type": "u"}],
            "audio": None,
            "refusal": None,
        },
    }
    keep(cache, chat(), answer(choices=[choice]))
    choices = [c for event in hit(cache, chat(stream=True)).events for c in event["choices"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "annotations": [{"type": "u"}]}
    assert choices[-1]["stop_reason"] == 2
