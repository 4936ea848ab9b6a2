"""A small HTTP/1.1 client for the gateway's own address: what a batch sends goes in by the same door as everything.

Connections are kept and used again. For one event loop; no TLS, no redirects, no proxies.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import httptools

from pressroom.kernel import DeployError, GatewaySettings

_CONNECT_S = 10.0
_MARGIN_S = 30.0
_ANSWER_LIMIT = 64 << 20
_READ = 1 << 18


def longest_silence_s(settings: GatewaySettings) -> float:
    """How long the gateway may say nothing before a request is given up: it waits for an engine and tries again
    itself, so this only ends what hangs."""
    return settings.wait_s + settings.first_byte_timeout_s * (1 + settings.retries) + _MARGIN_S


class Unreachable(Exception):
    """Nobody listens there: the request was not sent."""


class Broken(Exception):
    """The connection ended, or fell silent, before the answer was whole."""


class Reply:
    """An answer. Names of headers are in lower case."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def request_id(self) -> str:
        return self.headers.get(b"x-request-id", b"").decode("latin-1")

    @property
    def retry_after_s(self) -> float | None:
        """What its Retry-After says, in seconds; None where it says nothing."""
        value = self.headers.get(b"retry-after", b"")
        return float(value) if value.isdigit() and len(value) < 8 else None


class Client:
    """Sends requests to `url`. `silence_s` is how long the gateway may say nothing, `key` what is sent as Bearer."""

    def __init__(self, url: str, *, silence_s: float, key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise DeployError(f"{url!r} is not the address of a gateway", hint="It begins with http://.")
        self._host = parts.hostname
        self._port = parts.port or 80
        self._authority = parts.netloc.rpartition("@")[2].encode("ascii")
        self._silence_s = silence_s
        self._lines = b"Authorization: Bearer %b\r\n" % key.encode("ascii") if key else b""
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, *, behalf: str = "") -> Reply:
        """Send JSON and return the answer; `behalf` is the key that it is asked for, where that is not the one sent.

        Raises:
            Unreachable, Broken: there is no whole answer.
        """
        lines = self._lines
        if behalf:
            lines += b"pressroom-on-behalf: %b\r\n" % behalf.encode("ascii")
        head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
        request = head % (path.encode("ascii"), self._authority, lines, len(body)) + body
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._ask(connection, request)
            except Broken:
                if connection.heard:
                    raise
                # The gateway had closed it; the next one, or a new one, is asked.
        return await self._ask(await self._connected(), request)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _connected(self) -> _Connection:
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(self._host, self._port)
        except OSError as error:  # a TimeoutError is one
            raise Unreachable(error.strerror or str(error) or "it took too long") from error
        return _Connection(reader, writer)

    async def _ask(self, connection: _Connection, request: bytes) -> Reply:
        try:
            async with asyncio.timeout(self._silence_s):
                reply = await connection.ask(request)
        except TimeoutError as error:
            connection.close()
            connection.heard = True  # it has the request: asking again over another connection would ask twice
            raise Broken(f"no answer in {self._silence_s:.0f} s") from error
        except (OSError, httptools.HttpParserError) as error:
            connection.close()
            raise Broken(str(error) or type(error).__name__) from error
        except BaseException:
            connection.close()
            raise
        if connection.keep:
            self._idle.append(connection)
        else:
            connection.close()
        return reply


class _Connection:
    """One connection, and llhttp's listener for the answer that comes over it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._done = False
        self.heard = False
        self.keep = False

    async def ask(self, request: bytes) -> Reply:
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body, self._size = {}, [], 0
        self._done = self.heard = self.keep = False
        self._writer.write(request)
        await self._writer.drain()
        while not self._done:
            data = await self._reader.read(_READ)
            if not data:
                raise ConnectionResetError("the gateway closed the connection")
            self.heard = True
            self._parser.feed_data(data)
        self.keep = self._parser.should_keep_alive()
        return Reply(self._parser.get_status_code(), self._headers, b"".join(self._body))

    def close(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, and the connection with it
            self._writer.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > _ANSWER_LIMIT:
            raise OverflowError(f"the answer is over {_ANSWER_LIMIT} bytes")
        self._body.append(data)

    def on_message_complete(self) -> None:
        self._done = True
