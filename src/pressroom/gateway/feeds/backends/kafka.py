"""Kafka: a consumer group whose offsets are committed in order, after the answers are acknowledged.

Messages of one partition are worked on at the same time, and end in any order; what is committed is the offset below
which all are done. So a worker that is killed loses nothing, and what it had done above that offset is done again.

Credentials: `KAFKA_USERNAME` with `KAFKA_PASSWORD` or `KAFKA_PASSWORD_FILE`, `KAFKA_SASL_MECHANISM` (PLAIN,
SCRAM-SHA-256 or SCRAM-SHA-512); `KAFKA_SECURITY_PROTOCOL` (SSL or SASL_SSL for TLS), and `KAFKA_CA` names the
certificates of who may sign for the brokers.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from pressroom.gateway.feeds.backends._kafka_client import OPEN_S, library, options, refusals, start
from pressroom.gateway.feeds.backends._kafka_offsets import Partition
from pressroom.gateway.feeds.base import (
    Address,
    Broker,
    FeedAddressError,
    FeedError,
    FeedSettings,
    Message,
    Outgoing,
    Sink,
    Source,
    TooLargeError,
)

if TYPE_CHECKING:
    from aiokafka import (
        AIOKafkaConsumer,
        AIOKafkaProducer,
        ConsumerRecord,
        TopicPartition,
    )

_log = logging.getLogger(__name__)

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_COMMIT_S = 5.0
_RECEIVE_MS = 1_000
_RETRY_S = 0.5
_LAST_COMMITS = 5
# Received and not committed, in one partition: with more than these, it waits until the oldest is done.
_WINDOW = 1_000
_FETCH_BYTES = 8 * 1024 * 1024
# How large an answer may be is the broker's to say; this only bounds what is sent to it.
_SEND_BYTES = 64 * 1024 * 1024
# A worker whose places are all taken by messages that wait does not poll, and is not dead: the heartbeat says so.
_NEVER_MS = 2**31 - 1
_ID_HEADERS = ("message-id", "correlation-id", "id")


class Backend(Broker):
    """Kafka, and what speaks its protocol."""

    def check(self, address: Address) -> None:
        if not _TOPIC.fullmatch(address.name) or address.name in (".", ".."):
            raise FeedAddressError(
                f"{address.name!r} is not a topic of Kafka", hint="Letters, digits, '.', '_' and '-', at most 249."
            )

    def source(self, address: Address, settings: FeedSettings) -> Source:
        return _KafkaSource(address, settings, self.environ)

    def sink(self, address: Address, settings: FeedSettings) -> Sink:
        return _KafkaSink(address, self.environ)


class _KafkaSource(Source):
    def __init__(self, address: Address, settings: FeedSettings, environ: Mapping[str, str]) -> None:
        self._address = address
        self._settings = settings
        self._environ = environ
        self._consumer: AIOKafkaConsumer | None = None
        self._partitions: dict[TopicPartition, Partition] = {}
        self._ready: deque[Message] = deque()
        self._polling: asyncio.Future[Any] | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._more = asyncio.Event()
        self._committer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        kafka = library()
        listener = _listener(self)
        self._consumer = kafka.AIOKafkaConsumer(
            **options(self._address, self._environ),
            group_id=self._settings.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(self._settings.ack_wait_s * 1000),
            heartbeat_interval_ms=int(self._settings.ack_wait_s * 1000 / 4),
            max_poll_interval_ms=_NEVER_MS,
            fetch_max_bytes=_FETCH_BYTES,
        )
        await start(self._consumer, self._address)
        try:
            if self._address.name not in await self._consumer.topics():
                raise FeedError(
                    f"there is no topic {self._address.name!r} at {self._address}",
                    hint=f"Make it: kafka-topics --create --topic {self._address.name}.",
                )
        except BaseException:
            await self._consumer.stop()
            self._consumer = None
            raise
        self._consumer.subscribe([self._address.name], listener=listener)
        self._committer = asyncio.create_task(self._commit_for_ever())

    async def receive(self, most: int) -> list[Message]:
        from aiokafka import errors

        assert self._consumer is not None
        if not self._ready:
            if self._polling is None:
                self._hold_back()
                self._polling = asyncio.ensure_future(self._consumer.getmany(timeout_ms=_RECEIVE_MS, max_records=most))
            # Not cancelled where it takes longer, as it does while the group divides its partitions: records in it
            # would be lost.
            done, _ = await asyncio.wait([self._polling], timeout=_RECEIVE_MS / 1000)
            if done:
                polled, self._polling = self._polling, None
                try:
                    self._take(polled.result())
                except (*refusals(), errors.InvalidSessionTimeoutError) as error:
                    raise self._refused(error) from error
                except errors.KafkaError as error:
                    _log.warning("%s: %s", self._address, error)
                    await asyncio.sleep(_RETRY_S)
            else:
                self._complain()
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def _take(self, polled: Mapping[TopicPartition, list[ConsumerRecord[bytes, bytes]]]) -> None:
        for place, records in polled.items():
            partition = self._partitions.setdefault(place, Partition())
            self._ready.extend(self._read(record, partition) for record in records if partition.take(record.offset))

    def _refused(self, error: Exception) -> FeedError:
        return FeedError(
            f"{self._address} does not let the group {self._settings.group} in: {error!r}",
            hint="Check the credentials, its rules, and --ack-wait.",
        )

    def _complain(self) -> None:
        """Raise what the group's coordinator has failed with: while it divides partitions nothing else would."""
        from aiokafka import errors

        try:
            self._consumer._coordinator.check_errors()  # type: ignore[union-attr]  # there is no public way to ask
        except errors.KafkaError as error:
            raise self._refused(error) from error

    def _hold_back(self) -> None:
        """A message that waits for long holds the commits of its partition up: do not run ahead of it for ever."""
        assert self._consumer is not None
        paused = self._consumer.paused()
        for place in self._consumer.assignment():
            held = len(self._partitions.get(place, ()))
            if held >= _WINDOW and place not in paused:
                self._consumer.pause(place)
            elif held < _WINDOW and place in paused:
                self._consumer.resume(place)

    def _read(self, record: ConsumerRecord[bytes, bytes], partition: Partition) -> Message:
        headers = {name: value.decode("utf-8", "replace") for name, value in record.headers if value is not None}
        by_name = {name.lower(): value for name, value in headers.items()}
        return Message(
            key=f"{record.topic}:{record.partition}:{record.offset}",
            id=next((by_name[name] for name in _ID_HEADERS if by_name.get(name)), ""),
            data=record.value or b"",
            headers=headers,
            partition_key=record.key,
            receipt=(partition, record.offset),
        )

    async def ack(self, message: Message) -> None:
        partition, offset = message.receipt
        if partition.finish(offset):
            self._more.set()

    async def nack(self, message: Message, delay_s: float) -> None:
        """Kafka gives nothing back: the message stays with this worker, or with whom the partition goes to."""

        def again() -> None:
            self._timers.discard(timer)
            message.deliveries += 1
            self._ready.append(message)

        timer = asyncio.get_running_loop().call_later(delay_s, again)
        self._timers.add(timer)

    async def touch(self, message: Message) -> None:
        """The heartbeat of the group is enough."""

    async def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._committer is not None:
            self._committer.cancel()
            await asyncio.gather(self._committer, return_exceptions=True)
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            for _ in range(_LAST_COMMITS):  # it fails while the group divides its partitions
                if await self._commit(consumer):
                    break
                await asyncio.sleep(_RETRY_S)
            await consumer.stop()

    async def revoked(self) -> None:
        """The group is dividing the partitions anew."""
        if self._consumer is not None:
            await self._commit(self._consumer)
        for partition in self._partitions.values():
            partition.owned = False

    async def assigned(self, places: Collection[TopicPartition]) -> None:
        """These are ours now."""
        assert self._consumer is not None
        for place in places:
            if place in self._partitions:
                self._partitions[place].resume(await self._consumer.committed(place) or 0)
        self._more.set()

    async def _commit_for_ever(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            assert self._consumer is not None
            if not await self._commit(self._consumer):
                await asyncio.sleep(_RETRY_S)
                self._more.set()

    async def _commit(self, consumer: AIOKafkaConsumer) -> bool:
        from aiokafka import errors

        if not self._partitions:
            return True
        ours = consumer.assignment()
        due = {
            place: partition.mark
            for place, partition in self._partitions.items()
            if partition.owned and place in ours and partition.mark > partition.committed
        }
        if not due:
            return True
        try:
            await asyncio.wait_for(consumer.commit(due), _COMMIT_S)
        except (errors.KafkaError, TimeoutError) as error:
            _log.warning("%s: offsets were not committed, what was answered may come again: %s", self._address, error)
            return False
        for place, mark in due.items():
            self._partitions[place].committed = max(mark, self._partitions[place].committed)
        return True


def _listener(source: _KafkaSource) -> Any:
    from aiokafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
        async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
            await source.revoked()

        async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
            await source.assigned(assigned)

    return Listener()


class _KafkaSink(Sink):
    def __init__(self, address: Address, environ: Mapping[str, str]) -> None:
        self._address = address
        self._environ = environ
        self._producer: AIOKafkaProducer | None = None

    async def open(self) -> None:
        kafka = library()
        self._producer = kafka.AIOKafkaProducer(
            **options(self._address, self._environ), acks="all", max_request_size=_SEND_BYTES
        )
        await start(self._producer, self._address)
        from aiokafka import errors

        try:
            async with asyncio.timeout(OPEN_S):
                await self._producer.partitions_for(self._address.name)
        except (errors.KafkaError, TimeoutError) as error:
            await self.close()
            raise FeedError(
                f"there is no topic {self._address.name!r} at {self._address}, or it cannot be written to: {error}",
                hint=f"Make it: kafka-topics --create --topic {self._address.name}.",
            ) from error

    async def publish(self, message: Outgoing) -> None:
        from aiokafka import errors

        headers = [(name, value.encode()) for name, value in message.headers.items()]
        while True:
            assert self._producer is not None
            try:
                await self._producer.send_and_wait(
                    self._address.name, message.data, key=message.partition_key, headers=headers
                )
            except (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError) as error:
                raise TooLargeError(f"{len(message.data)} bytes, over what the broker takes") from error
            except (*refusals(), errors.InvalidTopicError, errors.ProducerClosed) as error:
                raise FeedError(f"{self._address} takes no answers: {error!r}", hint="Check its rules.") from error
            except errors.KafkaError as error:
                _log.warning("%s: an answer was not written, once more: %s", self._address, error)
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()
