"""A conversation as the model's own template writes it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import jinja2

from pressroom.engines._transformers.refusal import Refusal, unsupported, wrong
from pressroom.engines._transformers.vocabulary import Vocabulary

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Arguments of the call that renders; a request may set variables of the template, not these.
_RESERVED = frozenset((
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "conversations", "documents",
    "messages", "padding", "processor_kwargs", "return_assistant_tokens_mask", "return_dict", "return_tensors",
    "tokenize", "tokenizer_kwargs", "tools", "truncation",
))  # fmt: skip
# What a template raises about what it was given.
_RENDERING = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip


class Template:
    """The chat template of a tokenizer. `knows_tools`: it writes tools down, and calls as `calls.py` reads them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        found = vocabulary.tokenizer.chat_template
        written = " ".join(found.values()) if isinstance(found, dict) else str(found)
        self.knows_tools = "tools" in written and "<tool_call>" in written

    def text(self, fields: dict[str, Any], tools: list[dict[str, Any]] | None) -> str:
        """The prompt of a request.

        Raises:
            Refusal: the messages are not ones, or the template refuses them.
        """
        messages = [_message(f"messages[{index}]", each) for index, each in enumerate(_messages(fields))]
        more = fields.get("chat_template_kwargs") or {}
        if not isinstance(more, dict):
            raise wrong("chat_template_kwargs", "'chat_template_kwargs' must be an object.", "invalid_type")
        if not _RESERVED.isdisjoint(more):
            name = next(iter(_RESERVED & set(more)))
            raise unsupported("chat_template_kwargs", f"'{name}' of the template is not the request's to choose.")
        going_on = _flag(fields, "continue_final_message", default=False)
        answering = _flag(fields, "add_generation_prompt", default=not going_on)
        if going_on and answering:
            raise wrong("continue_final_message", "It cannot be set together with 'add_generation_prompt'.")
        try:
            return str(
                self._vocabulary.tokenizer.apply_chat_template(
                    messages,
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=answering,
                    continue_final_message=going_on,
                    **more,
                )
            )
        except _RENDERING as error:
            raise wrong(
                "messages", f"The chat template of this model refuses the conversation: {str(error)[:300]}"
            ) from error


def _flag(fields: dict[str, Any], name: str, *, default: bool) -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not bool:
        raise wrong(name, f"Invalid type for '{name}': expected a boolean.", "invalid_type")
    return value


def _messages(fields: dict[str, Any]) -> list[Any]:
    value = fields.get("messages")
    if type(value) is not list or not value:
        raise wrong("messages", "'messages' must be an array with at least one message.", "invalid_type")
    return value


def _message(param: str, given: Any) -> dict[str, Any]:
    if type(given) is not dict:
        raise wrong(param, f"Invalid type for '{param}': expected an object.", "invalid_type")
    role = given.get("role")
    if role not in _ROLES:
        raise wrong(f"{param}.role", f"Invalid value: '{param}.role' must be one of {', '.join(_ROLES)}.")
    message = {name: value for name, value in given.items() if value is not None}
    # OpenAI's later name for the same; templates know the first.
    message["role"] = "system" if role == "developer" else role
    message["content"] = _content(f"{param}.content", given.get("content"), optional=bool(given.get("tool_calls")))
    if "tool_calls" in message:
        message["tool_calls"] = _calls(f"{param}.tool_calls", message["tool_calls"])
    return message


def _content(param: str, value: Any, *, optional: bool) -> str:
    if type(value) is str:
        return value
    if value is None and optional:
        return ""
    if type(value) is not list:
        raise wrong(param, f"Invalid type for '{param}': expected a string or an array of parts.", "invalid_type")
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if type(part) is dict else None
        if kind not in ("text", "refusal"):
            raise unsupported(f"{param}[{index}]", "this engine reads parts of type 'text' only.")
        if type(part.get(kind)) is not str:
            raise wrong(f"{param}[{index}].{kind}", f"'{param}[{index}].{kind}' must be a string.", "invalid_type")
        texts.append(part[kind])
    return "".join(texts)


def _calls(param: str, value: Any) -> list[dict[str, Any]]:
    """Earlier calls with their arguments as objects, which templates write down; OpenAI's are JSON in a string."""
    if type(value) is not list:
        raise wrong(param, f"Invalid type for '{param}': expected an array.", "invalid_type")
    calls = []
    for index, call in enumerate(value):
        function = call.get("function") if type(call) is dict else None
        if type(function) is not dict or type(function.get("name")) is not str:
            raise Refusal(f"'{param}[{index}].function.name' must be a string.", param=f"{param}[{index}]")
        arguments = function.get("arguments", "{}")
        if type(arguments) is str:
            # A model wrote it; what is no JSON the template shows as it is.
            with contextlib.suppress(ValueError, RecursionError):
                arguments = json.loads(arguments)
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return calls
