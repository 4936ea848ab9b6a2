"""One answer while it is written: its tokens, what of them is text, and why it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pressroom.engines._transformers.asked import Asked, Served
from pressroom.engines._transformers.calls import CallReader
from pressroom.engines._transformers.picking import Picked, Picker
from pressroom.engines._transformers.refusal import Refusal, failed
from pressroom.engines._transformers.speech import Speech


@dataclass(frozen=True, slots=True)
class Report:
    """The log-probabilities at one token; `offset` in characters from the beginning of the answer."""

    token: int
    logprob: float
    likeliest: list[tuple[int, float]]
    offset: int


@dataclass(slots=True)
class Piece:
    """What is new of an answer. `finish` or `error` is set in the last one."""

    text: str = ""
    reports: list[Report] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    error: Refusal | None = None

    def add(self, other: Piece) -> None:
        """The next piece, joined to this one."""
        self.text += other.text
        self.reports += other.reports
        self.calls += other.calls
        self.finish = other.finish
        self.error = other.error

    def __bool__(self) -> bool:
        return bool(self.text or self.reports or self.calls or self.finish or self.error)


class Answer:
    """One of the answers to a request. `cancelled` and `paused` are set by the server's thread and read by the model's;
    everything else belongs to the model's."""

    def __init__(self, asked: Asked, served: Served, prompt: list[int], index: int) -> None:
        self.asked = asked
        self.index = index
        self.tokens = list(prompt)
        self.prompt_tokens = len(prompt)
        self.cached_tokens: int | None = None
        self.cancelled = False
        self.paused = False
        room = served.context - len(prompt)
        self.most = room if asked.most is None else min(asked.most, room)
        sampling = asked.sampling
        self.picker = Picker(sampling, prompt)
        if sampling.seed is not None and asked.n > 1:
            self.picker.begin_at(index % asked.n)
        if asked.grammar is not None:
            assert served.grammars is not None
            self.picker.grammar = served.grammars.begin(asked.grammar)
        if asked.least:
            self.picker.banned = tuple(asked.stop_tokens)
        decoder = served.vocabulary.decoder(skip_special=asked.skip_special)
        self._speech = Speech(decoder, asked.stops, include_stop=asked.include_stop)
        self._calls = CallReader(asked.tools, inside=asked.forced) if asked.tools else None
        self._reports: list[Report] = []
        self._sent = 0

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    def accept(self, picked: Picked | None) -> Piece:
        """The next token has been picked (None: there was none to pick from)."""
        if picked is None:
            return Piece(error=failed("the model gave no finite number to choose a token by"))
        token, picker = picked.token, self.picker
        self.tokens.append(token)
        picker.said(token)
        if picker.grammar is not None:
            picker.grammar.said(token)
            if picker.grammar.problem:
                return Piece(error=failed(f"the format could not be kept: {picker.grammar.problem}"))
        if picker.banned and self.generated >= self.asked.least:
            picker.banned = ()
        if token in self.asked.stop_tokens:
            return self._finished("stop")
        if picked.logprob is not None:
            self._reports.append(Report(token, picked.logprob, picked.likeliest, self._speech.length))
        text = self._speech.push(token)
        if self._speech.stopped:
            return self._finished("stop", text)
        if picker.grammar is not None and picker.grammar.complete:
            return self._finished("stop", text)
        if self.generated >= self.most:
            return self._finished("length", text)
        return self._piece(text)

    def _piece(self, text: str) -> Piece:
        self._sent += len(text)
        piece = Piece(reports=self._due())
        if self._calls is None:
            piece.text = text
        elif text:
            piece.text, piece.calls = self._allowed(*self._calls.push(text))
        return piece

    def _finished(self, reason: str, text: str = "") -> Piece:
        piece = self._piece(text + self._speech.rest())
        if not self._speech.stopped:
            # Tokens whose text was taken back by a stop string are not part of the answer.
            piece.reports += self._reports
        if self._calls is not None:
            said, calls = self._allowed(*self._calls.rest())
            piece.text += said
            piece.calls += calls
            if self._calls.found and reason == "stop":
                reason = "tool_calls"
        piece.finish = reason
        return piece

    def _due(self) -> list[Report]:
        """Reports of tokens whose text has been sent."""
        at = 0
        while at < len(self._reports) and self._reports[at].offset < self._sent:
            at += 1
        due, self._reports = self._reports[:at], self._reports[at:]
        return due

    def _allowed(self, said: str, calls: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
        assert self._calls is not None
        if self.asked.one_call and calls:
            before = self._calls.found - len(calls)
            calls = calls[: max(0, 1 - before)]
        return said, calls
