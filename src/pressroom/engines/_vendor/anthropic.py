"""Anthropic's Messages API: OpenAI's chats into its requests."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import orjson

from pressroom.engines._vendor.anthropic_answers import Reader, whole
from pressroom.engines._vendor.protocol import Asked, Protocol, wants_stream
from pressroom.engines._vendor.refusals import invalid, unsupported
from pressroom.engines._vendor.words import checked_messages, text_of

_VERSION = "2023-06-01"
# Fields that are handled below, and those that are about the account at OpenAI and mean nothing for the answer.
_HANDLED = frozenset((
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop", "temperature",
    "top_p", "top_k", "tools", "tool_choice", "parallel_tool_calls", "response_format", "user",
))  # fmt: skip
_WITHOUT_MEANING = frozenset((
    "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
))  # fmt: skip
# Fields that the API does not have, with the values that ask for nothing.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "store": (False,),
    "modalities": (["text"],),
}


class Anthropic(Protocol):
    """Anthropic, or whoever speaks its API."""

    host = "api.anthropic.com"
    variable = "ANTHROPIC_API_KEY"
    capabilities: ClassVar[dict[str, bool]] = {
        "chat": True,
        "completions": True,
        "streaming": True,
        "tools": True,
        "json_schema": True,
    }

    def headers(self, key: str) -> dict[str, str]:
        return {"anthropic-version": _VERSION, **({"x-api-key": key} if key else {})}

    def completion(self, fields: dict[str, Any]) -> Asked:
        raise unsupported(None, "Anthropic's API has no completions; send a chat.")

    def embeddings(self, fields: dict[str, Any]) -> Asked:
        raise unsupported(None, "Anthropic's API has no embeddings.")

    def chat(self, fields: dict[str, Any]) -> Asked:
        self._refuse(fields)
        system, messages = _conversation(checked_messages(fields))
        limit = fields.get("max_completion_tokens") or fields.get("max_tokens") or self._max_tokens
        body: dict[str, Any] = {"model": self._model, "max_tokens": limit, "messages": messages}
        if system:
            body["system"] = system
        body.update(_sampling(fields))
        body.update(_tools(fields))
        answering = _format(fields, body)
        body.update({name: fields[name] for name in self._extra if fields.get(name) is not None})
        stream, usage = wants_stream(fields)
        if stream:
            body["stream"] = True
        return Asked(
            path="/messages",
            body=body,
            stream=stream,
            usage=usage,
            whole=partial(whole, self._scrubbed, answering),
            reader=lambda: Reader(self._scrubbed, answering),
        )

    def _refuse(self, fields: dict[str, Any]) -> None:
        for name, value in fields.items():
            if value is None or name in _HANDLED or name in _WITHOUT_MEANING or name in self._extra:
                continue
            if name not in _NOTHING or value not in _NOTHING[name]:
                name = name[:200]
                raise unsupported(name, f"this model runs at Anthropic, whose API does not have {name!r}.")


def _sampling(fields: dict[str, Any]) -> dict[str, Any]:
    found = {name: fields[name] for name in ("temperature", "top_p", "top_k") if fields.get(name) is not None}
    temperature = found.get("temperature", 0)
    if not isinstance(temperature, int | float) or temperature > 1:
        raise unsupported("temperature", "this model runs at Anthropic, where a temperature is from 0 to 1.")
    stop = fields.get("stop")
    if stop:
        found["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if isinstance(fields.get("user"), str):
        found["metadata"] = {"user_id": fields["user"]}
    return found


def _conversation(messages: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The instructions, and the turns: alternating, each a list of blocks."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        where, role = f"messages[{place}]", message["role"]
        if message.get("name") is not None and role != "tool":
            raise unsupported(f"{where}.name", "this model runs at Anthropic, where speakers have no names.")
        if role in ("system", "developer"):
            text = text_of(f"{where}.content", message.get("content"))
            system += [text] if text else []
            continue
        if role == "user":
            blocks = _text(where, message)
        elif role == "assistant":
            blocks = _text(where, message) + _calls(where, message)
        elif role == "tool":
            role, blocks = "user", [_result(where, message)]
        else:
            raise unsupported(f"{where}.role", f"this model runs at Anthropic, which has no role {role[:80]!r}.")
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not turns:
        raise invalid("Invalid 'messages': expected a message of the user, with text.", param="messages")
    return "\n\n".join(system), turns


def _text(where: str, message: dict[str, Any]) -> list[dict[str, Any]]:
    text = text_of(f"{where}.content", message.get("content"))
    # The API refuses empty blocks.
    return [{"type": "text", "text": text}] if text else []


def _calls(where: str, message: dict[str, Any]) -> list[dict[str, Any]]:
    if message.get("function_call") is not None:
        raise unsupported(f"{where}.function_call", "'function_call' is deprecated; use 'tool_calls'.")
    calls = message.get("tool_calls") or []
    blocks = []
    for place, call in enumerate(calls if isinstance(calls, list) else [None]):
        param = f"{where}.tool_calls[{place}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(call.get("id"), str):
            raise invalid(f"Invalid '{param}': expected an id and a function.", param=param)
        try:
            given = orjson.loads(function.get("arguments") or "{}")
        except (orjson.JSONDecodeError, TypeError):
            given = None
        if not isinstance(given, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"Invalid '{param}.function': expected a name, and an object as JSON.", param=param)
        blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": given})
    return blocks


def _result(where: str, message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("tool_call_id"), str):
        param = f"{where}.tool_call_id"
        raise invalid(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    text = text_of(f"{where}.content", message.get("content"))
    return {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": text}


def _tools(fields: dict[str, Any]) -> dict[str, Any]:
    tools = fields.get("tools")
    if not tools:
        return {}
    if not isinstance(tools, list):
        raise invalid("Invalid type for 'tools': expected an array.", param="tools")
    found: dict[str, Any] = {"tools": [_tool(f"tools[{place}]", tool) for place, tool in enumerate(tools)]}
    choice = _choice(fields.get("tool_choice"))
    if fields.get("parallel_tool_calls") is False and (choice or {"type": "auto"})["type"] != "none":
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice:
        found["tool_choice"] = choice
    return found


def _tool(param: str, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise unsupported(param, "tools other than functions.")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(f"Invalid '{param}.function': expected an object with a name.", param=f"{param}.function")
    found = {"name": function["name"], "input_schema": function.get("parameters") or {"type": "object"}}
    if isinstance(function.get("description"), str):
        found["description"] = function["description"]
    if function.get("strict"):
        found["strict"] = True
    return found


def _choice(choice: Any) -> dict[str, Any] | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in ("auto", "none", "required"):
        return {"type": "any" if choice == "required" else choice}
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        return {"type": "tool", "name": function["name"]}
    raise unsupported("tool_choice", "a choice other than 'auto', 'none', 'required' or one function.")


def _format(fields: dict[str, Any], body: dict[str, Any]) -> str:
    """Hold the answer to a schema by a tool that has it and must be called: its name, '' for plain text."""
    wanted = fields.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if wanted is None or kind == "text":
        return ""
    if kind != "json_schema":
        raise unsupported("response_format", "this model runs at Anthropic; give the schema, as 'json_schema'.")
    if fields.get("tools"):
        raise unsupported(
            "response_format", "this model runs at Anthropic, where a schema and tools exclude each other."
        )
    given = wanted.get("json_schema")
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(schema, dict) or schema.get("type") != "object":
        param = "response_format.json_schema.schema"
        raise unsupported(param, "this model runs at Anthropic, where the schema of an answer is of an object.")
    name = given.get("name") if isinstance(given.get("name"), str) and given["name"] else "answer"
    tool = {"name": name, "input_schema": schema, "description": given.get("description") or "Gives the answer."}
    if given.get("strict"):
        tool["strict"] = True
    body["tools"] = [tool]
    body["tool_choice"] = {"type": "tool", "name": name, "disable_parallel_tool_use": True}
    return str(name)
