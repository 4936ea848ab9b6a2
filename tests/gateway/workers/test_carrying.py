"""Which requests a worker answers itself, and what becomes of one that never comes to the end of its first line."""

from __future__ import annotations

import asyncio

import pytest

from pressroom.gateway import Gateway, RouteTable
from pressroom.gateway._http_request import Request
from pressroom.gateway._http_server import HttpConnection
from pressroom.gateway._v2 import PATHS
from pressroom.gateway.batches import door
from pressroom.gateway.workers import _carrying
from pressroom.gateway.workers._carrying import CarryingListener, is_ours
from pressroom.kernel import GatewaySettings


def test_a_worker_answers_what_needs_a_model_and_the_server_the_rest() -> None:
    async def paths() -> set[bytes]:
        gateway = Gateway(GatewaySettings(), RouteTable())
        try:
            return {*gateway._reads, *gateway._completions}
        finally:
            gateway.close()

    answered = asyncio.run(paths())
    assert {path for path in answered if not is_ours(path)} == {b"/", b"/metrics"}
    assert all(is_ours(path.encode()) for path in PATHS)
    for path in (b"/v1/models/a", b"/openai/v1/models/a/b", b"/openai/v1/chat/completions"):
        assert is_ours(path)
    # Files and batches are where the server is, also under the name that KServe's clients know them by.
    for root in door._ROOTS:
        assert not is_ours(root) and not is_ours(root + b"/one")
    for path in (b"/openai/v1/models.json", b"/api/models", b"/someone/model", b"/v2x", b"/v1/"):
        assert not is_ours(path)


class _Answers:
    def handle(self, connection: HttpConnection, request: Request) -> None:
        connection.respond(200, b"", request.path)

    def refuse(self, connection: HttpConnection, status: int, message: str, path: bytes) -> None:
        connection.respond(status, b"", message.encode())


def test_a_first_line_that_comes_byte_by_byte_has_one_time_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_carrying, "_HEAD_S", 0.5)

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        listener = CarryingListener(_Answers(), body_limit=1000, server=("127.0.0.1", 9))
        server = await loop.create_server(listener.connect, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readexactly(len(b"/v1/models"))
            answer = asyncio.ensure_future(reader.read())
            sent = 0
            while not answer.done():
                assert sent < 100, "every byte gave it more time"
                writer.write(b"\r\n")
                sent += 1
                await asyncio.wait([answer], timeout=0.1)
            assert answer.result().startswith(b"HTTP/1.1 408")
        finally:
            writer.close()
            server.close()
            listener.abort()

    asyncio.run(talk())
