"""Kinds of calls: one message and one answer, by callback or by coroutine; and a conversation."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from pressroom.gateway.control import ControlThreads
from pressroom.gateway.grpc._call import Call
from pressroom.gateway.grpc._door import Method
from pressroom.gateway.grpc._heads import Code
from pressroom.gateway.grpc._refusing import refuse
from pressroom.gateway.problems import Problem

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Messages of a conversation that wait for their turn.
_AHEAD = 64
#: What a message of a method that asks no model may have: they are a name or two.
SMALL = 1 << 16


class Cancellable(Protocol):
    """What is done for a call, and can be stopped."""

    def cancel(self) -> object: ...


class Refusal(Exception):
    """A call ends with an error."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Unary:
    """The handler of a call with one message. `answer` gets it, and gives what stops the work; it may have answered
    already."""

    __slots__ = ("_answer", "_call", "_data", "_work")
    hurries = True

    def __init__(self, call: Call, answer: Callable[[Call, bytes], Cancellable | None]) -> None:
        self._call = call
        self._answer = answer
        self._data: bytes | None = None
        self._work: Cancellable | None = None

    def message(self, data: bytes) -> None:
        if self._data is not None:
            self._call.refuse(Code.INTERNAL, "This method takes one message, and got another one.")
            return
        self._data = data
        if len(data) > SMALL:
            self._call.keep(len(data))  # it lives on in what is asked of the engine

    def no_more(self) -> None:
        data = self._data
        if data is None:
            self._call.end(Code.INTERNAL, "This method takes one message, and got none.")
            return
        self._data = b""
        self._work = self._answer(self._call, data)

    def gone(self) -> None:
        if self._work is not None:
            self._work.cancel()

    def slow(self) -> None:
        """One answer is no more than one answer."""

    def ready(self) -> None: ...

    def stop(self) -> None:
        """Its answer is on the way."""


def by_coroutine(method: Callable[[Call, bytes], Awaitable[bytes]], *, open: bool = False) -> Method:
    """A method whose answer a coroutine finds. It raises Refusal for an error. An `open` one is for everybody."""

    async def answered(call: Call, data: bytes) -> None:
        try:
            call.reply(await method(call, data))
        except Refusal as error:
            refuse(call, error.problem)
        except Exception:  # the edge of the server, as in Call  # noqa: BLE001
            _log.exception("a gRPC call failed")
            call.end(Code.INTERNAL, "The gateway failed on this call; its log says why.")

    def begun(call: Call, data: bytes) -> Cancellable:
        return asyncio.get_running_loop().create_task(answered(call, data))

    return Method(lambda call: Unary(call, begun), SMALL, open)


class Conversation:
    """The handler of a call whose answers a coroutine gives, one or many for each message or for none. `stopping` says
    that it should come to its end."""

    hurries = False

    def __init__(self, call: Call, serve: Callable[[Conversation], Awaitable[None]]) -> None:
        self._call = call
        self._messages: deque[bytes] = deque()
        self._closed = False
        self.stopping = False
        self._free = True
        self._changed = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(serve))

    async def requests(self) -> AsyncIterator[bytes]:
        """The messages of the client."""
        while True:
            while not self._messages:
                if self._closed or self.stopping:
                    return
                await self._wait()
            if len(self._messages) == _AHEAD:
                self._call.resume()
            data = self._messages.popleft()
            self._call.keep(-len(data))
            yield data

    async def send(self, data: bytes) -> None:
        """The next message of the answer, when the client has taken those before."""
        while not self._free:
            await self._wait()
        self._call.send(data)

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _run(self, serve: Callable[[Conversation], Awaitable[None]]) -> None:
        try:
            await serve(self)
            self._call.end()
        except Refusal as error:
            refuse(self._call, error.problem)
        except Exception:  # the edge of the server, as in Call  # noqa: BLE001
            _log.exception("a gRPC call failed")
            self._call.end(Code.INTERNAL, "The gateway failed on this call; its log says why.")

    def message(self, data: bytes) -> None:
        self._messages.append(data)
        self._call.keep(len(data))
        if len(self._messages) >= _AHEAD:
            self._call.pause()
        self._changed.set()

    def no_more(self) -> None:
        self._closed = True
        self._changed.set()

    def gone(self) -> None:
        self._task.cancel()

    def slow(self) -> None:
        self._free = False

    def ready(self) -> None:
        self._free = True
        self._changed.set()

    def stop(self) -> None:
        self.stopping = True
        self._changed.set()

    async def pause(self, seconds: float) -> None:
        """Wait, but not longer than until it should end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.stopping:
                    await self._wait()


async def called(threads: ControlThreads, call: Callable[[], T]) -> T:
    """What a call gives that may block.

    Raises:
        Refusal: it gave a problem.
    """
    future: asyncio.Future[T | Problem] = asyncio.get_running_loop().create_future()

    def done(found: T | Problem) -> None:
        if not future.done():
            future.set_result(found)

    threads.run(call, done)
    found = await future
    if isinstance(found, Problem):
        raise Refusal(found)
    return found
