"""Sends the lines of a batch through the gateway: so many at once, patient with an engine that is busy or starting.

Who calls it brings lines and takes outcomes, both from threads; nothing gathers in between beyond what runs.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from pressroom.gateway.batches._client import Broken, Client, Reply, Unreachable
from pressroom.gateway.batches.base import BatchError, Line, Outcome
from pressroom.kernel import rights

# The engine is busy, starting or gone for a while: the whole batch waits, and no line is given up for it.
_LATER = (429, 503)
# This request failed at the engine: it is tried so many times before that is its answer.
_FAILED = (500, 502, 504)
_TRIES = 3
# A budget whose room others hold at this moment says so with a short wait; one that is spent is not waited for.
_SPENT, _SPENT_WAIT_S = "insufficient_quota", 10.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_LONGEST_ASKED_S = 300.0
# How soon a wait hears that the run is to end.
_LOOK_S = 0.1
_BLOCK_LINES = 32
_BLOCK_BYTES = 1 << 20

_END = None


class Sending:
    """One run. `stopped` ends it: what runs then is finished, and nothing new begins.

    `patience_s` is how long nothing at all may be answered, by reason of a busy engine or a gateway that is gone; None
    waits for ever. The requests are made for the key `behalf`, and `room` is what several runs together may send at
    once. With `needs_in`, a gateway that does not know the key ends the run; without, that is the answer of a line.
    """

    def __init__(
        self,
        client: Client,
        *,
        concurrency: int,
        stopped: Callable[[], bool],
        patience_s: float | None = None,
        behalf: str = "",
        room: asyncio.Semaphore | None = None,
        needs_in: bool = False,
    ) -> None:
        self._client = client
        self._concurrency = concurrency
        self._stopped = stopped
        self._patience_s = patience_s
        self._behalf = behalf
        self._room = room or asyncio.Semaphore(concurrency)
        self._needs_in = needs_in
        self._wait_until = 0.0
        self._refusals = 0
        self._heard = time.monotonic()

    async def run(self, lines: Iterator[Line], take: Callable[[list[Outcome]], None]) -> None:
        """Send `lines`; `take` gets what came of them, in the order it came. Both are called in threads, each one call
        at a time.

        Raises:
            BatchError: patience ran out; what was taken until then is good.
            PressroomError: whatever `take` or `lines` raised.
        """
        todo: asyncio.Queue[Line | None] = asyncio.Queue(self._concurrency)
        came: asyncio.Queue[Outcome | None] = asyncio.Queue(4 * self._concurrency)
        self._heard = time.monotonic()
        try:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(self._write(came, take))
                reading = tasks.create_task(self._read(lines, todo))
                workers = [tasks.create_task(self._work(todo, came)) for _ in range(self._concurrency)]
                await asyncio.gather(*workers)
                reading.cancel()  # it may wait for room in a queue that nobody empties any more
                await came.put(_END)
                await writing
        except BaseExceptionGroup as group:
            raise _first(group) from group

    async def _read(self, lines: Iterator[Line], todo: asyncio.Queue[Line | None]) -> None:
        while not self._stopped():
            block = await asyncio.to_thread(_block, lines)
            if not block:
                break
            for line in block:
                await todo.put(line)
        for _ in range(self._concurrency):
            await todo.put(_END)

    async def _work(self, todo: asyncio.Queue[Line | None], came: asyncio.Queue[Outcome | None]) -> None:
        while (line := await todo.get()) is not _END:
            outcome = await self._outcome(line)
            if outcome is None:
                return
            await came.put(outcome)

    async def _write(self, came: asyncio.Queue[Outcome | None], take: Callable[[list[Outcome]], None]) -> None:
        ended = False
        while not ended:
            outcomes = [await came.get()]
            while not came.empty():
                outcomes.append(came.get_nowait())
            ended = _END in outcomes
            found = [outcome for outcome in outcomes if outcome is not _END]
            if found:
                await asyncio.to_thread(take, found)

    async def _outcome(self, line: Line) -> Outcome | None:
        """What comes of a line; None where the run ended first."""
        tries = 0
        while await self._may_send():
            tries += 1
            try:
                async with self._room:
                    if self._stopped() or time.monotonic() < self._wait_until:  # meanwhile
                        tries -= 1
                        continue
                    reply = await self._client.post(line.path, line.body, behalf=self._behalf)
            except Unreachable as error:
                self._pause(None, f"the gateway cannot be reached: {error}")
                tries -= 1
                continue
            except Broken as error:
                if tries < _TRIES:
                    self._pause(None, f"the gateway did not answer to the end: {error}")
                    continue
                return Outcome(line, 0, error={"code": "connection_broken", "message": f"No whole answer: {error}."})
            if reply.status in _LATER and not _for_good(reply):
                self._pause(reply.retry_after_s, _said(reply))
                tries -= 1
                continue
            if reply.status == 401 and self._needs_in:
                raise BatchError(
                    f"the gateway does not let this run in: {_said(reply)}", hint=rights.NEEDS_KEY, status=401
                )
            self._heard = time.monotonic()
            if reply.status in _FAILED and tries < _TRIES:
                await self._sleep(_FIRST_PAUSE_S * 2**tries)
                continue
            self._refusals = 0
            return _answered(line, reply)
        return None

    async def _may_send(self) -> bool:
        """Wait until requests may be sent; False where none may any more."""
        while not self._stopped():
            left = self._wait_until - time.monotonic()
            if left <= 0:
                return True
            await asyncio.sleep(min(left, _LOOK_S))
        return False

    async def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopped() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LOOK_S))

    def _pause(self, asked_s: float | None, why: str) -> None:
        """Let the whole batch wait: as long as the gateway asks, or longer each time."""
        now = time.monotonic()
        if self._patience_s is not None and now - self._heard > self._patience_s:
            raise BatchError(
                f"no request was answered for {self._patience_s:.0f} s: {why}",
                hint="`press ps` shows what runs. What was answered is kept; the same command goes on from there.",
            )
        if now >= self._wait_until:  # the first of those that were refused together
            self._refusals += 1
        growing = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._refusals - 1, 10))
        wait = min(asked_s, _LONGEST_ASKED_S) if asked_s is not None else growing
        # Not all batches of a machine at the same moment.
        self._wait_until = max(self._wait_until, now + wait * random.uniform(1.0, 1.2))  # noqa: S311


def _block(lines: Iterator[Line]) -> list[Line]:
    """The next few lines."""
    block: list[Line] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line.body)
        if len(block) >= _BLOCK_LINES or size >= _BLOCK_BYTES:
            break
    return block


def _answered(line: Line, reply: Reply) -> Outcome:
    try:
        body: Any = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        error = {"code": "unreadable_answer", "message": f"The answer (status {reply.status}) is not JSON."}
        return Outcome(line, 0, reply.request_id, error=error)
    return Outcome(line, reply.status, reply.request_id, body)


def _for_good(reply: Reply) -> bool:
    """Whether it is refused for a reason that does not pass by waiting."""
    if reply.status != 429:
        return False
    error, wait_s = _error(reply), reply.retry_after_s
    if error.get("code") == _SPENT:
        return wait_s is None or wait_s > _SPENT_WAIT_S
    # It alone asks for more tokens than the key may use in a minute.
    return error.get("type") == "tokens" and wait_s is None


def _said(reply: Reply) -> str:
    return str(_error(reply).get("message") or f"status {reply.status}")[:500]


def _error(reply: Reply) -> dict[str, Any]:
    try:
        found = orjson.loads(reply.body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error behind those that a group of tasks ended with."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
