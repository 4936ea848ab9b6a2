"""Tool calls from engines whose template knows none: what they are told, and what becomes of what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from pressroom.engines.base import Capabilities
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import STREAM, Client, Script, chat, chunk, post, route_to

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}},
    {"type": "function", "function": {"name": "time"}},
]
CALL = '{"name": "weather", "arguments": {"city": "Zürich"}}'
MESSAGES: Any = [{"role": "user", "content": "What is the weather?"}]


class House:
    """A gateway in front of an engine that says `text` to everything."""

    def __init__(self, script: Callable[..., Script]) -> None:
        self.text = ""
        self.finish = "stop"
        self._engine = script(self._say)

    def start(self) -> GatewayThread:
        return GatewayThread(route_to(self._engine.port, capabilities=Capabilities(json_schema=True)))

    @property
    def asked(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._engine.requests[-1].partition(b"\r\n\r\n")[2])
        return found

    def _say(self, connected: Any) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        if not self.asked.get("stream"):
            message = {"role": "assistant", "content": self.text}
            choice = {"index": 0, "message": message, "finish_reason": self.finish}
            body = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
            connected.sendall(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            return
        frames = b""
        for delta, finish in self._deltas():
            choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
            frames += chunk(b"data: " + json.dumps({"id": "x", "choices": choices}).encode() + b"\n\n")
        connected.sendall(STREAM + frames + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _deltas(self) -> Iterator[tuple[dict[str, Any], str | None]]:
        yield {"role": "assistant", "content": None}, None
        for at in range(0, len(self.text), 3):
            yield {"content": self.text[at : at + 3]}, None
        yield {}, self.finish


@pytest.fixture
def house(script: Callable[..., Script]) -> House:
    return House(script)


def ask(gateway: GatewayThread, *, stream: bool, **more: Any) -> tuple[str, list[Any], str | None]:
    """The text, the calls and the finish reason, streamed or not."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        given: Any = {"model": "m", "messages": MESSAGES, "tools": TOOLS, **more}
        if not stream:
            (choice,) = client.chat.completions.create(**given).choices
            return choice.message.content or "", choice.message.tool_calls or [], choice.finish_reason
        text, calls, finish = "", [], None
        for event in client.chat.completions.create(**given, stream=True):
            for choice in event.choices:
                text += choice.delta.content or ""
                calls += choice.delta.tool_calls or []
                finish = choice.finish_reason or finish
        return text, calls, finish


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wrap", ["{}", "<tool_call>{}</tool_call>", "\n <tool_call>\n{}\n</tool_call>"])
def test_a_call_becomes_one(house: House, wrap: str, stream: bool) -> None:
    house.text = wrap.replace("{}", CALL)
    with house.start() as gateway:
        text, calls, finish = ask(gateway, stream=stream)
    assert (text, finish) == ("", "tool_calls")
    (call,) = calls
    assert call.function.name == "weather" and json.loads(call.function.arguments) == {"city": "Zürich"}
    assert call.id.startswith("call_") and call.type == "function"
    assert "tools" not in house.asked
    assert "weather" in house.asked["messages"][0]["content"] and house.asked["messages"][0]["role"] == "system"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "It is sunny.",
        "{ not a call",
        '{"name": "no_such_tool", "arguments": {}}',
        '{"name": "weather", "arguments": "all of them"}',
        "<tool_call>weather</tool_call>",
        "<tool_cal",
        "I would call <tool_call>",
        "",
    ],
)
def test_what_is_not_a_call_stays_text(house: House, text: str, stream: bool) -> None:
    house.text = text
    with house.start() as gateway:
        assert ask(gateway, stream=stream) == (text, [], "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_several_calls(house: House, stream: bool) -> None:
    house.text = f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "time", "arguments": {{}}}}</tool_call>'
    with house.start() as gateway:
        _, calls, _ = ask(gateway, stream=stream)
    assert [call.function.name for call in calls] == ["weather", "time"]
    if stream:
        assert [call.index for call in calls] == [0, 1]


def test_a_call_that_must_come_is_held_to_a_schema(house: House) -> None:
    house.text = CALL
    with house.start() as gateway:
        assert ask(gateway, stream=True, tool_choice="required")[2] == "tool_calls"
        schema = house.asked["response_format"]["json_schema"]["schema"]
        assert [form["properties"]["name"] for form in schema["anyOf"]] == [{"const": "weather"}, {"const": "time"}]
        one: Any = {"type": "function", "function": {"name": "weather"}}
        assert ask(gateway, stream=False, tool_choice=one)[2] == "tool_calls"
        schema = house.asked["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["name"] == {"const": "weather"} and schema["properties"]["arguments"] == CITY


def test_a_call_that_was_cut_is_not_one(house: House) -> None:
    house.text, house.finish = CALL[:20], "length"
    with house.start() as gateway:
        assert ask(gateway, stream=False, tool_choice="required") == (CALL[:20], [], "length")
        assert ask(gateway, stream=True, tool_choice="required") == (CALL[:20], [], "length")


def test_no_tool_may_be_called(house: House) -> None:
    house.text = CALL
    with house.start() as gateway:
        assert ask(gateway, stream=True, tool_choice="none") == (CALL, [], "stop")
        assert house.asked["messages"] == MESSAGES


def test_earlier_calls_and_their_results_are_told(house: House) -> None:
    history: Any = [
        {"role": "system", "content": "Be brief."},
        *MESSAGES,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    house.text = "Rain."
    with house.start() as gateway:
        assert ask(gateway, stream=False, messages=history)[0] == "Rain."
    system, _, call, result = house.asked["messages"]
    assert system["content"].startswith("Be brief.\n\n") and "weather" in system["content"]
    assert json.loads(call["content"].removeprefix("<tool_call>").removesuffix("</tool_call>"))["name"] == "weather"
    assert result == {"role": "user", "content": "<tool_response>rain</tool_response>"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"function": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
    ],
)
def test_what_is_refused(house: House, fields: dict[str, Any], param: str) -> None:
    with house.start() as gateway, Client(gateway.port) as client:
        status, _, body = client.ask(post(chat(**fields)))
        assert status == 400 and body["error"]["param"] == param


def test_an_engine_that_cannot_be_held_to_a_schema_is_not_asked(script: Callable[..., Script]) -> None:
    engine = script(lambda connected: None)
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        status, _, body = client.ask(post(chat(tools=TOOLS)))
        assert status == 400 and body["error"]["param"] == "tools"
    assert not engine.requests
