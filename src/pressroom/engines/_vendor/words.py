"""What both protocols are turned into and out of: pieces of OpenAI's answers."""

from __future__ import annotations

import time
from typing import Any

from pressroom.engines._vendor.refusals import invalid

# More is no number of tokens.
_MOST_TOKENS = 10**12


def counts(usage: Any) -> dict[str, Any] | None:
    """The tokens of an answer with everything in it that clients may look for; None where the vendor gives none."""
    prompt = tokens(usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    if prompt is None:
        return None
    said = tokens(usage.get("completion_tokens")) or 0
    total = tokens(usage.get("total_tokens"))
    details = usage.get("prompt_tokens_details")
    details = dict(details) if isinstance(details, dict) else {}
    cached = tokens(details.get("cached_tokens"))
    if cached is None:
        cached = tokens(usage.get("prompt_cache_hit_tokens")) or 0  # as DeepSeek says it
    return {
        **usage,
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said if total is None else total,
        "prompt_tokens_details": {**details, "cached_tokens": cached},
    }


def tokens(value: Any) -> int | None:
    """A number of tokens, as a vendor says it; None where it is none."""
    return value if type(value) is int and 0 <= value < _MOST_TOKENS else None


def chunk(id: str, created: int, delta: dict[str, Any], finish: str | None = None, *, index: int = 0) -> dict[str, Any]:
    """One piece of a streamed chat answer."""
    return {
        "id": id,
        "object": "chat.completion.chunk",
        "created": created,
        "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }


def as_chunks(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """A whole chat answer as the pieces of a streamed one: some servers do not stream what they were asked to."""
    id, created = str(answer.get("id") or "chatcmpl-vendor"), answer.get("created") or int(time.time())
    pieces = []
    for number, choice in enumerate(answer["choices"]):
        message = dict(choice.get("message") or {})
        calls = message.pop("tool_calls", None)
        delta = {**message, "role": "assistant"}
        if calls:
            delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls)]
        index = choice.get("index", number)
        first = chunk(id, created, delta, index=index)
        first["choices"][0]["logprobs"] = choice.get("logprobs")
        pieces += [first, chunk(id, created, {}, choice.get("finish_reason") or "stop", index=index)]
    return pieces


def text_of(param: str, content: Any) -> str:
    """The text of a message's content: a string, or parts of text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"Invalid type for '{param}': expected a string or an array of parts.", param=param)
    pieces = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if kind in ("text", "refusal") else None
        if not isinstance(text, str):
            where = f"{param}[{place}]"
            raise invalid(f"Invalid '{where}': only parts of text are read here.", param=where)
        pieces.append(text)
    return "".join(pieces)


def checked_messages(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation, with at least one message, each with a role."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("Invalid 'messages': expected an array with at least one message.", param="messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            where = f"messages[{place}]"
            raise invalid(f"Invalid '{where}': expected an object with a role.", param=where)
    return messages
