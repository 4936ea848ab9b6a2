"""NATS: a durable pull consumer of JetStream, or plain subjects with a queue group where nothing keeps the messages.

With JetStream a message is acknowledged after its answer was kept, and an answer carries `Nats-Msg-Id`, so that the
second answer to a message that was delivered twice is dropped by the server. Without (`durable` off) answers go to the
reply subject of a request, or to the subject of the feed; what is delivered while no feed runs is lost, as NATS has it.

Credentials: `NATS_CREDS` or `NATS_NKEY` (files), or `NATS_USER` with `NATS_PASSWORD` or `NATS_PASSWORD_FILE`, or
`NATS_TOKEN` or `NATS_TOKEN_FILE`; `NATS_CA` names the certificates of who may sign for the server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from typing import TYPE_CHECKING, Any

from pressroom.gateway.feeds.backends._nats_link import SETTLE_S, Link
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
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

_log = logging.getLogger(__name__)

_SUBJECT = re.compile(r"[^\s.*>]+(?:\.[^\s.*>]+)*")
_PATTERN = re.compile(r"(?:\*|[^\s.*>]+)(?:\.(?:\*|[^\s.*>]+))*(?:\.>)?|>")
_GROUP = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PULL_S = 1.0
_CALM_S = 0.1
# Messages of a plain subject that wait for a place; beyond them the newest are dropped, as NATS does with slow readers.
_WAITING = 4_096


class Backend(Broker):
    """NATS."""

    fleeting = True

    def check(self, address: Address) -> None:
        if not _PATTERN.fullmatch(address.name) or address.name.startswith("$"):
            raise FeedAddressError(
                f"{address.name!r} is not a subject of NATS", hint="Words with dots between them, as requests.en."
            )

    def source(self, address: Address, settings: FeedSettings) -> Source:
        if not _GROUP.fullmatch(settings.group):
            raise FeedAddressError(
                f"{settings.group!r} cannot be the name of a consumer", hint="Letters, digits, - and _, at most 64."
            )
        link = Link(address, self.environ)
        return _JetStreamSource(link, settings) if settings.durable else _PlainSource(link, settings)

    def sink(self, address: Address, settings: FeedSettings) -> Sink:
        if not _SUBJECT.fullmatch(address.name):
            raise FeedAddressError(
                f"answers cannot be written to {address.name!r}", hint="A pattern with * or > can only be read from."
            )
        link = Link(address, self.environ)
        return _JetStreamSink(link) if settings.durable else _PlainSink(link)

    def overlap(self, read: str, written: str) -> bool:
        pattern, words = read.split("."), written.split(".")
        if pattern[-1] == ">":
            if len(words) < len(pattern):
                return False
            pattern, words = pattern[:-1], words[: len(pattern) - 1]
        return len(pattern) == len(words) and all(own in ("*", word) for own, word in zip(pattern, words, strict=True))


class _JetStreamSource(Source):
    """Own requests for messages instead of the library's `fetch`: that takes a message with a header called Status for
    one of the server's own."""

    def __init__(self, link: Link, settings: FeedSettings) -> None:
        self._link = link
        self._settings = settings
        self._stream = ""
        self._inbox = ""
        self._came: asyncio.Queue[Msg] = asyncio.Queue()
        self._asked_until = 0.0
        self._outstanding = 0
        self._subscription: Any = None
        self._gone = False

    async def open(self) -> None:
        link, settings = self._link, self._settings
        await link.open()
        from nats import errors
        from nats.js import api
        from nats.js import errors as js_errors

        self._stream = await link.stream()
        wanted = api.ConsumerConfig(
            durable_name=settings.group,
            filter_subject=link.subject,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=settings.ack_wait_s,
            max_ack_pending=max(1000, 2 * settings.concurrency),
        )
        try:
            try:
                found = (await link.js.consumer_info(self._stream, settings.group)).config
            except js_errors.NotFoundError:
                found = wanted
            else:
                if found.filter_subject != link.subject or found.ack_policy != api.AckPolicy.EXPLICIT:
                    raise FeedError(
                        f"the stream {self._stream} has another consumer called {settings.group}, for "
                        f"{found.filter_subject or 'all its subjects'}",
                        hint="Choose another name with --group.",
                    )
            # Also where it exists: the time to acknowledge is brought in line, what else it was made with is kept.
            await link.js.add_consumer(self._stream, found.evolve(ack_wait=settings.ack_wait_s))
        except (js_errors.Error, errors.Error, TimeoutError) as error:
            raise FeedError(f"{link.address}: the server makes no consumer: {error}", hint="See its log.") from error
        self._inbox = link.client.new_inbox()
        self._subscription = await link.client.subscribe(self._inbox, cb=self._take)

    async def _take(self, message: Msg) -> None:
        if message.reply.startswith("$JS.ACK."):
            self._outstanding -= 1
            self._came.put_nowait(message)
            return
        # From the server itself: the request is over, or it knows no such consumer.
        self._outstanding = 0
        self._asked_until = 0.0
        status = (message.headers or {}).get("Status", "")
        described = (message.headers or {}).get("Description", "")
        if status == "503" or (status == "409" and "deleted" in described.lower()):
            self._gone = True
        if status != "408":  # it will not wait, for whatever reason: do not ask it in a tight loop
            await asyncio.sleep(_CALM_S)
        self._came.put_nowait(message)

    async def receive(self, most: int) -> list[Message]:
        if self._gone:
            await self._look_for_consumer()
        if self._came.empty() and (self._outstanding <= 0 or time.monotonic() >= self._asked_until):
            await self._ask_for(most)
        try:
            came = [await asyncio.wait_for(self._came.get(), _PULL_S + 0.25)]
        except TimeoutError:
            return []
        while len(came) < most and not self._came.empty():
            came.append(self._came.get_nowait())
        return [self._read(message) for message in came if message.reply.startswith("$JS.ACK.")]

    async def _ask_for(self, most: int) -> None:
        from nats import errors

        client = self._link.client
        if not client.is_connected:
            return  # the server would get all of these at once when it is back
        asked = json.dumps({"batch": most, "expires": int(_PULL_S * 1e9)}).encode()
        try:
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._settings.group}", asked, self._inbox)
        except (errors.Error, OSError):
            return
        self._outstanding = most
        self._asked_until = time.monotonic() + _PULL_S + 0.25

    async def _look_for_consumer(self) -> None:
        from nats.js import errors as js_errors

        self._gone = False
        link = self._link
        try:
            await link.until_settled(lambda: _unless_missing(link.js, self._stream, self._settings.group))
        except js_errors.NotFoundError:
            raise FeedError(
                f"{link.address}: the consumer {self._settings.group} of the stream {self._stream} is gone",
                hint="Somebody removed it, or the stream. Start the feed again to make a new one.",
            ) from None

    def _read(self, message: Msg) -> Message:
        about = message.metadata
        headers = dict(message.headers or {})
        place = f"{about.stream}:{about.sequence.stream}"
        # With its time: a stream that is made anew counts from one again, and its answers are no duplicates.
        return Message(
            key=f"{place}:{about.timestamp.timestamp():.6f}",
            id=headers.get("Nats-Msg-Id", "") or place,
            data=message.data,
            headers=headers,
            deliveries=about.num_delivered,
            receipt=message,
        )

    async def ack(self, message: Message) -> None:
        from nats import errors

        reply = message.receipt.reply
        try:
            # Waits until the server has it: one that is lost would bring the message again.
            await self._link.client.request(reply, b"+ACK", timeout=SETTLE_S)
        except (FeedError, errors.Error, TimeoutError, OSError) as error:
            _log.warning("%s: message %s may come again: %s", self._link.address, message.key, error)

    async def nack(self, message: Message, delay_s: float) -> None:
        await self._tell(message, b"-NAK " + json.dumps({"delay": int(delay_s * 1e9)}).encode() if delay_s else b"-NAK")

    async def touch(self, message: Message) -> None:
        await self._tell(message, b"+WPI")

    async def _tell(self, message: Message, what: bytes) -> None:
        """Without an answer: where it is lost, the message comes again when its time is over."""
        from nats import errors

        try:
            await self._link.client.publish(message.receipt.reply, what)
        except (FeedError, errors.Error, OSError) as error:
            _log.debug("%s: %r for %s was not sent: %s", self._link.address, what, message.key, error)

    async def close(self) -> None:
        if self._subscription is not None:
            from nats import errors

            subscription, self._subscription = self._subscription, None
            try:
                await subscription.unsubscribe()
            except (errors.Error, OSError) as error:
                _log.debug("%s: %s", self._link.address, error)
            while not self._came.empty():
                late = self._came.get_nowait()
                if late.reply.startswith("$JS.ACK."):
                    await self.nack(self._read(late), 0)
        await self._link.close()


async def _unless_missing(js: JetStreamContext, stream: str, consumer: str) -> None:
    """Look a consumer up; NotFoundError comes out wrapped in nothing that is tried again."""
    await js.consumer_info(stream, consumer)


class _JetStreamSink(Sink):
    def __init__(self, link: Link) -> None:
        self._link = link

    async def open(self) -> None:
        await self._link.open()
        await self._link.stream()

    async def publish(self, message: Outgoing) -> None:
        from nats import errors
        from nats.js import errors as js_errors

        headers = dict(message.headers)
        if message.key:
            headers["Nats-Msg-Id"] = message.key
        try:
            await self._link.until_settled(
                lambda: self._link.js.publish(self._link.subject, message.data, headers=headers)
            )
        except errors.MaxPayloadError:
            raise TooLargeError(f"{len(message.data)} bytes, over the server's max_payload") from None
        except js_errors.BadRequestError as error:
            if "size" in str(error).lower():
                raise TooLargeError(f"{len(message.data)} bytes, over what the stream takes") from error
            raise FeedError(f"{self._link.address} takes no answers: {error}", hint="See its log.") from error

    async def close(self) -> None:
        await self._link.close()


class _PlainSource(Source):
    def __init__(self, link: Link, settings: FeedSettings) -> None:
        self._link = link
        self._group = settings.group
        self._count = 0
        self._run = f"{time.time_ns():x}"
        self._came: asyncio.Queue[Message] = asyncio.Queue(_WAITING)
        self._again: set[asyncio.TimerHandle] = set()
        self._subscription: Any = None

    async def open(self) -> None:
        await self._link.open()
        client = self._link.client
        self._subscription = await client.subscribe(self._link.subject, queue=self._group, cb=self._take)
        await client.flush()

    async def _take(self, message: Msg) -> None:
        self._count += 1
        headers = dict(message.headers or {})
        taken = Message(
            key=f"{self._run}:{self._count}",
            id=headers.get("Nats-Msg-Id", ""),
            data=message.data,
            headers=headers,
            reply=message.reply,
        )
        # Waits where there is no room: the library's own queue fills up then, and it drops what is over its limit.
        await self._came.put(taken)

    async def receive(self, most: int) -> list[Message]:
        self._link.client  # noqa: B018  raises where it is over
        try:
            found = [await asyncio.wait_for(self._came.get(), _PULL_S)]
        except TimeoutError:
            return []
        while len(found) < most and not self._came.empty():
            found.append(self._came.get_nowait())
        return found

    async def ack(self, message: Message) -> None:
        """Nothing to settle: the server has forgotten it."""

    async def touch(self, message: Message) -> None:
        """Nobody else would get it."""

    async def nack(self, message: Message, delay_s: float) -> None:
        def again() -> None:
            message.deliveries += 1
            self._again.discard(handle)
            if not self._came.full():
                self._came.put_nowait(message)

        handle = asyncio.get_running_loop().call_later(delay_s, again)
        self._again.add(handle)

    async def close(self) -> None:
        for handle in self._again:
            handle.cancel()
        if self._subscription is not None:
            from nats import errors

            subscription, self._subscription = self._subscription, None
            try:
                await subscription.unsubscribe()
            except (errors.Error, OSError) as error:
                _log.debug("%s: %s", self._link.address, error)
        await self._link.close()


class _PlainSink(Sink):
    def __init__(self, link: Link) -> None:
        self._link = link

    async def open(self) -> None:
        await self._link.open()

    async def publish(self, message: Outgoing) -> None:
        from nats import errors

        subject = message.reply or self._link.subject
        client = self._link.client

        async def write() -> None:
            await client.publish(subject, message.data, headers=dict(message.headers))
            await client.flush(timeout=int(SETTLE_S))

        try:
            await self._link.until_settled(write)
        except errors.MaxPayloadError:
            raise TooLargeError(f"{len(message.data)} bytes, over the server's max_payload") from None

    async def close(self) -> None:
        await self._link.close()
