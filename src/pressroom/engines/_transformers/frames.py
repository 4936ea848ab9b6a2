"""Answers as OpenAI's JSON: whole ones and chunks, of chats and of text completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from pressroom.engines._transformers.answer import Piece, Report
from pressroom.engines._transformers.vocabulary import Vocabulary

# JSON has no infinity; this is what OpenAI sends for it.
_NEVER = -9999.0


@dataclass(slots=True)
class Counts:
    """Tokens of a request."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0

    def usage(self) -> dict[str, Any]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }

    def timings(self) -> dict[str, int]:
        """The same as llama.cpp declares it at the end of every stream."""
        return {"cache_n": self.cached, "prompt_n": self.prompt - self.cached, "predicted_n": self.generated}


@dataclass(slots=True)
class Form:
    """How the answers to one request are written."""

    chat: bool
    model: str
    vocabulary: Vocabulary
    tokens_as_ids: bool
    logprobs: int | None
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"

    def whole(self, pieces: Sequence[Piece], counts: Counts) -> dict[str, Any]:
        """The answer that is not streamed."""
        return {
            "id": self.id,
            "object": "chat.completion" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(index, piece) for index, piece in enumerate(pieces)],
            "usage": counts.usage(),
        }

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "logprobs": self._logprobs(piece), "finish_reason": piece.finish}
        if not self.chat:
            return {"text": piece.text, **choice}
        message: dict[str, Any] = {"role": "assistant", "content": piece.text}
        if piece.calls:
            message.update(content=piece.text or None, tool_calls=piece.calls)
        return {"message": message, **choice}

    def chunk(self, index: int, piece: Piece, *, called: int = 0, **more: Any) -> bytes:
        """An event with what is new of an answer; `called` is how many calls of it went before."""
        choice: dict[str, Any] = {"index": index, "logprobs": self._logprobs(piece), "finish_reason": piece.finish}
        if self.chat:
            delta: dict[str, Any] = {"content": piece.text} if piece.text or not piece.finish else {}
            if piece.calls:
                delta["tool_calls"] = [{"index": called + at, **call} for at, call in enumerate(piece.calls)]
            choice["delta"] = delta
        else:
            choice["text"] = piece.text
        return self._event([choice], more)

    def first(self, index: int) -> bytes:
        """The event that begins an answer of a chat."""
        delta = {"role": "assistant", "content": ""}
        return self._event([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}], {})

    def usage(self, counts: Counts) -> bytes:
        """The event with the tokens of the whole request."""
        return self._event([], {"usage": counts.usage()})

    def cut(self, counts: Counts, *, event: bool) -> bytes:
        """What a request came to whose client has closed its side, as an event or as a whole answer."""
        kind = "chat.completion" if self.chat else "text_completion"
        base = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        more = {"usage": counts.usage(), "cut": True}
        return self._event([], more) if event else orjson.dumps({**base, "choices": [], **more})

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        base = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return b"data: " + orjson.dumps({**base, "choices": choices, **more}) + b"\n\n"

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        if self.chat:
            return {"content": [self._token(report) for report in piece.reports], "refusal": None}
        return self._columns(piece.reports)

    def _token(self, report: Report) -> dict[str, Any]:
        likeliest = [self._entry(token, logprob) for token, logprob in report.likeliest]
        return {**self._entry(report.token, report.logprob), "top_logprobs": likeliest}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self.vocabulary.piece(token)
        return {"token": self._name(token), "logprob": max(logprob, _NEVER), "bytes": list(piece)}

    def _columns(self, reports: Iterable[Report]) -> dict[str, Any]:
        """The form of the older endpoint: a list for each kind of value."""
        columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for report in reports:
            columns["tokens"].append(self._name(report.token))
            columns["token_logprobs"].append(max(report.logprob, _NEVER))
            columns["text_offset"].append(report.offset)
            # The token itself is in it, also where it is not among the likeliest.
            likeliest = {self._name(token): max(logprob, _NEVER) for token, logprob in report.likeliest}
            if self.logprobs:
                likeliest.setdefault(self._name(report.token), max(report.logprob, _NEVER))
            columns["top_logprobs"].append(likeliest)
        return columns

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self.tokens_as_ids else self.vocabulary.shown(token)
