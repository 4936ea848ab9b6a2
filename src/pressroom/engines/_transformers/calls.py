"""Calls of tools in what a model writes: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, the Hermes form."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from typing import Any

from pressroom.engines._transformers.refusal import Refusal, wrong

OPEN = "<tool_call>"
_CLOSE = "</tool_call>"
_MOST_TOOLS = 128


def tools_of(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The tools of a request, checked."""
    tools = fields.get("tools") or []
    if type(tools) is not list or len(tools) > _MOST_TOOLS:
        raise wrong("tools", f"'tools' must be an array of at most {_MOST_TOOLS} tools.", "invalid_type")
    for index, tool in enumerate(tools):
        function = tool.get("function") if type(tool) is dict and tool.get("type") == "function" else None
        if type(function) is not dict or type(function.get("name")) is not str or not function["name"]:
            raise Refusal(f"'tools[{index}]' must be a function with a name.", param=f"tools[{index}]")
        parameters = function.get("parameters")
        if parameters is not None and type(parameters) is not dict:
            raise Refusal(f"'tools[{index}].function.parameters' must be an object.", param=f"tools[{index}]")
    return tools


def chosen(fields: dict[str, Any], tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """The tools that may be called, and whether one must be."""
    choice = fields.get("tool_choice")
    if choice is None or choice == "auto":
        return tools, False
    if choice == "none":
        return [], False
    if choice == "required":
        if not tools:
            raise wrong("tool_choice", "'tool_choice' is 'required' and there are no tools.")
        return tools, True
    function = choice.get("function") if type(choice) is dict and choice.get("type") == "function" else None
    name = function.get("name") if type(function) is dict else None
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise wrong("tool_choice", "'tool_choice' must be 'none', 'auto', 'required', or name one of the tools.")
    return named[:1], True


def call_schema(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON schema of one call of one of these tools."""
    several = len(tools) > 1
    forms = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        at = f"#{f'/anyOf/{index}' if several else ''}/properties/arguments"
        forms.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": _moved(function.get("parameters") or {"type": "object"}, at),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": forms} if several else forms[0]


def _moved(schema: Any, at: str) -> Any:
    """A schema with its references to itself pointing to the place it is put at."""
    if isinstance(schema, list):
        return [_moved(each, at) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: at + value[1:] if key == "$ref" and isinstance(value, str) and value.startswith("#") else _moved(value, at)
        for key, value in schema.items()
    }


class CallReader:
    """Takes calls out of a text as it grows. `inside`: the text begins within a call, because its tag was given."""

    def __init__(self, names: Collection[str], *, inside: bool = False) -> None:
        self._names = names
        self._held = ""
        self._inside = inside
        self._given = inside
        self._between = False
        self.found = 0

    def push(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """What is said, and the calls that are complete."""
        self._held += text
        said = ""
        calls: list[dict[str, Any]] = []
        while True:
            if not self._inside:
                before, tag, after = self._held.partition(OPEN)
                if not tag:
                    keep = _overlap(self._held)
                    said += self._tidy(self._held[: len(self._held) - keep])
                    self._held = self._held[len(self._held) - keep :]
                    return said, calls
                said += self._tidy(before)
                self._held, self._inside = after, True
            inner, tag, after = self._held.partition(_CLOSE)
            if not tag:
                return said, calls
            call = self._call(inner)
            if call is None:
                said += f"{OPEN}{inner}{tag}"
            else:
                calls.append(call)
                self._between = True
            self._held, self._inside, self._given = after, False, False

    def rest(self) -> tuple[str, list[dict[str, Any]]]:
        """What is left at the end: a call that was never closed counts where it is whole."""
        held, self._held = self._held, ""
        if not self._inside:
            return self._tidy(held), []
        self._inside = False
        call = self._call(held)
        if call is not None:
            return "", [call]
        return (held if self._given else OPEN + held), []

    def _tidy(self, said: str) -> str:
        """Line ends after a call are layout."""
        if self._between:
            said = said.lstrip()
            self._between = not said
        return said

    def _call(self, text: str) -> dict[str, Any] | None:
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if name not in self._names or not isinstance(arguments, dict):
            return None
        self.found += 1
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _overlap(text: str) -> int:
    for size in range(min(len(text), len(OPEN) - 1), 0, -1):
        if text.endswith(OPEN[:size]):
            return size
    return 0
