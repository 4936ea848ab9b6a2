"""The work of a feed: take messages, ask the gateway, write the answers, and only then let the messages go.

Whatever ends this process, on purpose or not, a message that was not answered comes again. What is done with each:

    answered                              written to the answers, acknowledged
    refused (400 and its like)            written to the errors with the reason, acknowledged
    the engine failed (5xx, cut off)      given back, to come again a little later; after `max_deliveries` to the errors
    nobody answers (429, 503, no gateway) held, and asked again with growing pauses for as long as it takes
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from pressroom.gateway.feeds._answers import Answer, Problem, problem_of, refusal
from pressroom.gateway.feeds._asking import Exchange, Gateway, Lost, Reply
from pressroom.gateway.feeds._headers import carried, trace_lines
from pressroom.gateway.feeds._requests import Refused, Request, own_id, read_request
from pressroom.gateway.feeds.base import FeedError, FeedSettings, Message, Outgoing, Sink, Source, TooLargeError
from pressroom.kernel import rights

_log = logging.getLogger(__name__)

# Pauses before a request is sent again that nobody could take.
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 30.0
# How long a message whose engine failed stays away, times the number of its deliveries.
_AWAY_S = 1.0
# The engine is not there: it starts, sleeps, is full, or the deployment is being replaced.
_WAIT = frozenset({408, 409, 425, 429, 503})
_GONE = "model_not_found"
# The gateway does not let this feed in: no message will be answered.
_LOCKED_OUT = frozenset({401, 403})


@dataclass(kw_only=True, slots=True)
class Counts:
    """What a feed has done so far. `returned` messages come again; `waited` counts tries that nobody could take."""

    received: int = 0
    answered: int = 0
    refused: int = 0
    returned: int = 0
    waited: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_dict(self) -> dict[str, int]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


class _Given(Exception):
    """The message goes back to the broker."""


class FeedWorker:
    """Works until `stop`. `url` is the gateway's, `key` what lets the feed in there; the errors go to `errors`, or to
    the answers where it is None."""

    def __init__(
        self,
        source: Source,
        sink: Sink,
        *,
        url: str,
        model: str,
        key: str = "",
        settings: FeedSettings,
        errors: Sink | None = None,
        text_as: str = "chat",
        stream: bool = False,
        keep_body: bool = False,
    ) -> None:
        self.counts = Counts()
        self._source = source
        self._sink = sink
        self._errors = errors
        self._url = url
        self._key = key
        self._model = model
        self._settings = settings
        self._text_as = text_as
        self._stream = stream
        self._keep_body = keep_body
        self._held: dict[asyncio.Task[None], Message] = {}
        self._stopping = asyncio.Event()
        self._failed: FeedError | None = None
        self._complained = ""

    def stop(self) -> None:
        """Take no more messages, finish those that are being answered, give back those that wait, and return."""
        self._stopping.set()

    async def run(self, started: Callable[[], None] | None = None) -> Counts:
        """Connect, tell `started`, and work until `stop`.

        Raises:
            FeedError: the broker or the gateway does not let this feed work. No message is lost.
        """
        sinks = [self._sink, *([self._errors] if self._errors is not None else [])]
        touching: asyncio.Task[None] | None = None
        gateway = Gateway(self._url, key=self._key)
        try:
            for sink in sinks:
                await sink.open()
            await self._source.open()
            if started is not None:
                started()
            touching = asyncio.create_task(self._touch())
            await self._work(gateway)
        finally:
            # Also when it is cancelled in the middle: what is held is let go of, and the broker gives it to others.
            for task in self._held:
                task.cancel()
            if touching is not None:
                touching.cancel()
            await asyncio.gather(*self._held, return_exceptions=True)
            gateway.close()
            await self._source.close()
            for sink in sinks:
                await sink.close()
        if self._failed is not None:
            raise self._failed
        return self.counts

    async def _work(self, gateway: Gateway) -> None:
        while not self._stopping.is_set():
            if not await self._room():
                break
            try:
                messages = await self._source.receive(self._settings.concurrency - len(self._held))
            except FeedError as error:
                self._fail(error)
                break
            for message in messages:
                self.counts.received += 1
                task = asyncio.create_task(self._answer(gateway, message))
                self._held[task] = message
                self.counts.in_flight = len(self._held)
                task.add_done_callback(self._done)
        while self._held:
            await asyncio.wait(self._held)

    async def _room(self) -> bool:
        """Wait until a request may begin; False where the end comes first."""
        while len(self._held) >= self._settings.concurrency:
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([stopping, *self._held], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if self._stopping.is_set():
                return False
        return True

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._held[task]
        self.counts.in_flight = len(self._held)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, FeedError):
                _log.error("a message could not be worked on", exc_info=error)
                error = FeedError(f"a fault of the feed: {type(error).__name__}: {error}")
            self._fail(error)

    def _fail(self, error: FeedError) -> None:
        self._failed = self._failed or error
        self.stop()

    async def _touch(self) -> None:
        """Tell the broker that what is held is worked on."""
        while True:
            await asyncio.sleep(self._settings.ack_wait_s / 3)
            for message in list(self._held.values()):
                await self._source.touch(message)

    async def _answer(self, gateway: Gateway, message: Message) -> None:
        began = time.monotonic()
        try:
            if message.deliveries > self._settings.max_deliveries:
                raise Refused(f"it was delivered {message.deliveries - 1} times and never answered")
            request = read_request(message, model=self._model, text_as=self._text_as, stream=self._stream)
            problem = await self._ask(gateway, message, request, began)
            name = request.id
        except Refused as error:
            problem, name = Problem(message=str(error), code="message_refused"), own_id(message)
        except _Given as error:
            if message.deliveries < self._settings.max_deliveries or self._stopping.is_set():
                self.counts.returned += 1
                await self._source.nack(message, 0 if self._stopping.is_set() else _AWAY_S * message.deliveries)
                return
            problem, name = Problem(message=str(error), status=502, type="server_error"), own_id(message)
        if problem is None:
            self.counts.answered += 1
        else:
            self.counts.refused += 1
            await self._refuse(message, name, problem)
        await self._source.ack(message)

    async def _ask(self, gateway: Gateway, message: Message, request: Request, began: float) -> Problem | None:
        """Have the request answered and the answer written; a Problem where it never will be.

        Raises:
            _Given: not now.
        """
        tries = 0
        while True:
            exchange = gateway.ask(request, trace_lines(message.headers))
            try:
                reply = await exchange.reply()
                if reply.status == 200:
                    await self._write(message, request, reply, exchange, began)
                    return None
                body = await exchange.body()
            except Lost as error:
                if error.reached:
                    raise _Given(str(error)) from error
                wait_s, said = None, str(error)
            else:
                problem = problem_of(reply.status, body)
                if reply.status in _LOCKED_OUT:
                    raise FeedError(
                        f"the gateway does not let this feed in: {problem.message}",
                        hint=rights.NEEDS_KEY if reply.status == 401 else "",
                        status=reply.status,
                    ) from None
                if reply.status == 429 and problem.type == "tokens" and reply.retry_after_s is None:
                    return problem  # it alone asks for more than the key may use in a minute
                if reply.status not in _WAIT and problem.code != _GONE:
                    if reply.status >= 500:
                        raise _Given(problem.message)
                    return problem
                wait_s, said = reply.retry_after_s, problem.message
            finally:
                exchange.close()
            self._complain(said)
            self.counts.waited += 1
            await self._pause(tries, wait_s)
            tries += 1

    async def _pause(self, tries: int, wait_s: int | None) -> None:
        """Wait before the next try, or raise _Given when the feed ends meanwhile."""
        growing = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 10)) * random.uniform(0.75, 1.25)  # noqa: S311
        pause_s = growing if wait_s is None else max(min(growing, 1.0), min(wait_s, _LONGEST_PAUSE_S))
        try:
            await asyncio.wait_for(self._stopping.wait(), pause_s)
        except TimeoutError:
            return
        raise _Given("the feed ended before anybody could answer")

    async def _write(self, message: Message, request: Request, reply: Reply, exchange: Exchange, began: float) -> None:
        key = f"{self._settings.group}:{message.key}"
        answer = Answer(
            id=request.id,
            model=self._model,
            version=reply.version,
            deliveries=message.deliveries,
            keep_body=self._keep_body,
        )
        if not reply.streamed:
            body = await exchange.body()
            try:
                written = answer.whole(body, time.monotonic() - began)
            except ValueError as error:
                raise _Given(str(error)) from error
            await self._publish(message, written, key)
            self._count(answer.usage)
            return
        ttft_s: float | None = None
        async for record in exchange.events():
            if "error" in record:
                raise _Given(str((record["error"] or {}).get("message", "the engine failed")))
            try:
                piece = answer.piece(record)
            except (KeyError, TypeError, AttributeError) as error:
                raise _Given(f"an event of the answer is not one: {error!r}") from error
            if piece is not None:
                if ttft_s is None:
                    ttft_s = time.monotonic() - began
                await self._publish(message, piece, "")
        await self._publish(message, answer.final(time.monotonic() - began, ttft_s), key)
        self._count(answer.usage)

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self.counts.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.counts.completion_tokens += int(usage.get("completion_tokens") or 0)

    async def _publish(self, message: Message, data: bytes, key: str) -> None:
        out = Outgoing(
            data=data,
            key=key,
            headers={**carried(message.headers), "content-type": "application/json"},
            reply=message.reply,
            partition_key=message.partition_key,
        )
        try:
            await self._sink.publish(out)
        except TooLargeError as error:
            raise Refused(f"its answer is too large for the broker: {error.message}") from error

    async def _refuse(self, message: Message, name: str | int, problem: Problem) -> None:
        _log.warning("message %s was refused: %s", message.key, problem.message)
        sinks = [self._sink] if self._errors is None else [self._errors, *([self._sink] if message.reply else [])]
        for sink in sinks:
            out = Outgoing(
                data=refusal(message, name, self._model, problem),
                key=f"{self._settings.group}:error:{message.key}",
                headers={**carried(message.headers), "content-type": "application/json"},
                reply=message.reply if sink is self._sink else "",
                partition_key=message.partition_key,
            )
            try:
                await sink.publish(out)
            except TooLargeError:
                short = refusal(message, name, self._model, problem, quote=False)
                await sink.publish(replace(out, data=short, headers={"content-type": "application/json"}))

    def _complain(self, said: str) -> None:
        if said != self._complained:
            self._complained = said
            _log.warning("nobody answers, the feed waits: %s", said)
