"""One round of a benchmark: so many clients, each of which asks again as soon as it was answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from pressroom.gateway.bench._asks import Ask
from pressroom.gateway.bench._recording import Recording
from pressroom.gateway.bench.base import BenchSettings, Round

# How long requests that were begun within a round may take to end after it.
_GRACE_S = 120.0
_WARM_TOKENS = 8
# After an error a client waits before it asks again, and longer the more there are in a row.
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_TELL_S = 0.25


class Sender(Protocol):
    """Sends requests. `ended` is called once for each that was not cancelled, never before `send` returns."""

    def send(self, ended: Callable[[Ask], None], *, tokens: int) -> Ask: ...

    def cancel(self, ask: Ask) -> None: ...


class _Clients:
    """Clients at work. With `requests`, they send so many in all; without, they go on until `close`."""

    def __init__(
        self, sender: Sender, number: int, *, requests: int | None, tokens: int, heard: Callable[[Ask], None]
    ) -> None:
        self._sender = sender
        self._left = requests
        self._tokens = tokens
        self._heard = heard
        self._closed = False
        self._failed = 0
        self._number = number
        self.open: set[Ask] = set()
        #: Set when all have been answered and no more will be sent.
        self.idle = asyncio.Event()

    def start(self) -> None:
        for _ in range(self._number):
            self._next()

    def close(self) -> None:
        """Send no more."""
        self._closed = True
        self._look()

    def _next(self) -> None:
        if self._closed or self._left == 0:
            self._look()
            return
        if self._left is not None:
            self._left -= 1
        self.open.add(self._sender.send(self._ended, tokens=self._tokens))

    def _ended(self, ask: Ask) -> None:
        self.open.discard(ask)
        self._heard(ask)
        if ask.error is None:
            self._failed = 0
            self._next()
        else:
            pause = min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** min(self._failed // self._number, 10))
            self._failed += 1
            asyncio.get_running_loop().call_later(pause, self._next)
            self._look()

    def _look(self) -> None:
        if not self.open and (self._closed or self._left == 0):
            self.idle.set()


async def run_round(
    sender: Sender, clients: int, settings: BenchSettings, *, stopped: asyncio.Event, told: Callable[[int], None]
) -> Round:
    """Warm up, measure, and wait for what was begun. `stopped` ends it early; `told` hears how many requests have
    ended, a few times a second."""
    # One short request of each client first: engines prepare themselves for a number of requests at once.
    warming = _Clients(sender, clients, requests=clients, tokens=min(_WARM_TOKENS, settings.tokens), heard=_forget)
    warming.start()
    await _first_of(warming.idle, stopped)
    _cancel(sender, warming)

    began, used = time.perf_counter(), time.thread_time()
    recording = Recording(began, settings.slo)
    working = _Clients(sender, clients, requests=settings.requests, tokens=settings.tokens, heard=recording.add)
    if not stopped.is_set():
        working.start()
    until = None if settings.requests is not None else began + settings.seconds
    while not (working.idle.is_set() or stopped.is_set()):
        left = _TELL_S if until is None else until - time.perf_counter()
        if left <= 0:
            break
        await _first_of(working.idle, stopped, timeout_s=min(left, _TELL_S))
        told(recording.ended)
    interrupted = stopped.is_set() and not working.idle.is_set()
    if until is not None or interrupted:
        recording.close(time.perf_counter())
    busy = (time.thread_time() - used) / max(time.perf_counter() - began, 1e-9)
    working.close()
    if not interrupted:
        await _first_of(working.idle, stopped, timeout_s=_GRACE_S)
    unfinished = _cancel(sender, working)
    for ask in unfinished:
        recording.add_unfinished(ask)
    return recording.figures(clients=clients, busy=busy, unfinished=len(unfinished), interrupted=interrupted)


async def _first_of(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _cancel(sender: Sender, clients: _Clients) -> list[Ask]:
    clients.close()
    left = list(clients.open)
    for ask in left:
        sender.cancel(ask)
    clients.open.clear()
    return left


def _forget(ask: Ask) -> None:
    """Warming up is not measured; an error in it comes again in the round."""
