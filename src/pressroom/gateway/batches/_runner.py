"""Runs the batches of a workspace: a thread with an event loop of its own, beside the gateway in the server's process.

Everything it sends goes in at the gateway's own address, so that a batch is metered, limited and tried again as
everybody is, for the key that made it. Two batches of an owner run at once, each with so many requests as
`batch.concurrency` says, and all batches together with twice as many: the share of the engines that they can take has a
bound.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence

from pressroom.gateway.batches._batches import Batches
from pressroom.gateway.batches._carrying import Carrying, Means
from pressroom.gateway.batches._client import Client, longest_silence_s
from pressroom.gateway.batches._files import FileStore
from pressroom.gateway.batches.base import BatchRecord, Status
from pressroom.kernel import PressroomError, Settings

_log = logging.getLogger(__name__)

# Batches of one owner that run at once, and of all: one that waits for its key's rate keeps nobody else's waiting.
_OF_ONE = 2
_AT_ONCE = 32
# Looks at the database so often without being woken, for what another process wrote.
_LOOK_S = 2.0
# A batch that the disk or the database refused is tried again after this long.
_AGAIN_S = 15.0
_EXPIRE_EVERY_S = 600.0
_END_S = 20.0


class Runner:
    """From `start` to `close`. `wake` says that there is something new; from any thread."""

    def __init__(
        self,
        files: FileStore,
        batches: Batches,
        settings: Settings,
        *,
        credential: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._batches = batches
        self._settings = settings
        self._credential = credential
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken: asyncio.Event | None = None
        self._closing = False
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._running: dict[str, Carrying] = {}
        self._again_at: dict[str, float] = {}

    def start(self, url: str) -> None:
        """Begin to run batches through the gateway at `url`."""
        self._thread = threading.Thread(target=self._run, args=(url,), name="batches", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._call(lambda: self._woken.set() if self._woken is not None else None)

    def leave(self) -> None:
        """Send nothing more, and leave what runs where it is; the next server goes on with it. Returns at once."""
        self._closing = True
        for carrying in list(self._running.values()):
            carrying.leave()
        self.wake()

    def close(self) -> None:
        """As `leave`; returns when nothing runs any more."""
        self._closing = True
        if self._thread is None:
            return
        self._ready.wait(_END_S)
        self.leave()
        self._thread.join(_END_S)

    def _call(self, call: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(call)
            except RuntimeError:  # it was closed this very moment
                return

    def _run(self, url: str) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._serve(url))
        except Exception:  # the edge of the thread: the log says why, the gateway goes on  # noqa: BLE001
            _log.exception("batches do not run any more")
        finally:
            self._ready.set()

    async def _serve(self, url: str) -> None:
        self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        gateway, concurrency = self._settings.gateway, self._settings.batch.concurrency
        means = Means(
            files=self._files,
            batches=self._batches,
            client=Client(url, silence_s=longest_silence_s(gateway), key=self._credential),
            concurrency=concurrency,
            room=asyncio.Semaphore(_OF_ONE * concurrency),
            line_limit=gateway.max_body_bytes,
            clock=self._clock,
        )
        tasks: set[asyncio.Task[None]] = set()
        expire_at = 0.0
        while not self._closing:
            self._woken.clear()
            try:
                unfinished = await asyncio.to_thread(self._batches.unfinished)
                if self._loop.time() >= expire_at:
                    expire_at = self._loop.time() + _EXPIRE_EVERY_S
                    await asyncio.to_thread(self._files.expire, keep={batch.input_file for batch in unfinished})
                self._begin(means, unfinished, tasks)
            except PressroomError as error:
                _log.error("batches wait: %s", error)
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._woken.wait()
            except TimeoutError:
                continue
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        means.client.close()

    def _begin(self, means: Means, unfinished: Sequence[BatchRecord], tasks: set[asyncio.Task[None]]) -> None:
        assert self._loop is not None
        for batch in unfinished:
            carrying = self._running.get(batch.id)
            if carrying is not None:
                if batch.status is Status.CANCELLING:
                    carrying.cancel()
                continue
            if len(self._running) >= _AT_ONCE or self._again_at.get(batch.id, 0.0) > self._loop.time():
                continue
            if sum(one.owner == batch.owner for one in self._running.values()) >= _OF_ONE:
                continue
            carrying = self._running[batch.id] = Carrying(means, batch)
            task = self._loop.create_task(self._carry(carrying, batch), name=batch.id)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _carry(self, carrying: Carrying, batch: BatchRecord) -> None:
        assert self._loop is not None and self._woken is not None
        try:
            await carrying.run()
            self._again_at.pop(batch.id, None)
        except Exception as error:  # the edge of one batch: the others go on  # noqa: BLE001
            self._again_at[batch.id] = self._loop.time() + _AGAIN_S
            known = isinstance(error, PressroomError)
            _log.error("%s waits %.0f s: %s", batch.id, _AGAIN_S, error, exc_info=None if known else error)
        finally:
            del self._running[batch.id]
            self._woken.set()
