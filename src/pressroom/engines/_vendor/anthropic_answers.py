"""Anthropic's answers, whole and streamed, into those of OpenAI's chats.

`answering` is the name of the tool that a schema was given to: its input is then the text of the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson

from pressroom.engines._vendor.protocol import StreamReader
from pressroom.engines._vendor.refusals import dressed_up, judged, malformed
from pressroom.engines._vendor.words import chunk, tokens

Scrubbed = Callable[[str], str]

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_PARTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def whole(scrubbed: Scrubbed, answering: str, found: dict[str, Any]) -> dict[str, Any]:
    """A whole answer. Raises Refusal where it is an error, or not one."""
    _refused(found, scrubbed)
    blocks = found.get("content")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise malformed("it has no content")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            texts.append(str(block.get("text", "")))
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        elif kind == "tool_use":
            arguments = orjson.dumps(block.get("input") or {}).decode()
            function = {"name": str(block.get("name")), "arguments": arguments}
            calls.append({"id": str(block.get("id")), "type": "function", "function": function})
    finish = _FINISH.get(str(found.get("stop_reason")), "stop")
    if answering:
        texts = [call["function"]["arguments"] for call in calls[:1]]
        calls, finish = [], _answered(finish, bool(texts))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    if thoughts:
        message.update(_thought("".join(thoughts)))
    if calls:
        message["tool_calls"] = calls
    answer = {
        "id": str(found.get("id") or "msg_vendor"),
        "object": "chat.completion",
        "created": int(time.time()),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
    }
    usage = _counts(found.get("usage"))
    return {**answer, "usage": usage} if usage else answer


class Reader(StreamReader):
    """Reads the events of one answer."""

    def __init__(self, scrubbed: Scrubbed, answering: str) -> None:
        self._scrubbed = scrubbed
        self._answering = answering
        self._answered = False
        self._id = "msg_vendor"
        self._created = int(time.time())
        self._tokens: dict[str, Any] = {}
        self._calls: dict[Any, int] = {}
        # Tool calls whose arguments have not come yet: one without any gets `{}` at its end.
        self._bare: set[Any] = set()
        self._finish = ""

    def read(self, data: bytes) -> list[dict[str, Any]]:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise malformed("an event of its stream is not JSON") from None
        if not isinstance(event, dict):
            raise malformed("an event of its stream is not an object")
        _refused(event, self._scrubbed)
        kind = event.get("type")
        if kind == "message_start":
            return self._begin(event.get("message"))
        if kind == "content_block_start":
            return self._open(event.get("index"), event.get("content_block"))
        if kind == "content_block_delta":
            return self._delta(event.get("index"), event.get("delta"))
        if kind == "content_block_stop":
            return self._close(event.get("index"))
        if kind == "message_delta":
            delta = event.get("delta")
            self._count(event.get("usage"))
            if isinstance(delta, dict) and delta.get("stop_reason"):
                self._finish = _FINISH.get(str(delta["stop_reason"]), "stop")
        elif kind == "message_stop":
            return self._end()
        return []  # a ping, or an event of a later version: its documentation asks to leave those out

    def _begin(self, message: Any) -> list[dict[str, Any]]:
        if isinstance(message, dict):
            self._id = str(message.get("id") or self._id)
            self._count(message.get("usage"))
        return [self._chunk({"role": "assistant", "content": ""})]

    def _open(self, index: Any, block: Any) -> list[dict[str, Any]]:
        block = block if isinstance(block, dict) else {}
        if block.get("type") != "tool_use":
            text = block.get("text") or block.get("thinking")
            return self._said(block.get("type"), text) if isinstance(text, str) and text else []
        self._bare.add(_place(index))
        self._calls[_place(index)] = place = len(self._calls)
        if self._answering:
            return []
        function = {"name": str(block.get("name")), "arguments": ""}
        call = {"index": place, "id": str(block.get("id")), "type": "function", "function": function}
        return [self._chunk({"tool_calls": [call]})]

    def _delta(self, index: Any, delta: Any) -> list[dict[str, Any]]:
        delta = delta if isinstance(delta, dict) else {}
        kind = delta.get("type")
        if kind == "input_json_delta":
            piece = delta.get("partial_json")
            return self._argument(_place(index), piece) if isinstance(piece, str) and piece else []
        text = delta.get("text" if kind == "text_delta" else "thinking")
        return self._said(str(kind).removesuffix("_delta"), text) if isinstance(text, str) and text else []

    def _close(self, index: Any) -> list[dict[str, Any]]:
        return self._argument(_place(index), "{}") if _place(index) in self._bare else []

    def _argument(self, index: int, piece: str) -> list[dict[str, Any]]:
        if index not in self._calls:
            raise malformed("it goes on with a tool call that it did not begin")
        self._bare.discard(index)
        place = self._calls[index]
        if self._answering:
            self._answered = True
            return [self._chunk({"content": piece})] if place == 0 else []
        return [self._chunk({"tool_calls": [{"index": place, "function": {"arguments": piece}}]})]

    def _said(self, kind: Any, text: str) -> list[dict[str, Any]]:
        if kind == "thinking":
            return [self._chunk(_thought(text))]
        # What is said before the tool that gives the answer is no part of it.
        return [self._chunk({"content": text})] if kind == "text" and not self._answering else []

    def _end(self) -> list[dict[str, Any]]:
        finish = self._finish or "stop"
        self.complete = True
        return [self._chunk({}, _answered(finish, self._answered) if self._answering else finish)]

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._tokens.update({name: value for name, value in usage.items() if value is not None})
            self.usage = _counts(self._tokens)

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return chunk(self._id, self._created, delta, finish)


def _place(index: Any) -> int:
    return index if type(index) is int else 0


def _thought(text: str) -> dict[str, Any]:
    # Under the two names that engines use.
    return {"reasoning": text, "reasoning_content": text}


def _answered(finish: str, has: bool) -> str:
    """Why an answer that was held to a schema ended. Raises Refusal where it is complete and there is none."""
    if has or finish in ("length", "content_filter"):
        return "stop" if finish == "tool_calls" else finish
    raise malformed("it does not keep to the schema")


def _counts(usage: Any) -> dict[str, Any] | None:
    """The tokens: all that went in counts, also what came from a cache or went into one."""
    if not isinstance(usage, dict):
        return None
    prompt = sum(tokens(usage.get(name)) or 0 for name in _PARTS)
    said = tokens(usage.get("output_tokens")) or 0
    cached = usage.get("cache_read_input_tokens")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": cached if type(cached) is int else 0},
    }


def _refused(found: dict[str, Any], scrubbed: Scrubbed) -> None:
    error = dressed_up(found)
    if error is not None:
        raise judged(*error, scrubbed)
