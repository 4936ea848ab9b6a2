"""Connections of a worker: requests that it answers itself, and others that go to the server process as they came.

The hub, files, batches and figures are the server's. A connection whose next request is for one of them is carried to
it from then on, byte for byte, until it ends: nothing of such a request is read here, however large it is. What comes
after it on the same connection the server answers just as well.
"""

from __future__ import annotations

import asyncio
from typing import cast

from pressroom.gateway._http_request import Request
from pressroom.gateway._http_server import HEAD_LIMIT, Application, HttpConnection, Listener

_HEAD_S = 30.0
_NEVER = float("inf")
_LONGEST_METHOD = 24
# Files and batches are below /v1 and /openai/v1, too, and they are the server's: what is ours there is named.
_PATHS = frozenset(
    (b"/health/live", b"/health/ready", b"/openapi.json", b"/v1/chat/completions", b"/v1/completions",
     b"/v1/embeddings", b"/v1/models", b"/openai/v1/chat/completions", b"/openai/v1/completions",
     b"/openai/v1/embeddings", b"/openai/v1/models", b"/v2")
)  # fmt: skip
_BEGINNINGS = (b"/v1/models/", b"/openai/v1/models/", b"/v2/")
# What most requests begin with: known without a look at the rest.
_USUAL = (b"POST /v1/chat/completions ", b"POST /v1/completions ", b"POST /v1/embeddings ", b"POST /v2/models/")


def is_ours(path: bytes) -> bool:
    """Whether a worker answers requests for this path."""
    return path in _PATHS or path.startswith(_BEGINNINGS)


class CarryingListener(Listener):
    """A listener of a worker. `server` is where the server process listens, host and port."""

    def __init__(self, application: Application, *, body_limit: int, server: tuple[str, int]) -> None:
        super().__init__(_Ours(application), body_limit=body_limit)
        self.server = server

    def connect(self) -> HttpConnection:
        return CarryingConnection(self)


class CarryingConnection(HttpConnection):
    """One client's connection, ours or the server's."""

    def __init__(self, listener: CarryingListener) -> None:
        super().__init__(listener)
        self._server = listener.server
        self._begun = b""  # of a request whose first line is not whole yet
        self._carrier: _Carrier | None = None

    @property
    def idle(self) -> bool:
        return self._carrier is None and super().idle

    def data_received(self, data: bytes) -> None:
        if self._carrier is not None:
            self._carrier.send(data)
            return
        # Where a request begins, and nowhere else, the connection can change hands.
        if not data.startswith(_USUAL) and self.idle and not self._discarding:
            first = not self._begun
            if not first:
                data, self._begun = self._begun + data, b""
            path = _path_in(data)
            if path is None and len(data) < HEAD_LIMIT:
                self._begun = data
                if first:  # not with every byte: a client that sends one now and then would stay for ever
                    self.deadline = self._listener.now + _HEAD_S
                return
            if path and not is_ours(path):
                self._carry(data)
                return
        elif self._begun:
            data, self._begun = self._begun + data, b""
        super().data_received(data)

    def time_out(self) -> None:
        if self._begun:
            self._begun = b""
            self._refuse(408, "The request did not come to its end in time.")
        else:
            super().time_out()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._carrier is not None:
            self._carrier.close()

    def pause_writing(self) -> None:
        if self._carrier is None:
            super().pause_writing()
        else:
            self._carrier.pause()

    def resume_writing(self) -> None:
        if self._carrier is None:
            super().resume_writing()
        else:
            self._carrier.resume()

    def leave(self) -> None:
        """Close it when what was written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def _carry(self, data: bytes) -> None:
        assert self._transport is not None
        self.deadline = _NEVER  # the server looks to that
        self._carrier = _Carrier(self, self._transport, data)
        self._carrier.start(*self._server)

    def cannot_carry(self) -> None:
        """For the carrier: the server does not take connections."""
        self._carrier = None
        message = "The server process cannot be reached; what it answers itself is not to be had now."
        self._listener.application.refuse(self, 503, message, b"")


class _Carrier(asyncio.Protocol):
    """The way to the server and back."""

    def __init__(self, connection: CarryingConnection, client: asyncio.Transport, data: bytes) -> None:
        self._connection = connection
        self._client = client
        self._first = data
        self._server: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._paused = False

    def start(self, host: str, port: int) -> None:
        self._client.pause_reading()
        self._task = asyncio.get_running_loop().create_task(self._open(host, port))

    async def _open(self, host: str, port: int) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, host, port)
        except OSError:
            if not self._closed:
                self._client.resume_reading()
                self._connection.cannot_carry()

    # From the client.

    def send(self, data: bytes) -> None:
        if self._server is not None:
            self._server.write(data)
        else:
            self._first += data  # it was read already when reading was paused

    def pause(self) -> None:
        """The client does not take what it is sent."""
        self._paused = True
        if self._server is not None:
            self._server.pause_reading()

    def resume(self) -> None:
        self._paused = False
        if self._server is not None:
            self._server.resume_reading()

    def close(self) -> None:
        """The client is gone."""
        self._closed = True
        if self._server is not None:
            self._server.close()

    # From the server.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._server = cast(asyncio.Transport, transport)
        if self._closed:
            self._server.close()
            return
        self._server.write(self._first)
        self._first = b""
        self._client.resume_reading()
        if self._paused:
            self._server.pause_reading()

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._server = None
        if not self._closed:
            self._client.close()

    def pause_writing(self) -> None:
        if not self._client.is_closing():
            self._client.pause_reading()

    def resume_writing(self) -> None:
        if not self._client.is_closing():
            self._client.resume_reading()


class _Ours:
    """Answers as `application`, but for what came where its connection could not change hands: behind another request
    that was not answered yet. Whoever sends so must be ready to send it again on a new connection (RFC 9112, 9.3)."""

    def __init__(self, application: Application) -> None:
        self._handle = application.handle
        self.refuse = application.refuse

    def handle(self, connection: HttpConnection, request: Request) -> None:
        if is_ours(request.path):
            self._handle(connection, request)
        else:
            assert isinstance(connection, CarryingConnection)
            connection.leave()


def _path_in(data: bytes) -> bytes | None:
    """The path that a request is for, from its beginning; None where that is not there yet, b"" where it is none."""
    line, end, _ = data.lstrip(b"\r\n").partition(b"\n")
    parts = line.split(b" ")
    if not parts[0].isalpha() or len(parts[0]) > _LONGEST_METHOD:
        return b"" if parts[0] else None
    if len(parts) < 3 and not end:
        return None
    target = parts[1] if len(parts) > 1 else b""
    if not target.startswith(b"/") and b"://" in target:
        # The absolute form, as proxies send it.
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    return target.partition(b"?")[0]
