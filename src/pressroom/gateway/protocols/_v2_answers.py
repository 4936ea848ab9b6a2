"""What engines answer, in OpenAI's shape, as the columns of an answer of this protocol."""

from __future__ import annotations

import array
import base64
import sys
from typing import Any, NamedTuple

import orjson

from pressroom.gateway import _sse
from pressroom.gateway.problems import Problem, server_error


class Answer(NamedTuple):
    """One text, and what it took. `usage` is as the engine declared it."""

    text: str
    finish_reason: str
    usage: dict[str, Any]

    def value(self, output: str) -> Any:
        """Its element of an output."""
        if output == "text_output":
            return self.text
        if output == "finish_reason":
            return self.finish_reason
        return self.tokens()[_TOKENS[output]]

    def tokens(self) -> tuple[int, int, int]:
        """Tokens of the prompt, generated ones, and those of the prompt that were cached; 0 where not declared."""
        usage = self.usage
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if type(details) is dict else 0
        return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached)


class Embeddings(NamedTuple):
    """One row a text: little-endian singles one after another, `width` of them a row."""

    rows: bytes
    width: int
    prompt_tokens: int

    def values(self) -> list[float]:
        """All elements, row after row."""
        found = array.array("f", self.rows)
        if sys.byteorder == "big":
            found.byteswap()
        return found.tolist()


def _count(value: Any) -> int:
    """A number of tokens as an engine declared it; 0 where it is none."""
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


_NONE: dict[str, Any] = {}
_TOKENS = {"prompt_tokens": 0, "completion_tokens": 1, "cached_tokens": 2}


def unreadable() -> Problem:
    """The engine answered with something that is not in OpenAI's shape."""
    return server_error(502, "The engine failed: its answer cannot be read.", code="engine_error")


def answer(body: bytes) -> Answer | Problem:
    """A whole answer of chat or completions."""
    try:
        found = orjson.loads(body)
        choice = found["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        reason, usage = choice.get("finish_reason") or "", found.get("usage") or _NONE
        if type(text or "") is not str or type(reason) is not str or type(usage) is not dict:
            return unreadable()
        return Answer(text or "", reason, usage)
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return unreadable()


def embeddings(body: bytes, count: int) -> Embeddings | Problem:
    """A whole answer of embeddings to `count` texts."""
    try:
        found = orjson.loads(body)
        data = sorted(found["data"], key=lambda each: int(each["index"]))
        rows = [_row(each["embedding"]) for each in data]
        tokens = _count((found.get("usage") or _NONE).get("prompt_tokens"))
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError, ValueError, OverflowError):
        return unreadable()
    if len(rows) != count or len({len(row) for row in rows}) != 1:
        return unreadable()
    return Embeddings(b"".join(rows), len(rows[0]) // 4, tokens)


def _row(given: str | list[float]) -> bytes:
    if isinstance(given, str):
        return base64.b64decode(given, validate=True)  # little-endian singles, as OpenAI's
    row = array.array("f", given)
    if sys.byteorder == "big":
        row.byteswap()
    return row.tobytes()


class Stream:
    """Takes a streamed answer apart. `finish_reason` and `usage` are known at its end; `error` is set where the engine
    ended it with one."""

    __slots__ = ("_events", "error", "finish_reason", "usage")

    def __init__(self) -> None:
        self._events = _sse.Events()
        self.finish_reason = ""
        self.usage: dict[str, Any] = _NONE
        self.error: Problem | None = None

    def feed(self, data: bytes) -> list[str]:
        """The pieces of text that came with these bytes, none of them empty."""
        found: list[str] = []
        try:
            for event in self._events.feed(data):
                if event != _sse.DONE:
                    self._take(orjson.loads(event), found)
        except (LookupError, TypeError, AttributeError, ValueError):  # JSONDecodeError is a ValueError
            self.error = self.error or unreadable()
        return found

    def last(self, text: str = "") -> Answer:
        """The end of it: no text of its own, and all that is known."""
        return Answer(text, self.finish_reason, self.usage)

    def _take(self, record: dict[str, Any], found: list[str]) -> None:
        if "error" in record:
            inner = record["error"]
            message = inner.get("message") if isinstance(inner, dict) else inner
            self.error = server_error(502, f"The engine failed: {message}", code="engine_error")
            return
        usage = record.get("usage")
        if type(usage) is dict:
            self.usage = usage
        choices = record.get("choices")
        if not choices:
            return
        choice = choices[0]
        text = choice["text"] if "text" in choice else choice["delta"].get("content")
        if text:
            if type(text) is not str:
                raise TypeError(f"a piece of text is {type(text).__name__}")
            found.append(text)
        reason = choice.get("finish_reason")
        if type(reason) is str:
            self.finish_reason = reason
