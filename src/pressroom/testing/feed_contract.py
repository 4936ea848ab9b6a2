"""What every message broker must keep to, as tests: subclass `FeedContract`, say which and where, and run pytest.

class TestMyBroker(FeedContract):
    scheme = "mine"

    @pytest.fixture
    def fresh(self, server) -> Callable[[], Address]:   # makes an empty subject or topic on a running server
        ...
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from pressroom.gateway.feeds import (
    Address,
    FeedAddressError,
    FeedError,
    FeedSettings,
    Message,
    Outgoing,
    Sink,
    Source,
    TooLargeError,
    broker_for,
)

# Only ends a test that fails.
_PATIENCE_S = 60.0


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def collect(source: Source, count: int, *, most: int = 16) -> list[Message]:
    """So many messages; fails the test where they do not come."""
    found: list[Message] = []
    deadline = time.monotonic() + _PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} messages came"
        found += await source.receive(min(most, count - len(found)))
    return found


async def silence(source: Source) -> list[Message]:
    """What comes in two calls of `receive`, the second of which begins after the first found nothing."""
    return [*await source.receive(16), *await source.receive(16)]


class FeedContract(ABC):
    """The checks. `scheme` is the name of the broker; the fixture `fresh` makes an empty place for messages."""

    scheme: ClassVar[str]
    #: A name that the broker cannot have.
    bad_name: ClassVar[str]
    #: Bytes that are too many for one message; 0 where the broker has no such limit.
    too_many: ClassVar[int] = 0
    #: Seconds after which the broker takes a worker for lost.
    ack_wait_s: ClassVar[float] = 2.0
    environ: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture
    def fresh(self) -> Callable[[], Address]:
        raise NotImplementedError("say where: override the fixture `fresh`")

    def settings(self, group: str = "contract") -> FeedSettings:
        return FeedSettings(group=group, ack_wait_s=self.ack_wait_s)

    def source(self, address: Address, group: str = "contract") -> Source:
        return broker_for(self.scheme, self.environ).source(address, self.settings(group))

    def sink(self, address: Address) -> Sink:
        return broker_for(self.scheme, self.environ).sink(address, self.settings())

    async def fill(self, address: Address, count: int, *, key: str = "fill") -> None:
        sink = self.sink(address)
        await sink.open()
        for number in range(count):
            await sink.publish(Outgoing(data=b"%d" % number, key=f"{key}:{number}", headers={"X-Number": str(number)}))
        await sink.close()

    def test_what_is_written_is_read_with_its_headers(self, fresh: Callable[[], Address]) -> None:
        async def work() -> None:
            address = fresh()
            await self.fill(address, 3)
            source = self.source(address)
            await source.open()
            found = await collect(source, 3)
            assert sorted(message.data for message in found) == [b"0", b"1", b"2"]
            for message in found:
                assert message.headers["X-Number"].encode() == message.data
                assert message.deliveries == 1 and message.key
                await source.touch(message)
                await source.ack(message)
            assert len({message.key for message in found}) == 3
            assert await silence(source) == []
            await source.close()
            await source.close()

        _run(work())

    def test_what_was_not_acknowledged_comes_again_and_nothing_else(self, fresh: Callable[[], Address]) -> None:
        async def work() -> None:
            address = fresh()
            await self.fill(address, 6)
            source = self.source(address)
            await source.open()
            first = await collect(source, 6)
            # The last two, and so in the middle of what is not done: no gap may be taken for done.
            for message in first[4:]:
                await source.ack(message)
            await source.close()
            source = self.source(address)
            await source.open()
            again = await collect(source, 4)
            # Where acknowledged ones come again, too, they may come before.
            while not {message.key for message in again} >= {message.key for message in first[:4]}:
                again += await collect(source, 1)
            for message in again:
                await source.ack(message)
            for message in await silence(source):
                await source.ack(message)
            await source.close()
            # One more shows that the source does deliver.
            await self.fill(address, 1, key="last")
            source = self.source(address)
            await source.open()
            [last] = await collect(source, 1)
            assert last.key not in {message.key for message in first}
            await source.ack(last)
            assert await silence(source) == [], "all others are acknowledged"
            await source.close()

        _run(work())

    def test_one_that_is_given_back_comes_again_and_says_so(self, fresh: Callable[[], Address]) -> None:
        async def work() -> None:
            address = fresh()
            await self.fill(address, 1)
            source = self.source(address)
            await source.open()
            [message] = await collect(source, 1)
            await source.nack(message, 0.2)
            [again] = await collect(source, 1)
            assert (again.key, again.data, again.deliveries) == (message.key, message.data, 2)
            await source.ack(again)
            assert await silence(source) == []
            await source.close()

        _run(work())

    def test_no_more_come_than_were_asked_for(self, fresh: Callable[[], Address]) -> None:
        async def work() -> None:
            address = fresh()
            await self.fill(address, 7)
            source = self.source(address)
            await source.open()
            found: list[Message] = []
            while len(found) < 7:
                several = await source.receive(3)
                assert len(several) <= 3
                found += several
            assert len({message.key for message in found}) == 7
            await source.close()

        _run(work())

    def test_one_that_is_worked_on_for_long_stays_with_its_worker(self, fresh: Callable[[], Address]) -> None:
        async def work() -> None:
            address = fresh()
            await self.fill(address, 1)
            source = self.source(address)
            await source.open()
            [message] = await collect(source, 1)
            until = time.monotonic() + 2 * self.ack_wait_s
            while time.monotonic() < until:
                await source.touch(message)
                assert await source.receive(1) == []
            await source.ack(message)
            await source.close()

        _run(work())

    def test_each_group_gets_everything(self, fresh: Callable[[], Address]) -> None:
        async def work() -> None:
            address = fresh()
            await self.fill(address, 4)
            for group in ("one", "two"):
                source = self.source(address, group)
                await source.open()
                assert len(await collect(source, 4)) == 4
                await source.close()

        _run(work())

    def test_those_of_a_group_share(self, fresh: Callable[[], Address]) -> None:
        async def work() -> None:
            address = fresh()
            workers = [self.source(address), self.source(address)]
            for source in workers:
                await source.open()
            await self.fill(address, 10)
            found: set[str] = set()
            deadline = time.monotonic() + _PATIENCE_S
            while len(found) < 10 and time.monotonic() < deadline:
                for several, source in zip(
                    await asyncio.gather(*(source.receive(2) for source in workers)), workers, strict=True
                ):
                    for message in several:
                        found.add(message.key)
                        await source.ack(message)
            assert len(found) == 10
            for source in workers:
                await source.close()

        _run(work())

    def test_a_message_over_the_limit_is_said_and_the_next_one_goes(self, fresh: Callable[[], Address]) -> None:
        if not self.too_many:
            pytest.skip("it takes messages of any size")

        async def work() -> None:
            address = fresh()
            sink = self.sink(address)
            await sink.open()
            with pytest.raises(TooLargeError):
                await sink.publish(Outgoing(data=b"x" * self.too_many))
            await sink.publish(Outgoing(data=b"small"))
            await sink.close()
            await sink.close()
            source = self.source(address)
            await source.open()
            [message] = await collect(source, 1)
            assert message.data == b"small"
            await source.close()

        _run(work())

    def test_what_does_not_exist_is_said_at_once(self, fresh: Callable[[], Address]) -> None:
        async def work() -> None:
            missing = replace(fresh(), name="nonesuch")
            source = self.source(missing)
            with pytest.raises(FeedError, match="nonesuch"):
                await source.open()
            await source.close()

        _run(work())

    def test_nobody_there_is_said_with_the_address(self, fresh: Callable[[], Address]) -> None:
        async def work() -> None:
            nowhere = replace(fresh(), hosts=("127.0.0.1:1",))
            with pytest.raises(FeedError, match=r"127\.0\.0\.1:1"):
                await self.source(nowhere).open()

        _run(work())

    def test_a_name_it_cannot_have_is_refused(self, fresh: Callable[[], Address]) -> None:
        with pytest.raises(FeedAddressError):
            broker_for(self.scheme, self.environ).check(replace(fresh(), name=self.bad_name))
