"""A request for text on its connection: from the answers' pieces to what the client gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson

from pressroom.engines._transformers.answer import Answer, Piece
from pressroom.engines._transformers.asked import Asked, Served
from pressroom.engines._transformers.frames import Counts, Form
from pressroom.engines._transformers.refusal import Refusal
from pressroom.engines._transformers.scheduler import Scheduler
from pressroom.engines._transformers.server import Connection

# What may wait for a slow reader before its answer is paused, and about what a report of log-probabilities takes.
_MOST_HELD = 64 << 10
_REPORT_BYTES = 150


class Request:
    """All answers to one request. Lives on the server's thread."""

    def __init__(self, asked: Asked, served: Served, scheduler: Scheduler, connection: Connection) -> None:
        self._asked = asked
        self._scheduler = scheduler
        self._connection = connection
        self._form = Form(
            chat=asked.chat,
            model=served.name,
            vocabulary=served.vocabulary,
            tokens_as_ids=asked.tokens_as_ids,
            logprobs=asked.sampling.logprobs,
        )
        self.answers = [
            Answer(asked, served, prompt, at * asked.n + number)
            for at, prompt in enumerate(asked.prompts)
            for number in range(asked.n)
        ]
        #: What has not been sent: everything so far, or what a slow reader has not taken.
        self._held = [Piece() for _ in self.answers]
        self._begun = [False] * len(self.answers)
        self._called = [0] * len(self.answers)
        self._unfinished = len(self.answers)
        self._cut = False
        #: Nothing more will be sent.
        self.over = False
        #: Called when the client has left.
        self.forget: Callable[[], None] = lambda: None

    def left(self) -> None:
        """The client is gone: nothing more is written."""
        self.over = True
        for answer in self.answers:
            self._scheduler.cancel(answer)
        self.forget()

    def cut(self) -> None:
        """The client has closed its side: it gets what this came to, once the model's thread has let go of it."""
        if self.over:
            return
        self._cut = True
        for answer in self.answers:
            self._scheduler.cancel(answer)

    def take(self, answer: Answer, piece: Piece) -> None:
        """What is new of one of the answers."""
        if self.over:
            return
        if self._cut:
            if piece.finish or piece.error:
                self._unfinished -= 1
                self._say_cut()
            return
        if piece.error is not None:
            self._fail(piece.error)
            return
        held = self._held[answer.index]
        held.add(piece)
        if piece.finish:
            self._unfinished -= 1
        if not self._asked.stream:
            if not self._unfinished:
                self.over = True
                self._connection.answer(200, self._form.whole(self._held, self._counts()))
        elif self._connection.flows:
            self._send([answer.index])
        elif not held.finish and _size(held) > _MOST_HELD:
            self._scheduler.pause(answer)

    def writable(self) -> None:
        """The client has caught up: what was held goes out, and what was paused goes on."""
        if self.over or not self._asked.stream:
            return
        self._send([index for index, held in enumerate(self._held) if held])
        for answer in self.answers if self._connection.flows else ():
            if answer.paused:
                self._scheduler.resume(answer)

    def _send(self, indexes: Sequence[int]) -> None:
        form, data = self._form, b""
        for index in indexes:
            held, self._held[index] = self._held[index], Piece()
            if form.chat and not self._begun[index]:
                data += form.first(index)
            self._begun[index] = True
            last = bool(held.finish) and not self._unfinished and not any(self._held)
            if last:
                data += form.chunk(index, held, called=self._called[index], timings=self._counts().timings())
            else:
                data += form.chunk(index, held, called=self._called[index])
            self._called[index] += len(held.calls)
        if not self._unfinished and not any(self._held):
            if self._asked.include_usage:
                data += form.usage(self._counts())
            self.over = True
            self._connection.events(data + b"data: [DONE]\n\n")
            self._connection.end()
        elif data:
            self._connection.events(data)

    def _say_cut(self) -> None:
        """The tokens of what was done: nothing of a prompt that was not begun."""
        if self._unfinished:
            return
        self.over = True
        begun = [answer for answer in self.answers if answer.cached_tokens is not None]
        prompts = {answer.index // self._asked.n: answer.prompt_tokens for answer in begun}
        counts = self._counts()
        counts.prompt = sum(prompts.values())
        if self._asked.stream:
            self._connection.events(self._form.cut(counts, event=True) + b"data: [DONE]\n\n")
            self._connection.end(broken=True)
        else:
            self._connection.send(200, self._form.cut(counts, event=False))

    def _fail(self, problem: Refusal) -> None:
        """One answer cannot be written on, and so neither can the request."""
        self.left()
        if self._asked.stream and any(self._begun):
            self._connection.events(b"data: " + orjson.dumps(problem.body()) + b"\n\n")
            self._connection.end(broken=True)
        else:
            self._connection.refuse(problem)

    def _counts(self) -> Counts:
        firsts = self.answers[:: self._asked.n]
        return Counts(
            prompt=sum(answer.prompt_tokens for answer in firsts),
            cached=sum(answer.cached_tokens or 0 for answer in firsts),
            generated=sum(answer.generated for answer in self.answers),
        )


def _size(piece: Piece) -> int:
    return len(piece.text) + sum(_REPORT_BYTES * (1 + len(report.likeliest)) for report in piece.reports)
