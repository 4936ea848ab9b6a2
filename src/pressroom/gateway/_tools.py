"""Tool calls from engines whose chat template knows no tools: told in words, and held to a schema.

Where a tool must be called (`tool_choice` "required", or one by name) the answer is held to a JSON schema that only
such a call fits. Where the model may choose ("auto") it is told how a call looks, and what it writes is a call if it
has that form, names a tool that was given, and its arguments are an object; else it is text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway import _sse
from pressroom.gateway.asking import Receiver

if TYPE_CHECKING:
    from pressroom.gateway.problems import Problem
    from pressroom.gateway.routes import Route, Served

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(rf"{_OPEN}\s*(.*?)\s*(?:{_CLOSE}|\Z)", re.DOTALL)
_MAY = (
    "You may call functions to answer. Their names, descriptions and parameters (JSON schemas):\n{tools}\n"
    f'To call one, answer with nothing but {_OPEN}{{{{"name": …, "arguments": {{{{…}}}}}}}}{_CLOSE}. '
    "Where none of them helps, answer in plain words."
)
_MUST = (
    "Answer by calling a function. Their names, descriptions and parameters (JSON schemas):\n{tools}\n"
    'Write the call as {{"name": …, "arguments": {{…}}}}.'
)


def wants_tools(fields: dict[str, Any], served: Served) -> bool:
    """Whether tools are asked for that an engine of this model can only call in this way."""
    if not fields.get("tools"):
        for message in fields.get("messages") or ():
            if _about_tools(message):
                break
        else:
            return False
    # Of an engine that sleeps or starts it is known already what it can do.
    capabilities = [lane.route.capabilities for lane in served.lanes if lane.route.capabilities.chat]
    return (
        bool(capabilities)
        and not all(can.tools for can in capabilities)
        and all(can.tools or can.json_schema for can in capabilities)
    )


def told_in_words(fields: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The request without `tools`, told to the model in words; and whether a call must come."""
    kept = {k: v for k, v in fields.items() if k not in ("tools", "tool_choice", "parallel_tool_calls")}
    messages = [_plain(message) for message in fields["messages"]]
    choice = fields.get("tool_choice") or "auto"
    functions = [tool["function"] for tool in fields.get("tools") or ()]
    must = choice != "auto" and choice != "none"
    if isinstance(choice, dict):
        wanted = (choice.get("function") or {}).get("name")
        functions = [function for function in functions if function["name"] == wanted]
    if functions and choice != "none":
        described = "\n".join(json.dumps(_described(function), ensure_ascii=False) for function in functions)
        text = (_MUST if must else _MAY).format(tools=described)
        if messages and messages[0].get("role") in ("system", "developer") and isinstance(messages[0]["content"], str):
            messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        else:
            messages.insert(0, {"role": "system", "content": text})
    if must:
        forms = [_form(function) for function in functions]
        schema = forms[0] if len(forms) == 1 else {"anyOf": forms}
        kept["response_format"] = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}}
    return {**kept, "messages": messages}, must


class ToolCalls:
    """Passes an answer on with its calls as `tool_calls`. Text of a stream is held back while it may still become a
    call."""

    __slots__ = ("_allowed", "_events", "_frame", "_must", "_passing", "_receiver", "_said")

    def __init__(self, receiver: Receiver, fields: dict[str, Any], *, must: bool) -> None:
        self._receiver = receiver
        self._allowed = {tool["function"]["name"] for tool in fields.get("tools") or ()}
        if fields.get("tool_choice") == "none":
            self._allowed = set()
        self._must = must
        self._events = _sse.Events()
        self._frame: dict[str, Any] = {}
        self._said = ""
        self._passing = not self._allowed

    def whole(self, body: bytes, route: Route) -> None:
        record = orjson.loads(body)
        for choice in record.get("choices") or ():
            message = choice["message"]
            calls = self._calls(message.get("content") or "")
            if calls:
                message["content"], message["tool_calls"] = None, calls
                choice["finish_reason"] = "tool_calls"
        self._receiver.whole(orjson.dumps(record), route)

    def begin(self, route: Route) -> None:
        self._receiver.begin(route)

    def data(self, data: bytes) -> None:
        out = b"".join(piece for found in self._events.feed(data) for piece in self._pieces(found))
        if out:
            self._receiver.data(out)

    def end(self) -> None:
        self._receiver.end()

    def failed(self, problem: Problem) -> None:
        self._receiver.failed(problem)

    def _pieces(self, found: bytes) -> Iterator[bytes]:
        if found == _sse.DONE:
            yield _sse.LAST
            return
        record = orjson.loads(found)
        if self._passing or not record.get("choices"):
            yield _sse.event(record)
            return
        choice = record["choices"][0]
        delta = choice.get("delta") or {}
        if not self._frame:
            self._frame = {key: record[key] for key in ("id", "object", "created", "model") if key in record}
        content = delta.get("content")
        if delta.get("role"):
            yield self._event({"role": delta["role"], "content": None if self._must else ""})
        if content:
            self._said += content
            if not self._must and not _may_be_call(self._said):
                self._passing = True
                yield self._event({"content": self._said})
        if choice.get("finish_reason"):
            yield from self._finish(record, choice)

    def _finish(self, record: dict[str, Any], choice: dict[str, Any]) -> Iterator[bytes]:
        if not self._passing:
            calls = self._calls(self._said)
            if calls:
                yield self._event({"tool_calls": [{"index": index, **call} for index, call in enumerate(calls)]})
                choice = {**choice, "finish_reason": "tool_calls"}
            elif self._said:
                yield self._event({"content": self._said})
        yield _sse.event({**record, "choices": [{**choice, "delta": {}}]})

    def _event(self, delta: dict[str, Any]) -> bytes:
        return _sse.event({**self._frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def _calls(self, text: str) -> list[dict[str, Any]]:
        """The calls that a text is; none where it is not one."""
        if not self._allowed:
            return []
        stripped = text.strip()
        written = [stripped] if self._must or stripped.startswith("{") else _CALL.findall(stripped)
        calls = []
        for each in written:
            try:
                call = json.loads(each)
            except ValueError:
                return []
            if not isinstance(call, dict) or call.get("name") not in self._allowed:
                return []
            arguments = call.get("arguments", call.get("parameters", {}))
            if not isinstance(arguments, dict):
                return []
            calls.append(
                {
                    "id": f"call_{secrets.token_hex(12)}",
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(arguments, ensure_ascii=False)},
                }
            )
        return calls


def _may_be_call(said: str) -> bool:
    begun = said.lstrip()
    return begun.startswith("{") or begun.startswith(_OPEN) or _OPEN.startswith(begun)


def _about_tools(message: dict[str, Any]) -> bool:
    if len(message) > 2 and (message.get("tool_calls") or message.get("tool_call_id")):
        return True
    return bool(message.get("role") == "tool")


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message about tools as text that any template takes."""
    if message.get("tool_calls"):
        calls = []
        for call in message["tool_calls"]:
            function = call.get("function") or {}
            calls.append(
                f'{_OPEN}{{"name": {json.dumps(function.get("name"))}, "arguments": '
                f"{function.get('arguments') or '{}'}}}{_CLOSE}"
            )
        return {"role": "assistant", "content": "\n".join([*filter(None, [message.get("content")]), *calls])}
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>{_text(message.get('content'))}</tool_response>"}
    return message


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return str(content or "")


def _described(function: dict[str, Any]) -> dict[str, Any]:
    return {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}


def _form(function: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a call of this function."""
    arguments = function.get("parameters") or {"type": "object", "properties": {}}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
