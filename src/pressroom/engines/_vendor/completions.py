"""`/v1/completions` at a vendor whose models only chat: the prompt is sent as the one message of a user.

What comes back is an answer to the prompt, not a continuation of it; docs/vendors.md says so. What a chat has no
counterpart for is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pressroom.engines._vendor.protocol import Asked, Protocol
from pressroom.engines._vendor.refusals import invalid, unsupported

# Fields that mean the same in both.
_SAME = frozenset((
    "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "n", "stop", "seed",
    "logit_bias", "frequency_penalty", "presence_penalty", "user",
))  # fmt: skip


def by_chat(protocol: Protocol, fields: dict[str, Any], extra: frozenset[str]) -> Asked:
    """A completion as a chat. `extra` are fields that the vendor takes besides. Raises Refusal."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": _prompt(fields.get("prompt"))}]}
    for name, value in fields.items():
        if name in _SAME or name in extra:
            chat[name] = value
        elif name != "prompt" and value is not None and not _asks_for_nothing(name, value):
            raise unsupported(name[:200], f"{name[:200]!r}: this model runs at a vendor, where a prompt is a chat.")
    return replace(protocol.chat(chat), answer=_answer, piece=_piece)


def _asks_for_nothing(name: str, value: Any) -> bool:
    return (name, value) in (("best_of", 1), ("echo", False), ("logprobs", False), ("suffix", ""))


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    if isinstance(prompt, str):
        return prompt
    if prompt is None:
        raise invalid("Missing required parameter: 'prompt'.", param="prompt", code="missing_required_parameter")
    raise unsupported("prompt", "a prompt of tokens, or several prompts: this model runs at a vendor, where it chats.")


def _answer(found: dict[str, Any]) -> dict[str, Any]:
    choices = [
        {
            "index": choice.get("index", number),
            "text": _said(choice.get("message")),
            "logprobs": None,
            "finish_reason": choice.get("finish_reason"),
        }
        for number, choice in enumerate(found["choices"])
    ]
    return {**_rest(found), "choices": choices, **({"usage": found["usage"]} if found.get("usage") else {})}


def _piece(found: dict[str, Any]) -> dict[str, Any] | None:
    choices = [
        {
            "index": choice.get("index", 0),
            "text": _said(choice.get("delta")),
            "logprobs": None,
            "finish_reason": choice.get("finish_reason"),
        }
        for choice in found["choices"]
    ]
    # Only the role, or a thought.
    if not any(choice["text"] or choice["finish_reason"] for choice in choices):
        return None
    return {**_rest(found), "choices": choices}


def _rest(found: dict[str, Any]) -> dict[str, Any]:
    return {"id": found.get("id"), "object": "text_completion", "created": found.get("created")}


def _said(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""
