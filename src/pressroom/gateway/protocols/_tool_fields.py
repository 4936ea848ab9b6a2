"""Checks of `tools` and `tool_choice` of a chat."""

from __future__ import annotations

import re
from typing import Any

from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols._checks import missing, unsupported, wrong_type, wrong_value

# OpenAI's bounds.
_MOST_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CHOICES = ("none", "auto", "required")


def tools(param: str, value: Any) -> Problem | None:
    """An array of functions, or null."""
    if type(value) is not list:
        return None if value is None else wrong_type(param, value, "an array of objects")
    if len(value) > _MOST_TOOLS:
        message = f"Invalid '{param}': array too long. Expected at most {_MOST_TOOLS} items, but got {len(value)}."
        return wrong_value(param, message, "array_above_max_length")
    for index, tool in enumerate(value):
        problem = _tool(f"{param}[{index}]", tool)
        if problem is not None:
            return problem
    return None


def tool_choice(param: str, value: Any) -> Problem | None:
    """A word, one function by its name, or null."""
    if value is None or (type(value) is str and value in _CHOICES):
        return None
    if type(value) is str:
        known = ", ".join(f"'{choice}'" for choice in _CHOICES)
        return wrong_value(param, f"Invalid value: '{value[:80]}'. Supported values are: {known}.")
    if type(value) is not dict:
        return wrong_type(param, value, "a string or an object")
    if value.get("type") != "function":
        return unsupported(f"{param}.type", f"a choice of type {str(value.get('type'))[:80]!r}; only 'function'.")
    function = value.get("function")
    if type(function) is not dict:
        name = f"{param}.function"
        return missing(name) if function is None else wrong_type(name, function, "an object")
    return _name(f"{param}.function.name", function)


def chosen(fields: dict[str, Any]) -> Problem | None:
    """Whether the function that `tool_choice` names is among `tools`."""
    choice = fields.get("tool_choice")
    if type(choice) is not dict:
        return None
    name = choice["function"]["name"]
    known = [tool["function"]["name"] for tool in fields.get("tools") or ()]
    if name in known:
        return None
    return wrong_value("tool_choice", f"Tool choice '{name}' not found in 'tools' parameter: {', '.join(known[:20])}.")


def calls_made(param: str, message: dict[str, Any]) -> Problem | None:
    """What a message says of tool calls: those of an earlier answer, or which of them it is the result of."""
    identity = message.get("tool_call_id")
    if identity is not None and type(identity) is not str:
        return wrong_type(f"{param}.tool_call_id", identity, "a string")
    calls = message.get("tool_calls")
    if type(calls) is not list:
        return None if calls is None else wrong_type(f"{param}.tool_calls", calls, "an array of objects")
    for index, call in enumerate(calls):
        name = f"{param}.tool_calls[{index}]"
        if type(call) is not dict:
            return wrong_type(name, call, "an object")
        function = call.get("function")
        if type(function) is not dict:
            return (
                missing(f"{name}.function")
                if function is None
                else wrong_type(f"{name}.function", function, "an object")
            )
        for key in ("name", "arguments"):
            if type(function.get(key)) is not str:
                where = f"{name}.function.{key}"
                return missing(where) if key not in function else wrong_type(where, function[key], "a string")
    return None


def _tool(param: str, tool: Any) -> Problem | None:
    if type(tool) is not dict:
        return wrong_type(param, tool, "an object")
    if tool.get("type") != "function":
        if "type" not in tool:
            return missing(f"{param}.type")
        return unsupported(f"{param}.type", f"a tool of type {str(tool['type'])[:80]!r}; only 'function'.")
    function = tool.get("function")
    if type(function) is not dict:
        name = f"{param}.function"
        return missing(name) if function is None else wrong_type(name, function, "an object")
    problem = _name(f"{param}.function.name", function)
    if problem is not None:
        return problem
    for key, kind, called in (
        ("description", str, "a string"),
        ("parameters", dict, "an object"),
        ("strict", bool, "a boolean"),
    ):
        if function.get(key) is not None and type(function[key]) is not kind:
            return wrong_type(f"{param}.function.{key}", function[key], called)
    return None


def _name(param: str, function: dict[str, Any]) -> Problem | None:
    name = function.get("name")
    if type(name) is not str:
        return missing(param) if name is None else wrong_type(param, name, "a string")
    if _NAME.fullmatch(name) is None:
        message = f"Invalid '{param}': {name[:80]!r}. Expected letters, digits, '_' and '-', at most 64."
        return wrong_value(param, message)
    return None
