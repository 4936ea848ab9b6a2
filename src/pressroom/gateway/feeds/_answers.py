"""What is written: a record for an answer, for a piece of one, and for a message that could not be answered."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field
from typing import Any

import orjson

from pressroom.gateway.feeds.base import Message

# As much of a refused message as its record repeats.
_QUOTED = 65_536
# As much of a reason.
_SAID = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Why a message has no answer, in OpenAI's words where the gateway said it."""

    message: str
    status: int = 400
    code: str | None = None
    type: str = "invalid_request_error"
    param: str | None = None


def problem_of(status: int, body: bytes) -> Problem:
    """What the gateway says with an error status."""
    try:
        found = orjson.loads(body)["error"]
        texts = {name: found.get(name) for name in ("code", "type", "param")}
        return Problem(
            message=str(found["message"]),
            status=status,
            code=None if texts["code"] is None else str(texts["code"]),
            type=str(texts["type"]),
            param=None if texts["param"] is None else str(texts["param"]),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        said = body[:500].decode(errors="replace")
        return Problem(message=said or f"status {status} without a reason", status=status, type="server_error")


@dataclass(kw_only=True, slots=True)
class Answer:
    """The records of one answer. In pieces, each has the `attempt` it belongs to and its `sequence` in it: a message
    that is delivered twice is written by two attempts, and the pieces of one make one answer. `latency_s` and `ttft_s`
    run from the message's arrival at the feed. With `keep_body`, records have OpenAI's own JSON as `response`."""

    id: str | int
    model: str
    version: str
    deliveries: int
    keep_body: bool = False
    #: What the answer declares, once it was seen.
    usage: Any = None
    attempt: str = field(default_factory=lambda: secrets.token_hex(4))
    _sequence: int = 0
    _text: list[str] = field(default_factory=list)
    _finish: str | None = None

    def whole(self, body: bytes, latency_s: float) -> bytes:
        """The record of an answer that came in one piece. Raises ValueError where the body is not an answer."""
        try:
            found = orjson.loads(body)
            if "data" in found:
                said: dict[str, Any] = {"embeddings": [entry["embedding"] for entry in found["data"]]}
            else:
                said = _said(found["choices"])
            if self.keep_body:
                said = {"response": found}
            self.usage = found.get("usage")
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"what the gateway answered is not an answer: {error!r}") from error
        return orjson.dumps({**self._head(), **said, "usage": self.usage, "latency_ms": _ms(latency_s)})

    def piece(self, record: dict[str, Any]) -> bytes | None:
        """The record for an event of the stream, None where it brings nothing to say."""
        self.usage = record.get("usage") or self.usage
        choices = record.get("choices")
        if not choices:
            return None
        plain, said = True, ""
        for choice in choices:
            delta = choice.get("delta") or {}
            if choice.get("index") or choice.get("logprobs") or delta.get("tool_calls"):
                plain = False  # there is more to it than a text
            if not choice.get("index"):
                self._finish = choice.get("finish_reason") or self._finish
                said += choice.get("text") or delta.get("content") or ""
        self._text.append(said)
        if self.keep_body:
            return self._next({"response": record})
        if not plain:
            return self._next({"choices": choices})
        return self._next({"piece": said}) if said else None

    def final(self, latency_s: float, ttft_s: float | None) -> bytes:
        """The last record: the whole text again, for whoever does not want the pieces."""
        ends = {
            "final": True,
            "text": "".join(self._text),
            "finish_reason": self._finish,
            "usage": self.usage,
            "ttft_ms": None if ttft_s is None else _ms(ttft_s),
            "latency_ms": _ms(latency_s),
        }
        return self._next(ends)

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "model": self.model, "version": self.version, "deliveries": self.deliveries}

    def _next(self, more: dict[str, Any]) -> bytes:
        record = {**self._head(), "attempt": self.attempt, "sequence": self._sequence, **more}
        self._sequence += 1
        return orjson.dumps(record)


def _said(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The text of the first choice; the choices themselves where there is more to them than a text."""
    first = choices[0]
    message = first.get("message") or {}
    said: dict[str, Any] = {
        "text": first["text"] if "text" in first else message.get("content"),
        "finish_reason": first.get("finish_reason"),
    }
    if len(choices) > 1 or first.get("logprobs") or message.get("tool_calls") or message.get("refusal"):
        said["choices"] = choices
    return said


def refusal(message: Message, name: str | int, model: str, problem: Problem, *, quote: bool = True) -> bytes:
    """The record of a message that has no answer, with the message itself, at most its first 64 kB (`quote`)."""
    quoted = message.data[:_QUOTED]
    try:
        held: dict[str, Any] = {"message": quoted.decode("utf-8")}
    except UnicodeDecodeError as error:
        cut = len(message.data) > _QUOTED and error.start > _QUOTED - 4  # in the middle of a character
        if cut:
            quoted = quoted[: error.start]
        held = {"message": quoted.decode("utf-8")} if cut else {"message_base64": base64.b64encode(quoted).decode()}
    if not quote:
        held = {}
    if len(message.data) > _QUOTED or not quote:
        held["message_bytes"] = len(message.data)
    said = {part: getattr(problem, part) for part in ("message", "type", "param", "code", "status")}
    said["message"] = problem.message[:_SAID]
    return orjson.dumps({"id": name, "model": model, "deliveries": message.deliveries, "error": said, **held})


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
