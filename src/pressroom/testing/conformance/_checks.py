"""The checks, each a function that asks through a Door and raises Failed or Refused."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pressroom.testing.conformance._asking import Door, Failed, Refused, Said

_TEXT = "Write one short sentence about a printer who sets type by hand."
_GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
_TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": _CITY}}
]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the matrix. `needs` is the capability without which there is nothing to check: "chat" (which all
    text models are asked through), "completions", "embeddings"."""

    name: str
    title: str
    needs: str
    run: Callable[[Door], None]


CHECKS: list[Check] = []


def _check(name: str, title: str, needs: str = "chat") -> Callable[[Callable[[Door], None]], Callable[[Door], None]]:
    def add(run: Callable[[Door], None]) -> Callable[[Door], None]:
        CHECKS.append(Check(name, title, needs, run))
        return run

    return add


def must(holds: object, message: str) -> None:
    """Raise Failed with the message unless it holds."""
    if not holds:
        raise Failed(message)


def _whole(usage: dict[str, Any]) -> None:
    prompt, said = usage.get("prompt_tokens"), usage.get("completion_tokens")
    must(type(prompt) is int and prompt > 0 and type(said) is int and said > 0, f"usage is {usage}")
    must(usage.get("total_tokens") == prompt + said, f"total_tokens is not the sum: {usage}")  # type: ignore[operator]


@_check("chat", "Chat")
def _chat(door: Door) -> None:
    found = door.ask("/v1/chat/completions", messages=[{"role": "user", "content": _TEXT}], **_GREEDY)
    must(found["object"] == "chat.completion" and found["model"] == door.model, "object or model is wrong")
    message = found["choices"][0]["message"]
    must(message["role"] == "assistant" and message["content"], f"the message is {message}")


@_check("completions", "Text completion", "completions")
def _completion(door: Door) -> None:
    found = door.ask("/v1/completions", prompt=_TEXT, **_GREEDY)
    must(found["object"] == "text_completion" and found["model"] == door.model, "object or model is wrong")
    must(isinstance(found["choices"][0]["text"], str), "there is no text")


@_check("stream", "Streamed as not streamed")
def _stream(door: Door) -> None:
    whole, streamed = door.chat(_TEXT, **_GREEDY), door.chat(_TEXT, stream=True, **_GREEDY)
    must(whole.text == streamed.text, f"{whole.text!r} is not {streamed.text!r}")
    must(whole.finish == streamed.finish, f"{whole.finish} is not {streamed.finish}")
    first = streamed.events[0]["choices"][0]["delta"]
    must(first.get("role") == "assistant", f"the first delta has no role: {first}")
    must(len({event["id"] for event in streamed.events}) == 1, "the events have several ids")


@_check("usage", "Usage, whole and streamed")
def _usage(door: Door) -> None:
    whole, streamed = door.chat(_TEXT, **_GREEDY), door.chat(_TEXT, stream=True, **_GREEDY)
    _whole(whole.usage)
    must(whole.tokens == streamed.tokens, f"{whole.usage} is not {streamed.usage}")


@_check("stream_options", "Stream options")
def _stream_options(door: Door) -> None:
    asked = {"messages": [{"role": "user", "content": _TEXT}], **_GREEDY}
    with_usage = door.stream("/v1/chat/completions", **asked, stream_options={"include_usage": True})
    must(with_usage[-1]["choices"] == [] and with_usage[-1].get("usage"), "the last event is not the usage alone")
    without = door.stream("/v1/chat/completions", **asked)
    must(all(event.get("choices") for event in without), "an event without choices that nobody asked for")


@_check("max_tokens", "max_tokens ends with `length`")
def _max_tokens(door: Door) -> None:
    said = door.chat(_TEXT, temperature=0, max_tokens=3)
    must(said.finish == "length" and said.tokens[1] == 3, f"{said.finish} after {said.tokens[1]} tokens")


@_check("stop", "stop, whole and streamed")
def _stop(door: Door) -> None:
    free = door.chat(_TEXT, temperature=0, max_tokens=24)
    words = free.text.split(" ")
    must(len(words) > 2 and words[2], f"too little to stop in: {free.text!r}")
    stop = f" {words[2]}"
    expected = free.text[: free.text.index(stop)]
    for stream in (False, True):
        for given in (stop, ["no such text", stop]):
            said = door.chat(_TEXT, stream=stream, temperature=0, max_tokens=24, stop=given)
            must(said.text == expected, f"{said.text!r} is not {expected!r} (stop {given!r}, streamed: {stream})")
            must(said.finish == "stop", f"it ended with {said.finish}")


@_check("seed", "seed: the same answer again")
def _seed(door: Door) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "max_tokens": 12, "seed": 7}
    first, second = door.chat(_TEXT, **options), door.chat(_TEXT, **options)
    must(first.text == second.text, f"{first.text!r} is not {second.text!r}")


@_check("n", "n: several answers")
def _n(door: Door) -> None:
    one = door.chat(_TEXT, **_GREEDY)
    found = door.ask("/v1/chat/completions", messages=[{"role": "user", "content": _TEXT}], n=2, **_GREEDY)
    must([choice["index"] for choice in found["choices"]] == [0, 1], "the choices are not numbered")
    usage = found["usage"]
    must(usage["prompt_tokens"] == one.tokens[0], "the prompt is not counted once")
    must(usage["completion_tokens"] == 2 * one.tokens[1], f"the answers are not both counted: {usage}")


@_check("prompts", "Several prompts, and prompts as tokens", "completions")
def _prompts(door: Door) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 4}
    apart = [door.complete(text, **options) for text in ("One two three", "A printer is")]
    found = door.ask("/v1/completions", prompt=["One two three", "A printer is"], **options)
    must([c["text"] for c in found["choices"]] == [said.text for said in apart], "not the answers that each gets alone")
    must(found["usage"]["prompt_tokens"] == sum(said.tokens[0] for said in apart), "the prompts are not all counted")


@_check("logprobs", "logprobs of a chat")
def _logprobs(door: Door) -> None:
    asked = {"messages": [{"role": "user", "content": _TEXT}], **_GREEDY}
    found = door.ask("/v1/chat/completions", **asked, logprobs=True, top_logprobs=3)
    content = found["choices"][0]["logprobs"]["content"]
    must(len(content) > 0, "there are none")
    for token in content:
        must(token["logprob"] <= 1e-6 and len(token["top_logprobs"]) == 3, f"{token}")
        best = max(top["logprob"] for top in token["top_logprobs"])
        must(token["logprob"] >= best - 1e-4, "the greedy token is not the likeliest")


@_check("completion_logprobs", "logprobs of a completion", "completions")
def _completion_logprobs(door: Door) -> None:
    found = door.ask("/v1/completions", prompt=_TEXT, **_GREEDY, logprobs=2)
    logprobs = found["choices"][0]["logprobs"]
    must({"tokens", "token_logprobs", "top_logprobs", "text_offset"} <= set(logprobs), f"the keys are {list(logprobs)}")
    must(
        "".join(logprobs["tokens"]).startswith(found["choices"][0]["text"][:4]), "the tokens are not those of the text"
    )
    must(len(logprobs["tokens"]) == len(logprobs["token_logprobs"]), "not one figure a token")


@_check("json_object", "response_format json_object")
def _json_object(door: Door) -> None:
    said = door.chat("Give a person as JSON.", temperature=0, max_tokens=200, response_format={"type": "json_object"})
    must(said.finish != "stop" or isinstance(json.loads(said.text), dict), f"not an object: {said.text!r}")


@_check("json_schema", "response_format json_schema")
def _json_schema(door: Door) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": _CITY, "strict": True}}
    for stream in (False, True):
        said = door.chat("Name a city.", stream=stream, temperature=0, max_tokens=60, response_format=wanted)
        found = json.loads(said.text)
        must(list(found) == ["city"] and found["city"] in ("Paris", "Rome"), f"{found}")


@_check("tools_required", "A tool that must be called")
def _tools_required(door: Door) -> None:
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
        "tools": _TOOLS,
        "temperature": 0,
        "max_tokens": 100,
    }
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        found = door.ask("/v1/chat/completions", **asked, tool_choice=choice)["choices"][0]
        (call, *_) = found["message"].get("tool_calls") or [None]
        must(call is not None, f"no call: {found}")
        _called(call["function"])
    name, arguments = "", ""
    for event in door.stream("/v1/chat/completions", **asked, tool_choice="required"):
        for part in event["choices"]:
            for call in part["delta"].get("tool_calls") or ():
                must(call["index"] == 0 or "index" in call, "a call without an index")
                name += call["function"].get("name") or ""
                arguments += call["function"].get("arguments") or ""
    _called({"name": name, "arguments": arguments})


def _called(function: dict[str, Any]) -> None:
    must(function["name"] == "weather", f"{function}")
    must(json.loads(function["arguments"]).get("city") in ("Paris", "Rome"), f"{function}")


@_check("tools_auto", "Tools that may be called, and their results")
def _tools_auto(door: Door) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    history = [
        {"role": "user", "content": "How is the weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 21 degrees"},
    ]
    for messages in (history[:1], history):
        found = door.ask("/v1/chat/completions", messages=messages, tools=_TOOLS, temperature=0, max_tokens=40)
        message = found["choices"][0]["message"]
        must(message.get("content") or message.get("tool_calls"), f"neither text nor call: {message}")


@_check("truncation", "A prompt over the context is refused, never cut")
def _truncation(door: Door) -> None:
    status, found = door.post(
        "/v1/chat/completions",
        {"model": door.model, "messages": [{"role": "user", "content": "word " * 40_000}], "max_tokens": 4},
    )
    must(status != 200, "it was answered")
    if status == 400 and found["error"]["code"] == "unsupported_parameter":
        raise Refused(found["error"]["message"])
    must(status == 400 and found["error"]["code"] == "context_length_exceeded", f"{status}: {found}")


@_check("cached_tokens", "Tokens found in the prefix cache are said")
def _cached_tokens(door: Door) -> None:
    text = "Count the letters of this line. " * 8
    for _ in range(2):
        said = door.chat(text, temperature=0, max_tokens=2)
    details = said.usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    if type(cached) is not int:
        raise Failed(f"usage does not say: {said.usage}")
    must(0 <= cached <= said.tokens[0], f"{said.usage}")


@_check("unicode", "Characters of several bytes arrive whole")
def _unicode(door: Door) -> None:
    text = "Repeat after me: 印刷 🖨️ café"
    whole, streamed = door.chat(text, **_GREEDY), door.chat(text, stream=True, **_GREEDY)
    must(whole.text == streamed.text, f"{whole.text!r} is not {streamed.text!r}")


@_check("unknown_field", "An unknown field is refused")
def _unknown_field(door: Door) -> None:
    status, found = door.post(
        "/v1/chat/completions",
        {"model": door.model, "messages": [{"role": "user", "content": "x"}], "no_such_field": 1},
    )
    must(status == 400 and "no_such_field" in found["error"]["message"], f"{status}: {found}")


def _same(name: str, one: Said, other: Said) -> None:
    must(one.text == other.text, f"{name}: {other.text!r} is not {one.text!r}")
    must(one.tokens == other.tokens, f"{name}: usage {other.tokens} is not {one.tokens}")


@_check("doors", "The same answer and usage through every door", "completions")
def _doors(door: Door) -> None:
    asked = door.complete(_TEXT, **_GREEDY)
    _same("completions streamed", asked, door.complete(_TEXT, stream=True, **_GREEDY))
    _same("V2 generate", asked, door.generate(_TEXT, **_GREEDY, chat=False))
    _same("V2 generate_stream", asked, door.generate(_TEXT, stream=True, **_GREEDY, chat=False))
    if door.grpc:
        _same("gRPC ModelInfer", asked, door.infer(_TEXT, **_GREEDY, chat=False))
        _same("gRPC ModelStreamInfer", asked, door.infer(_TEXT, stream=True, **_GREEDY, chat=False))


@_check("chat_doors", "The same for a chat")
def _chat_doors(door: Door) -> None:
    asked = door.chat(_TEXT, **_GREEDY)
    _same("V2 generate", asked, door.generate(_TEXT, **_GREEDY, chat=True))
    _same("V2 generate_stream", asked, door.generate(_TEXT, stream=True, **_GREEDY, chat=True))
    if door.grpc:
        _same("gRPC ModelInfer", asked, door.infer(_TEXT, **_GREEDY, chat=True))
        _same("gRPC ModelStreamInfer", asked, door.infer(_TEXT, stream=True, **_GREEDY, chat=True))


@_check("embeddings", "Embeddings, float and base64", "embeddings")
def _embeddings(door: Door) -> None:
    texts = ["a printing press", "a press for printing", "the price of fish"]
    plain = door.ask("/v1/embeddings", input=texts, encoding_format="float")
    packed = door.ask("/v1/embeddings", input=texts, encoding_format="base64")
    must([entry["index"] for entry in plain["data"]] == [0, 1, 2], "the entries are not numbered")
    for one, other in zip(plain["data"], packed["data"], strict=True):
        raw = base64.b64decode(other["embedding"])
        values = struct.unpack(f"<{len(raw) // 4}f", raw)
        must(len(values) == len(one["embedding"]), "base64 and float differ in length")
        must(all(abs(a - b) < 1e-5 for a, b in zip(values, one["embedding"], strict=True)), "base64 is not float")
    first, second, third = (entry["embedding"] for entry in plain["data"])
    must(_dot(first, second) > _dot(first, third), "what is alike is not nearer than what is not")
    must(plain["usage"]["prompt_tokens"] > 0, f"usage is {plain['usage']}")
    one = door.ask("/v1/embeddings", input=texts[0])
    must(len(one["data"]) == 1, "one text gives more than one vector")


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
