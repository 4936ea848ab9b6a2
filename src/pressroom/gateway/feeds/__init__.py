"""Streaming input: messages of a broker in, answers of a deployment out, at least once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway.feeds._address import parse_address
from pressroom.gateway.feeds._load import broker_for, broker_names
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
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway.feeds.worker import Counts, FeedWorker

__all__ = [
    "Address",
    "Broker",
    "Counts",
    "FeedAddressError",
    "FeedError",
    "FeedSettings",
    "FeedWorker",
    "Message",
    "Outgoing",
    "Sink",
    "Source",
    "TooLargeError",
    "broker_for",
    "broker_names",
    "parse_address",
]

# Where each name is that needs the HTTP libraries: loaded when used.
__getattr__ = _lazily(__name__, {"Counts": "worker", "FeedWorker": "worker"})
