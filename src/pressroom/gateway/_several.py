"""Several answers to one request (`n`, several prompts) from engines that give one at a time.

Each answer is a request of its own to an engine, at the same time as the others, so that an engine with continuous
batching works on all of them at once. The answers are put together as OpenAI's server does: choices numbered by prompt
and then by answer; tokens of a prompt counted once, those generated all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway import _sse
from pressroom.gateway.asking import Asked, Receiver
from pressroom.gateway.protocols.openai import Endpoint, prompts

if TYPE_CHECKING:
    from pressroom.gateway.problems import Problem
    from pressroom.gateway.routes import Route

Ask = Callable[[dict[str, Any], Endpoint, Receiver], Asked]


def wants_several(fields: dict[str, Any]) -> bool:
    """Whether a request asks for more than one answer, or puts its one prompt into an array."""
    return (fields.get("n") or 1) > 1 or ("prompt" in fields and prompts(fields) is fields["prompt"])


class Several(Asked):
    """Asks for each answer, and gives `receiver` all of them as one."""

    def __init__(self, fields: dict[str, Any], endpoint: Endpoint, receiver: Receiver, ask: Ask) -> None:
        self._receiver = receiver
        self.stream = bool(fields.get("stream"))
        options = fields.get("stream_options") or {}
        self._with_usage = bool(options.get("include_usage"))
        self._answers: list[_One] = []
        self._left = 0
        self._begun = False
        self._over = False
        self._frame: dict[str, Any] = {}
        answers = int(fields.get("n") or 1)
        seed = fields.get("seed")
        for number, prompt in enumerate(prompts(fields)):
            for answer in range(answers):
                one = {key: value for key, value in fields.items() if key != "n"}
                if "prompt" in fields:
                    one["prompt"] = prompt
                if seed is not None:
                    one["seed"] = seed + answer  # the same seed would give the same answer again
                if self.stream:
                    one["stream_options"] = {**options, "include_usage": True}
                self._answers.append(_One(self, number * answers + answer, first=answer == 0, fields=one))
        self._left = len(self._answers)
        for each in self._answers:
            if self._over:
                break
            each.asked = ask(each.fields, endpoint, each)

    # What the client does.

    def cancel(self) -> None:
        self._over = True
        for one in self._answers:
            if one.asked is not None and not one.ended:
                one.asked.cancel()

    def pause(self) -> None:
        for one in self._answers:
            if one.asked is not None and not one.ended:
                one.asked.pause()

    def resume(self) -> None:
        for one in self._answers:
            if one.asked is not None and not one.ended:
                one.asked.resume()

    # What the answers do.

    def take(self, one: _One, record: dict[str, Any]) -> None:
        """An event of the stream of one answer."""
        if record.get("usage"):
            one.usage = record["usage"]
        if not self._frame:
            self._frame = {key: record[key] for key in ("id", "object", "created", "model") if key in record}
        choices = [{**choice, "index": one.index} for choice in record.get("choices") or ()]
        if choices:
            self._receiver.data(_sse.event({**self._frame, "choices": choices}))

    def began(self, route: Route) -> None:
        if not self._begun:
            self._begun = True
            self._receiver.begin(route)

    def ended(self, route: Route | None = None) -> None:
        self._left -= 1
        if self._left or self._over:
            return
        usage = _sum([one.usage for one in self._answers], [one.first for one in self._answers])
        if self.stream:
            self._over = True
            if self._with_usage:
                self._receiver.data(_sse.event({**self._frame, "choices": [], "usage": usage}))
            self._receiver.data(_sse.LAST)
            self._receiver.end()
            return
        assert route is not None
        first = self._answers[0].record
        choices = [
            {**choice, "index": one.index} for one in self._answers for choice in one.record.get("choices") or ()
        ]
        whole = {key: value for key, value in first.items() if key not in ("choices", "usage", "timings")}
        body = orjson.dumps({**whole, "choices": choices, "usage": usage})
        self._over = True  # not before: an answer that cannot be put together is still an error
        self._receiver.whole(body, route)

    def failed(self, problem: Problem) -> None:
        """One answer failed: all do, because half of what was asked is not an answer."""
        if not self._over:
            self.cancel()
            self._receiver.failed(problem)


class _One:
    """One of the answers, as a Receiver."""

    __slots__ = ("_all", "_events", "asked", "ended", "fields", "first", "index", "record", "usage")

    def __init__(self, parent: Several, index: int, *, first: bool, fields: dict[str, Any]) -> None:
        self._all = parent
        self._events = _sse.Events()
        self.index = index
        self.first = first
        self.fields = fields
        self.asked: Asked | None = None
        self.ended = False
        self.record: dict[str, Any] = {}
        self.usage: dict[str, Any] = {}

    def whole(self, body: bytes, route: Route) -> None:
        self.ended = True
        self.record = orjson.loads(body)
        self.usage = self.record.get("usage") or {}
        if self._all.stream:  # it was asked for a stream, and answered in one piece after all
            self._all.began(route)
            choices = [
                {**{k: v for k, v in choice.items() if k != "message"}, "delta": choice["message"]}
                if "message" in choice
                else choice
                for choice in self.record["choices"]
            ]
            self._all.take(self, {**self.record, "choices": choices})
        self._all.ended(route)

    def begin(self, route: Route) -> None:
        self._all.began(route)

    def data(self, data: bytes) -> None:
        for found in self._events.feed(data):
            if found != _sse.DONE:
                self._all.take(self, orjson.loads(found))

    def end(self) -> None:
        self.ended = True
        self._all.ended()

    def failed(self, problem: Problem) -> None:
        self.ended = True
        self._all.failed(problem)


def _sum(usages: list[dict[str, Any]], counted: list[bool]) -> dict[str, Any]:
    prompt = sum(int(usage.get("prompt_tokens", 0)) for usage, first in zip(usages, counted, strict=True) if first)
    said = sum(int(usage.get("completion_tokens", 0)) for usage in usages)
    cached = sum(
        int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        for usage, first in zip(usages, counted, strict=True)
        if first
    )
    total = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    return {**total, "prompt_tokens_details": {"cached_tokens": cached}}
