"""Checks of the conversation: `messages` of a chat, `prompt` of a completion, `input` of embeddings."""

from __future__ import annotations

from typing import Any

from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols._checks import missing, unknown, unsupported, wrong_type, wrong_value
from pressroom.gateway.protocols._tool_fields import calls_made

_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
_USUAL = {"role", "content"}
# The last two carry an earlier answer's reasoning back, under the two names engines use.
_KEYS = frozenset(
    (
        *_USUAL,
        "name",
        "refusal",
        "audio",
        "tool_calls",
        "tool_call_id",
        "function_call",
        "reasoning",
        "reasoning_content",
    )
)


_MOST_PROMPTS = 128
# OpenAI's bound.
_MOST_INPUTS = 2_048
# What an engine's 32 bits hold.
_LARGEST_TOKEN = 2**31 - 1


def messages(param: str, value: Any) -> Problem | None:
    """An array of messages with text."""
    if type(value) is not list:
        return wrong_type(param, value, "an array of objects")
    if not value:
        return wrong_value(param, f"Invalid '{param}': empty array. Expected at least one message.", "empty_array")
    for index, message in enumerate(value):
        # What nearly every message is, tested first.
        if type(message) is dict and message.keys() == _USUAL:
            role, content = message["role"], message["content"]
            if type(content) is str and type(role) is str and role in _ROLES:
                continue
        problem = _message(f"{param}[{index}]", message)
        if problem is not None:
            return problem
    return None


def _message(param: str, message: Any) -> Problem | None:
    if type(message) is not dict:
        return wrong_type(param, message, "an object")
    for key in message:
        if key not in _KEYS:
            return unknown(param, key)
    role = message.get("role")
    if role is None:
        return missing(f"{param}.role")
    if type(role) is not str:
        return wrong_type(f"{param}.role", role, "a string")
    if role not in _ROLES:
        known = ", ".join(f"'{name}'" for name in sorted(_ROLES))
        return wrong_value(f"{param}.role", f"Invalid value: '{role[:80]}'. Supported values are: {known}.")
    if message.get("audio") is not None:
        return unsupported(f"{param}.audio", "no engine here hears or speaks.")
    return calls_made(param, message) or _content(f"{param}.content", message, role)


def _content(param: str, message: dict[str, Any], role: str) -> Problem | None:
    content = message.get("content")
    if type(content) is str:
        return None
    if content is None:
        if role == "assistant" and (message.get("tool_calls") or message.get("function_call")):
            return None
        return missing(param) if "content" not in message else wrong_type(param, None, "a string or an array of parts")
    if type(content) is not list:
        return wrong_type(param, content, "a string or an array of parts")
    for index, part in enumerate(content):
        where = f"{param}[{index}]"
        if type(part) is not dict:
            return wrong_type(where, part, "an object")
        kind = part.get("type")
        if kind is None:
            return missing(f"{where}.type")
        if kind not in ("text", "refusal"):
            return unsupported(where, f"content of type {str(kind)[:80]!r}: the engines here read text only.")
        if type(part.get(kind)) is not str:
            return (
                missing(f"{where}.{kind}")
                if kind not in part
                else wrong_type(f"{where}.{kind}", part[kind], "a string")
            )
    return None


def prompt(param: str, value: Any) -> Problem | None:
    """One prompt or several: a string, an array of tokens, or an array of either."""
    return _texts(param, value, most=_MOST_PROMPTS, empty=True)


def inputs(param: str, value: Any) -> Problem | None:
    """What to embed: a string, an array of tokens, or an array of either. None of them is empty."""
    return _texts(param, value, most=_MOST_INPUTS, empty=False)


def _texts(param: str, value: Any, *, most: int, empty: bool) -> Problem | None:
    if type(value) is str:
        return None if value or empty else wrong_value(param, f"'{param}' cannot be an empty string.", "empty_string")
    if type(value) is not list:
        return wrong_type(param, value, "a string or an array")
    if not value:
        return wrong_value(param, f"Invalid '{param}': empty array.", "empty_array")
    if all(type(item) is int for item in value):
        return _tokens(param, value)
    if len(value) > most:
        message = f"Invalid '{param}': array too long. Expected at most {most} items, but got {len(value)}."
        return wrong_value(param, message, "array_above_max_length")
    kind = type(value[0])
    for index, item in enumerate(value):
        if (
            type(item) is not kind
            or kind not in (str, list)
            or (kind is list and not all(type(t) is int for t in item))
        ):
            break
        if not item and not (empty and kind is str):
            return wrong_value(f"{param}[{index}]", f"Invalid '{param}[{index}]': it is empty.", "empty_string")
        if kind is list and (problem := _tokens(f"{param}[{index}]", item)):
            return problem
    else:
        return None
    return wrong_type(param, value, "a string, an array of tokens, or an array of these")


def _tokens(param: str, tokens: list[int]) -> Problem | None:
    if min(tokens) < 0 or max(tokens) > _LARGEST_TOKEN:
        return wrong_value(param, f"Invalid '{param}': a token is a number from 0 to {_LARGEST_TOKEN}.")
    return None
