"""The pipe between the server and one of its workers: a pair of connected sockets that is there before the worker is.

Each message is four bytes of length and a JSON list, its kind first. The pipe has no name in the file system that a
stranger could connect to, and it ends when either process does, however it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import orjson

_log = logging.getLogger(__name__)

_LENGTH = 4
# Far more than any message has; a longer one is not from here.
_LONGEST = 256 << 20

Message = list[Any]


class Pipe(asyncio.Protocol):
    """One end. `received` is called with each message, in order, and `lost` once, when the other process is gone or
    has said something that is no message."""

    def __init__(self, received: Callable[[Message], None], lost: Callable[[], None]) -> None:
        self._received = received
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._coming = bytearray()

    def send(self, message: Message) -> None:
        """Send it, if there is still somebody. Returns at once."""
        if self._transport is not None:
            body = orjson.dumps(message)
            self._transport.write(len(body).to_bytes(_LENGTH, "big") + body)

    def close(self) -> None:
        """Send what is on its way, and then no more."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        coming = self._coming
        coming += data
        try:
            while len(coming) >= _LENGTH:
                end = _LENGTH + int.from_bytes(coming[:_LENGTH], "big")
                if end > _LONGEST:
                    raise ValueError(f"a message of {end} bytes")
                if len(coming) < end:
                    return
                body = bytes(coming[_LENGTH:end])
                del coming[:end]
                self._received(orjson.loads(body))
        except (ValueError, TypeError, LookupError, AttributeError):
            _log.exception("what came through the pipe between the server and a worker is no message")
            coming.clear()
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost()
