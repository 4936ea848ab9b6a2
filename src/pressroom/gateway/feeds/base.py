"""Messages in, messages out: what a feed needs of a message broker.

A feed reads requests from a `Source`, asks the gateway, writes each answer to a `Sink`, and only then acknowledges the
request: at least once, never lost. A broker is one file under `gateway/feeds/backends/` with a subclass of `Broker`
called `Backend`; its file name is the scheme of its addresses. Other distributions join through the entry point group
`pressroom.feeds`. `pressroom.testing.feed_contract` is the check that every broker passes.

    PressroomError
    └── FeedError            a feed cannot go on as it was asked to
        ├── FeedAddressError an address cannot be used
        └── TooLargeError    the broker takes no message of this size
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pressroom.kernel import PressroomError


class FeedError(PressroomError):
    code = "feed"


class FeedAddressError(FeedError):
    code = "feed_address"


class TooLargeError(FeedError):
    code = "too_large"


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where messages are: `scheme://host:port/name`, without credentials. `hosts` as "host:port", or "host" where no
    port was given, at least one. `name` is the subject or topic."""

    scheme: str
    hosts: tuple[str, ...]
    name: str

    def hosts_with(self, port: int) -> list[str]:
        """The hosts, each with a port: this one where none was given."""
        return [host if ":" in host.rpartition("]")[2] else f"{host}:{port}" for host in self.hosts]

    def __str__(self) -> str:
        return f"{self.scheme}://{','.join(self.hosts)}/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedSettings:
    """How a feed works. `group` names those who share the messages of a subject between them."""

    group: str
    #: Requests that are worked on at once; no more messages than these are held.
    concurrency: int = 8
    #: A message that was delivered more often than this goes to the errors.
    max_deliveries: int = 5
    #: Seconds after which the broker gives the message of a worker that was lost to another one.
    ack_wait_s: float = 30.0
    #: Whether the broker keeps the messages. Without, only brokers that can do so work, and at most once.
    durable: bool = True


@dataclass(kw_only=True, slots=True, eq=False)
class Message:
    """One request as it came. `key` is unique among the messages of the source, and the same each time it is delivered;
    `id` is what its sender calls it, empty where it says nothing. `receipt` belongs to the source."""

    key: str
    data: bytes
    id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    #: How often it was delivered, with this time; counted by the broker where it can.
    deliveries: int = 1
    #: Where its sender waits for the answer, if the broker has that.
    reply: str = ""
    #: Messages of one partition key stay together, where the broker has that.
    partition_key: bytes | None = None
    receipt: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """One message to write. A broker that can do so drops a second one with the same `key` (empty: it must not)."""

    data: bytes
    key: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: str = ""
    partition_key: bytes | None = None


class Source(ABC):
    """Where requests come from. All on one event loop.

    Promises: a message that is neither acknowledged nor dropped comes again, to this worker or to another one of the
    group, also when the worker was killed. The broker may go away at any time: the source comes back by itself, and no
    method but `open` fails for it.
    """

    @abstractmethod
    async def open(self) -> None:
        """Connect.

        Raises:
            FeedError: the broker cannot be reached, refuses, or does not have what was asked for.
            MissingDependencyError: its library is not installed.
        """

    @abstractmethod
    async def receive(self, most: int) -> list[Message]:
        """The next messages, at most `most`; an empty list where none came within about a second.

        Raises:
            FeedError: there will never be any more, because the broker refuses or what was read from is gone.
        """

    @abstractmethod
    async def ack(self, message: Message) -> None:
        """It is done and must not come again."""

    @abstractmethod
    async def nack(self, message: Message, delay_s: float) -> None:
        """It is to come again, to anyone in the group, after about `delay_s` seconds, with `deliveries` one higher."""

    @abstractmethod
    async def touch(self, message: Message) -> None:
        """It is still being worked on. Called for every message held, several times within `ack_wait_s`."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect; what was acknowledged is settled first. Calling it twice does nothing."""


class Sink(ABC):
    """Where answers go. All on one event loop."""

    @abstractmethod
    async def open(self) -> None:
        """Connect. Raises as `Source.open` does."""

    @abstractmethod
    async def publish(self, message: Outgoing) -> None:
        """Write one message; returns when the broker has it, however long the broker is away meanwhile.

        Raises:
            TooLargeError: the broker takes no message of this size.
            FeedError: the broker refuses it for good.
        """

    @abstractmethod
    async def close(self) -> None:
        """Disconnect; what was published is written first. Calling it twice does nothing."""


class Broker(ABC):
    """Makes the sources and sinks of one kind of broker. Making one connects to nothing and imports no library."""

    #: Whether it works with `FeedSettings.durable` off.
    fleeting: ClassVar[bool] = False

    def __init__(self, environ: Mapping[str, str]) -> None:
        #: Where credentials are taken from; never from an address.
        self.environ = environ

    @abstractmethod
    def check(self, address: Address) -> None:
        """Raise FeedAddressError where the broker has no such names."""

    @abstractmethod
    def source(self, address: Address, settings: FeedSettings) -> Source:
        """Reads `address`."""

    @abstractmethod
    def sink(self, address: Address, settings: FeedSettings) -> Sink:
        """Writes to `address`."""

    def overlap(self, read: str, written: str) -> bool:
        """Whether what is written to the name `written` would be read again from `read`."""
        return read == written
