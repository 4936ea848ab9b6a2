"""Clients that are slow, huge, many, or gone: the others are answered as before, and memory stays where it was."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from pressroom.gateway import _http_server
from pressroom.kernel import GatewaySettings
from pressroom.testing.gateway import GatewayThread

from .clients import (
    CHAT,
    Connection,
    ask,
    chat,
    connected,
    generate,
    infer,
    is_openai_error,
    is_v2_error,
    post,
    stream_infer,
    tensors,
)
from .house import MB, SERVICE, House, until
from .malformed import garbled

INFER, GENERATE, GENERATE_STREAM = (f"/v2/models/echo/{verb}" for verb in ("infer", "generate", "generate_stream"))
# Where each protocol's requests go, and how it says no.
DOORS: list[tuple[str, Callable[[Any], bool]]] = [(CHAT, is_openai_error), (GENERATE, is_v2_error)]


@pytest.fixture
def watched(sturdy: House) -> Iterator[House]:
    """The server, which must have nothing left of its guests afterwards."""
    asyncio.run(ask(sturdy.port, CHAT, chat("echo")))
    files = sturdy.process.num_fds()
    yield sturdy
    assert asyncio.run(ask(sturdy.port, CHAT, chat("echo"))).status == 200
    for name in ("echo", "silent", "slow", "flood"):
        until(lambda name=name: sturdy.calm(name) and not sturdy.engine_counts(name)["active"], f"calm of {name}")
    until(lambda: sturdy.process.num_fds() < files + 20, "the closing of connections")
    assert "Traceback" not in sturdy.log()


class Memory:
    """The most that the server's memory grew by, looked at all the time."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.before = house.rss()
        self.most = 0

    async def __aenter__(self) -> Memory:
        self._watching = asyncio.ensure_future(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            self.most = max(self.most, self._house.rss() - self.before)
            await asyncio.sleep(0.01)


async def answers(house: House) -> None:
    """Others are answered, over both doors."""
    for path, body in ((CHAT, chat("echo")), (GENERATE, generate())):
        assert (await ask(house.port, path, body)).status == 200


# Heads and framing.


@pytest.mark.parametrize(("path", "is_error"), DOORS, ids=["openai", "v2"])
def test_heads_and_chunks_that_are_wrong(watched: House, path: str, is_error: Callable[[Any], bool]) -> None:
    """An answer in the shape of the door, or in OpenAI's where no path was understood; or an end."""
    chance = random.Random(5)
    whole = chat("echo") if path == CHAT else generate()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    chunked = b"%x\r\n%b\r\n%x;ext=1\r\n%b\r\n0\r\nTrailer: x\r\n\r\n"
    cut = len(whole) // 2
    good = [
        post(path, whole),
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked % (cut, whole[:cut], len(whole) - cut, whole[cut:]),
    ]
    wrong = [
        head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        head + b"Content-Length: -5\r\n\r\n{}",
        head + b"Content-Length: 99999999999999999999999\r\n\r\n",
        head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        head + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcdefgh\r\n0\r\n\r\n",
        head + b"Host: other\r\nContent-Length: 0\r\n\r\n",
        b"POST " + path.encode() + b" HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"POST " + path.encode() + b"\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\r\n" * 1_000,
        b"\x16\x03\x01" + bytes(300),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    requests = wrong + [garbled(chance.choice(good), chance) for _ in range(1_500)]

    async def one(data: bytes) -> None:
        async with connected(watched.port) as connection:
            await connection.send(data)
            connection.writer.write_eof()
            answer = await connection.rest()
        while answer.startswith(b"HTTP/1.1 100 "):
            answer = answer.partition(b"\r\n\r\n")[2]
        if not answer:
            return
        status, (said, _, body) = int(answer[9:12]), answer.partition(b"\r\n\r\n")
        if status == 200:
            return  # what was changed was of no consequence
        assert 400 <= status < 500 and b"content-length: " in said, (data, answer)
        record = json.loads(body[: int(said.partition(b"content-length: ")[2].split(b"\r\n")[0])])
        assert is_error(record) or is_openai_error(record), (data, answer)

    async def scene() -> None:
        for at in range(0, len(requests), 100):
            await asyncio.gather(*(one(each) for each in requests[at : at + 100]))

    asyncio.run(scene())


@pytest.mark.parametrize(("path", "is_error"), DOORS, ids=["openai", "v2"])
def test_bodies_of_fifty_megabytes(watched: House, path: str, is_error: Callable[[Any], bool]) -> None:
    """Refused when the head says so, or when too much of it has come; and refused so that the client hears it."""
    piece = b"100000\r\n" + b"x" * MB + b"\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n"

    async def said() -> None:
        async with connected(watched.port) as connection:
            await connection.send(f"{head}Content-Length: {50 * MB}\r\n\r\n".encode())
            sending = asyncio.ensure_future(_pour(connection, b"x" * MB, 50))
            await refused(connection)
            await sending

    async def unsaid() -> None:
        async with connected(watched.port) as connection:
            await connection.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            sending = asyncio.ensure_future(_pour(connection, piece, 50))
            await refused(connection)
            await sending

    async def refused(connection: Connection) -> None:
        found = await connection.answer()
        assert found.status == 413 and is_error(found.json()), found

    async def scene() -> None:
        async with Memory(watched) as memory:
            await asyncio.gather(*(said() for _ in range(8)), *(unsaid() for _ in range(2)), answers(watched))
        # A body that does not say its length is kept up to the limit of 32 MB.
        assert memory.most < 2 * 32 * MB + 48 * MB

    asyncio.run(scene())


async def _pour(connection: Connection, data: bytes, times: int) -> None:
    try:
        for _ in range(times):
            await connection.send(data)
    except ConnectionError:
        pass  # it was refused, and the rest not read


def test_many_large_bodies_at_once_do_not_add_up(sturdy: House) -> None:
    """Each is under the limit; together they are refused before they take the memory of the machine."""

    async def one(sent: asyncio.Barrier) -> int:
        async with connected(sturdy.port) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {31 * MB}\r\n\r\n"
            await connection.send(head.encode())
            answering = asyncio.ensure_future(connection.answer())
            await _pour(connection, b" " * MB, 30)  # and the last one never comes
            await sent.wait()  # so all that is kept is kept at the same time
            await asyncio.wait((answering,), timeout=1)
            if not answering.done():
                answering.cancel()
                return 0
            found = answering.result()
            assert is_openai_error(found.json()) and "retry-after" in found.headers
            return found.status

    async def scene() -> None:
        sent = asyncio.Barrier(24)
        async with Memory(sturdy) as memory:
            found = await asyncio.gather(*(one(sent) for _ in range(24)), answers(sturdy))
        assert found.count(503) >= 12 and found.count(0) >= 4
        assert memory.most < 400 * MB

    asyncio.run(scene())
    assert asyncio.run(ask(sturdy.port, CHAT, b" " * (20 * MB) + chat("echo"))).status == 200  # there is room again


def test_header_bombs(watched: House) -> None:
    start = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n".encode()
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    bombs = [
        b"GET /" + b"a" * (10 * MB),
        start + b"X: " + b"a" * (10 * MB),
        start + b"a" * (10 * MB),
        start + b"".join(b"X-%d: y\r\n" % number for number in range(100_000)),
        start + b"X: y\r\n" * 100_000,
        start + b"\r\n ".join([b"X: y"] * 100_000),
        start + chunked + b"2;a=" + b"a" * (10 * MB),
        start + chunked + b"2\r\n{}\r\n0\r\nX: " + b"a" * (10 * MB),
        start + chunked + b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 500_000,
    ]

    async def one(bomb: bytes) -> None:
        async with connected(watched.port) as connection:
            sending = asyncio.ensure_future(_pour(connection, bomb, 1))
            found = await connection.answer()
            assert found.status in (400, 431) and is_openai_error(found.json()), (bomb[:100], found)
            await sending

    async def scene() -> None:
        async with Memory(watched) as memory:
            await asyncio.gather(*(one(bomb) for bomb in bombs * 5), answers(watched))
        assert memory.most < 48 * MB

    asyncio.run(scene())


# Many, and slow.


@pytest.mark.parametrize("what", ["head", "body"])
def test_slow_loris(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Hundreds send a byte now and then: each is let go when its time is over, whatever it still sends."""
    monkeypatch.setattr(_http_server, "_HEAD_S", 1.0)
    monkeypatch.setattr(_http_server, "_BODY_S", 1.0)
    begun = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"

    async def loris(port: int) -> int:
        async with connected(port) as connection:
            await connection.send(begun if what == "body" else begun[:-4] + b"\r\nX: ")
            answering = asyncio.ensure_future(connection.answer())
            while not answering.done():
                await _pour(connection, b"x", 1)
                await asyncio.sleep(0.1)
            assert is_openai_error(answering.result().json())
            return answering.result().status

    async def scene() -> None:
        everybody = asyncio.gather(*(loris(gateway.port) for _ in range(300)))
        async with connected(gateway.port) as other:
            while not everybody.done():
                assert (await other.ask("/v1/chat/completions", b"{}")).status == 400
                await asyncio.sleep(0.02)
        assert set(await everybody) == {408}

    with GatewayThread(settings=GatewaySettings()) as gateway:
        asyncio.run(scene())


def test_unfinished_requests_make_room_for_those_that_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of them as there may be connections: who comes and asks in one go is answered."""
    monkeypatch.setattr(_http_server, "connections_allowed", lambda: 50)

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            for _ in range(60):
                unfinished = await stack.enter_async_context(connected(gateway.port))
                await unfinished.send(b"POST / HTTP/1.1\r\nHost: loc")
            for _ in range(60):
                assert (await ask(gateway.port, CHAT, b"{}")).status == 400

    with GatewayThread() as gateway:
        asyncio.run(scene())


def test_a_thousand_streams_that_say_nothing(watched: House) -> None:
    """What another request costs beside them, in processor time, is about what it costs alone."""
    alone = asyncio.run(_cost(watched))
    with watched.channel() as channel:
        calls = [stream_infer(channel, SERVICE, [tensors("silent", "a")]) for _ in range(200)]

        async def scene() -> float:
            async with Memory(watched) as memory, AsyncExitStack() as stack:
                for number in range(800):
                    path = CHAT if number % 2 else "/v2/models/silent/generate_stream"
                    connection = await stack.enter_async_context(connected(watched.port))
                    await connection.send(post(path, chat("silent", stream=True) if number % 2 else generate()))
                await asyncio.to_thread(until, lambda: watched.engine_counts("silent")["active"] == 1_000)
                assert memory.most < 64 * MB
                return await _cost(watched)

        among = asyncio.run(scene())
        assert among < 3 * alone + 0.0002, (alone, among)
        for call in calls:
            call.cancel()


async def _cost(house: House, times: int = 1_000) -> float:
    """Seconds of the server's processor time that one request takes."""
    async with connected(house.port) as connection:
        before = sum(house.process.cpu_times()[:2])
        for _ in range(times):
            assert (await connection.ask(CHAT, chat("echo"))).status == 200
        return (sum(house.process.cpu_times()[:2]) - before) / times


def test_clients_that_read_a_byte_at_a_time(watched: House) -> None:
    """Each answer is 20 MB: what a client does not take stays with the engine."""

    async def sip(path: str, body: bytes) -> bytes:
        async with connected(watched.port, receive_buffer=2_048) as connection:
            await connection.send(post(path, body))
            found = b""
            for _ in range(60):
                found += await connection.reader.readexactly(1)
                await asyncio.sleep(0.03)
            return found

    async def scene() -> list[bytes]:
        sips = [sip(CHAT, chat("flood", stream=True)) for _ in range(20)]
        sips += [sip("/v2/models/flood/generate_stream", generate()) for _ in range(20)]
        async with Memory(watched) as memory:
            found = await asyncio.gather(*sips, answers(watched))
        assert memory.most < 64 * MB
        return [each for each in found if each]

    found = asyncio.run(scene())
    assert len(found) == 40 and all(each.startswith(b"HTTP/1.1 200 OK\r\n") for each in found)


def test_a_grpc_client_that_does_not_read(watched: House) -> None:
    before = watched.rss()
    with watched.channel() as channel:
        calls = [stream_infer(channel, SERVICE, [tensors("flood", "a")]) for _ in range(10)]
        first = [next(call) for call in calls]
        assert not any(each.error_message for each in first)
        asyncio.run(answers(watched))
        assert watched.rss() - before < 64 * MB
        for call in calls:
            call.cancel()


# Gone.


def _several(count: int) -> bytes:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [count], "data": ["a"] * count}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize(
    ("model", "path", "body", "runs", "reads"),
    [
        ("silent", CHAT, chat("silent"), 1, False),
        ("silent", CHAT, chat("silent", stream=True), 1, False),
        ("silent", CHAT, chat("silent", n=8), 8, False),
        ("slow", CHAT, chat("slow", stream=True), 1, True),
        ("slow", CHAT, chat("slow", n=8, stream=True), 8, True),
        ("silent", "/v2/models/silent/generate", generate(), 1, False),
        ("slow", "/v2/models/slow/generate_stream", generate(), 1, True),
        ("silent", "/v2/models/silent/infer", _several(8), 8, False),
    ],
)
def test_a_client_that_leaves(watched: House, model: str, path: str, body: bytes, runs: int, reads: bool) -> None:
    cancelled = watched.engine_counts(model)["cancelled"]

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            for _ in range(10):
                connection = await stack.enter_async_context(connected(watched.port))
                await connection.send(post(path, body))
                if reads:
                    await connection.head()
                    await anext(connection.pieces())
            await asyncio.to_thread(until, lambda: watched.engine_counts(model)["active"] == 10 * runs)

    asyncio.run(scene())
    # A long V2 request asks for a few of its answers at a time, so it is seen that all that ran have ended.
    until(lambda: watched.engine_counts(model)["cancelled"] == cancelled + 10 * runs, "the end of the work")


def test_grpc_clients_that_leave(watched: House) -> None:
    cancelled = watched.engine_counts("slow")["cancelled"] + watched.engine_counts("silent")["cancelled"]
    channel = watched.channel()
    streams = [stream_infer(channel, SERVICE, [tensors("slow", "a")]) for _ in range(8)]
    for stream in streams:
        next(stream)
    calls = [infer(channel, SERVICE).future(tensors("silent", "a").SerializeToString(), timeout=60) for _ in range(8)]
    until(lambda: watched.engine_counts("silent")["active"] == 8)
    for each in (*streams[:4], *calls[:4]):
        each.cancel()
    channel.close()  # and the others go with their connection
    until(
        lambda: (
            watched.engine_counts("slow")["cancelled"] + watched.engine_counts("silent")["cancelled"] == cancelled + 16
        )
    )
    assert {call.code() for call in calls} == {grpc.StatusCode.CANCELLED}


def test_clients_that_leave_while_they_wait_for_an_engine(watched: House) -> None:
    before = watched.engine("slow")
    watched.deploy("fragile")
    for _ in range(2):  # the second time it is left alone for longer
        until(lambda: watched.seen("fragile").phase == "ready")
        os.kill(watched.engine("fragile"), signal.SIGKILL)
        until(lambda: watched.seen("fragile").phase != "ready")

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            for path, body in ((CHAT, chat("fragile", n=8)), ("/v2/models/fragile/generate", generate())):
                connection = await stack.enter_async_context(connected(watched.port))
                await connection.send(post(path, body))
            await asyncio.to_thread(
                until, lambda: watched.figure("pressroom_requests_waiting", model="fragile") == 9, seconds=10
            )

    asyncio.run(scene())
    until(lambda: watched.calm("fragile"))
    until(lambda: watched.seen("fragile").phase == "ready")
    assert watched.engine_counts("fragile")["requests"] == 0
    # What one client asks for is one request, however many answers it has.
    assert watched.figure("pressroom_requests_total", model="fragile", status="499") == 2
    assert watched.engine("slow") == before
