"""What passes through to a vendor that speaks OpenAI's API, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from .vendor_servers import Answer, ScriptedVendor, ask, events, get, served, stream

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "mine", "messages": [{"role": "user", "content": "hi"}], **more}


def whole(text: str = "hello", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    base = {"id": "x", "object": "chat.completion", "created": 1, "model": "upstream-model-0613"}
    return {**base, "choices": [choice], "usage": USAGE, **more}


def piece(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    base = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "upstream-model-0613"}
    return {**base, "choices": [choice], "usage": None, **more}


def streamed(*pieces: Any, usage: bool = True) -> Answer:
    last = [{**piece({}), "choices": [], "usage": USAGE}] if usage else []
    return Answer(stream=True, pieces=events(*pieces, *last, b"[DONE]"))


USUAL = (
    piece({"role": "assistant", "content": ""}),
    piece({"content": "hel"}),
    piece({"content": "lo"}),
    piece({}, "stop"),
)


def test_fields_pass_and_the_model_is_called_by_each_as_it_knows_it() -> None:
    sent = chat(
        temperature=0.5, seed=7, stop=["x"], max_tokens=9, logprobs=True, top_logprobs=2, n=2, tools=[], user="u",
        response_format={"type": "json_object"}, reasoning_effort="low", logit_bias={"1": 1}, top_p=None,
    )  # fmt: skip
    with ScriptedVendor(Answer(body=whole())) as vendor, served(vendor.url) as url:
        status, answer, _ = ask(url, CHAT, sent)
    assert status == 200 and answer["model"] == "mine"
    assert answer["choices"][0]["message"]["content"] == "hello"
    assert answer["usage"] == {**USAGE, "prompt_tokens_details": {"cached_tokens": 0}}
    (asked,) = vendor.asked
    del sent["top_p"]
    assert asked.path == "/v1/chat/completions" and asked.body == {**sent, "model": "upstream-model"}
    assert asked.headers["authorization"] == "Bearer the-key-of-the-tests"


def test_the_clients_own_headers_do_not_travel() -> None:
    with ScriptedVendor(Answer(body=whole())) as vendor, served(vendor.url) as url:
        ask(url, CHAT, chat(), {"Authorization": "Bearer of-the-client", "Cookie": "c=1", "X-Forwarded-For": "1.2.3.4"})
    assert vendor.asked[0].headers["authorization"] == "Bearer the-key-of-the-tests"
    assert not {"cookie", "x-forwarded-for"} & vendor.asked[0].headers.keys()


@pytest.mark.parametrize("field", ["top_k", "min_p", "grammar", "ignore_eos", "cache_prompt", "anything"])
def test_what_only_local_engines_know_is_refused_by_name(field: str) -> None:
    with ScriptedVendor(Answer(body=whole())) as vendor, served(vendor.url) as url:
        status, answer, _ = ask(url, CHAT, chat(**{field: 1}))
        assert ask(url, CHAT, chat(**{field: None}))[0] == 200
    assert status == 400 and answer["error"]["param"] == field
    assert answer["error"]["code"] == "unsupported_parameter" and answer["error"]["type"] == "invalid_request_error"
    assert len(vendor.asked) == 1


def test_fields_that_a_vendor_takes_besides_can_be_named() -> None:
    with ScriptedVendor(Answer(body=whole())) as vendor, served(vendor.url, fields="top_k, min_p") as url:
        assert ask(url, CHAT, chat(top_k=4))[0] == 200
    assert vendor.asked[0].body["top_k"] == 4


@pytest.mark.parametrize("wanted", [True, False])
def test_the_figures_of_a_stream_are_always_asked_for_and_given_to_who_wants_them(wanted: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if wanted else {}
    with ScriptedVendor(streamed(*USUAL)) as vendor, served(vendor.url) as url:
        *chunks, done = stream(url, CHAT, chat(**options))
    assert vendor.asked[0].body["stream_options"] == {"include_usage": True}
    assert done == "[DONE]" and {chunk["model"] for chunk in chunks} == {"mine"}
    if wanted:
        last = chunks.pop()
        assert last["choices"] == [] and last["usage"] == {**USAGE, "prompt_tokens_details": {"cached_tokens": 0}}
    assert not any("usage" in chunk for chunk in chunks)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "hello"


def test_figures_that_come_with_the_last_piece_are_found_too() -> None:
    pieces = (*USUAL[:-1], piece({}, "stop", usage=USAGE))
    with ScriptedVendor(streamed(*pieces, usage=False)) as vendor, served(vendor.url) as url:
        chunks = stream(url, CHAT, chat(stream_options={"include_usage": True}))
    assert chunks[-2]["usage"]["total_tokens"] == 5 and chunks[-3]["choices"][0]["finish_reason"] == "stop"


def test_a_stream_without_its_last_word_is_complete_where_every_choice_ended() -> None:
    with ScriptedVendor(Answer(stream=True, pieces=events(*USUAL))) as vendor, served(vendor.url) as url:
        chunks = stream(url, CHAT, chat())
    assert chunks[-1] == "[DONE]" and chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_events_may_be_cut_anywhere_and_carry_comments() -> None:
    raw = b": waiting\r\n\r\n" + b"".join(events(*USUAL)).replace(b"\n", b"\r\n") + b"event: x\r\ndata: [DONE]\r\n\r\n"
    pieces = [raw[at : at + 3] for at in range(0, len(raw), 3)]
    with ScriptedVendor(Answer(stream=True, pieces=pieces)) as vendor, served(vendor.url) as url:
        chunks = stream(url, CHAT, chat())
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == "hello"


def test_connections_are_used_again_also_after_a_stream() -> None:
    with ScriptedVendor(streamed(*USUAL)) as vendor, served(vendor.url) as url:
        for _ in range(5):
            assert stream(url, CHAT, chat())[-1] == "[DONE]"
    assert vendor.connections == 1


def test_a_completion_is_a_chat_of_one_message() -> None:
    with ScriptedVendor(Answer(body=whole()), streamed(*USUAL)) as vendor, served(vendor.url) as url:
        answer = ask(url, "/v1/completions", {"prompt": "say", "max_tokens": 4, "best_of": 1})[1]
        body = {"prompt": ["say"], "max_tokens": 4, "stream_options": {"include_usage": True}}
        *chunks, usage, done = stream(url, "/v1/completions", body)
    assert answer["object"] == "text_completion" and answer["model"] == "mine"
    assert answer["choices"] == [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["total_tokens"] == 5
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["hel", "lo", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and {chunk["object"] for chunk in chunks} == {
        "text_completion"
    }
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 5 and done == "[DONE]"
    assert [asked.body["messages"] for asked in vendor.asked] == [[{"role": "user", "content": "say"}]] * 2


@pytest.mark.parametrize(
    "more", [{"echo": True}, {"suffix": "x"}, {"logprobs": 2}, {"prompt": [1, 2]}, {"prompt": ["a", "b"]}]
)
def test_what_a_chat_cannot_do_for_a_completion_is_refused(more: dict[str, Any]) -> None:
    with ScriptedVendor(Answer(body=whole())) as vendor, served(vendor.url) as url:
        status, answer, _ = ask(url, "/v1/completions", {"prompt": "a", **more})
    assert status == 400 and answer["error"]["code"] == "unsupported_parameter" and not vendor.asked
    assert answer["error"]["param"] == next(iter(more))


def test_completions_may_be_the_vendors_own_or_none() -> None:
    answer = {"id": "x", "object": "text_completion", "choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]}
    with ScriptedVendor(Answer(body=answer)) as vendor, served(vendor.url, completions="native") as url:
        assert ask(url, "/v1/completions", {"prompt": ["a", "b"], "logprobs": 1})[1]["choices"][0]["text"] == "b"
    assert vendor.asked[0].path == "/v1/completions" and vendor.asked[0].body["prompt"] == ["a", "b"]
    with ScriptedVendor(Answer(body=answer)) as vendor, served(vendor.url, completions="off") as url:
        assert ask(url, "/v1/completions", {"prompt": "a"})[0] == 400


def test_embeddings_pass() -> None:
    data = [{"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}]
    body = {"object": "list", "data": data, "model": "upstream-model", "usage": {"prompt_tokens": 2, "total_tokens": 2}}
    with ScriptedVendor(Answer(body=body)) as vendor, served(vendor.url) as url:
        status, answer, _ = ask(url, "/v1/embeddings", {"input": ["a"], "encoding_format": "float"})
    assert status == 200 and answer == {**body, "model": "mine"}
    assert vendor.asked[0].path == "/v1/embeddings" and vendor.asked[0].body["model"] == "upstream-model"
    with served("http://127.0.0.1:1/v1", **{"capabilities.embeddings": False}) as url:
        assert ask(url, "/v1/embeddings", {"input": ["a"]})[1]["error"]["code"] == "unsupported_parameter"


def test_a_server_that_does_not_stream_what_it_was_asked_to_is_streamed() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    with ScriptedVendor(Answer(body=whole(choices=[choice]))) as vendor, served(vendor.url) as url:
        first, end, usage, done = stream(url, CHAT, chat(stream_options={"include_usage": True}))
    assert first["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **call}] and done == "[DONE]"
    assert end["choices"][0]["finish_reason"] == "tool_calls" and usage["usage"]["total_tokens"] == 5


def test_only_the_gateway_is_answered() -> None:
    with ScriptedVendor(Answer(body=whole())) as vendor, served(vendor.url) as url:
        assert ask(url, CHAT, chat(), {"Origin": "https://example.org"})[0] == 403
        assert ask(url, CHAT, chat(), {"Host": "rebound.example"})[0] == 403
        assert ask(url, CHAT, chat(), {"Content-Type": "text/plain"})[0] == 415
        assert get(url, "/nothing")[0] == 404
        assert get(url, "/v1/models")[1]["data"][0]["id"] == "mine"
    assert not vendor.asked


def test_malformed_bodies_are_refused_here() -> None:
    bodies = [b"", b"{", b"[]", b"\xff", b"1" * 100_000, b"[" * 100_000, b'{"messages": []}', b'{"messages": 7}']
    bodies += [b'{"messages": [7]}', b'{"messages": [{"role": 1}]}', b'{"prompt": null}']
    with ScriptedVendor(Answer(body=whole())) as vendor, served(vendor.url) as url:
        for body in bodies:
            for path in (CHAT, "/v1/completions", "/v1/embeddings"):
                status, answer, _ = ask(url, path, body)
                assert status == 400 and answer["error"]["message"], (path, body[:20])
    assert not vendor.asked
