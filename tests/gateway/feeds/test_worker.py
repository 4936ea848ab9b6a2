"""A feed between real brokers and a real gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pressroom.gateway.feeds import (
    Address,
    FeedError,
    FeedSettings,
    FeedWorker,
    Message,
    Outgoing,
    Source,
    broker_for,
    parse_address,
)
from pressroom.testing.feed_contract import collect
from pressroom.testing.gateway import GatewayThread
from tests.gateway.engines_and_clients import HEAD, STREAM, Echoes, Script, chunk, route_to

from .servers import Kafka, Nats

# Only ends a test that fails.
_PATIENCE_S = 60.0
SETTINGS = FeedSettings(group="press-m", concurrency=4, ack_wait_s=2.0, max_deliveries=3)
DIGEST = "sha256-0123abcd"


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(_PATIENCE_S):
            await work

    asyncio.run(limited())


def makers(address: Address, settings: FeedSettings = SETTINGS) -> tuple[Any, Any]:
    broker = broker_for(address.scheme, {})
    return broker.source(address, settings), broker.sink(address, settings)


class Feed:
    """A worker that runs between `requests`, `answers` and `errors` while entered."""

    def __init__(self, url: str, places: dict[str, Address], *, settings: FeedSettings = SETTINGS, **more: Any) -> None:
        source, _ = makers(places["requests"], settings)
        _, sink = makers(places["answers"], settings)
        errors = makers(places["errors"], settings)[1] if "errors" in places else None
        self.worker = FeedWorker(source, sink, errors=errors, url=url, model="m", settings=settings, **more)
        self._task: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> FeedWorker:
        started = asyncio.Event()
        self._task = asyncio.create_task(self.worker.run(started.set))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done():
            await self._task
        return self.worker

    async def __aexit__(self, *_: object) -> None:
        self.worker.stop()
        assert self._task is not None
        await self._task


async def send(address: Address, *bodies: bytes | str | dict[str, Any], **headers: str) -> int:
    """Write them, with ids that are the returned number, a hyphen and their place."""
    sent = time.time_ns()
    _, sink = makers(address)
    await sink.open()
    for number, body in enumerate(bodies):
        data = (
            json.dumps(body).encode() if isinstance(body, dict) else body if isinstance(body, bytes) else body.encode()
        )
        await sink.publish(Outgoing(data=data, key=f"{sent}-{number}", headers=headers))
    await sink.close()
    return sent


@contextlib.asynccontextmanager
async def reading(address: Address) -> AsyncIterator[Source]:
    source, _ = makers(address, FeedSettings(group="reader", ack_wait_s=3))
    await source.open()
    yield source
    await source.close()


async def records(source: Source, count: int) -> list[dict[str, Any]]:
    found = await collect(source, count)
    for message in found:
        await source.ack(message)
    return [json.loads(message.data) for message in found]


@pytest.fixture
def places(nats_server: Nats) -> dict[str, Address]:
    return {name: parse_address(nats_server.fresh(name)) for name in ("requests", "answers", "errors")}


def test_answers_come_with_everything_that_is_known_of_them(echo: Echoes, places: dict[str, Address]) -> None:
    async def work(url: str) -> None:
        sent = await send(
            places["requests"], "hello big world", {"id": "a", "prompt": "once upon"}, traceparent="00-1-2-01"
        )
        async with Feed(url, places), reading(places["answers"]) as answers:
            found = await collect(answers, 2)
        assert all(message.headers["traceparent"] == "00-1-2-01" for message in found)
        assert all(message.headers["content-type"] == "application/json" for message in found)
        texts = {record["text"]: record for record in (json.loads(message.data) for message in found)}
        assert set(texts) == {"hello big world", "once upon"}
        chat = texts["hello big world"]
        assert (chat["model"], chat["version"], chat["finish_reason"], chat["deliveries"]) == ("m", DIGEST, "stop", 1)
        assert chat["usage"]["completion_tokens"] == 3 and chat["latency_ms"] > 0
        assert texts["once upon"]["id"] == "a" and chat["id"] == f"{sent}-0"

    with GatewayThread(route_to(echo().port)) as gateway:
        run(work(gateway.url))


def test_a_streamed_answer_comes_in_pieces_in_order(echo: Echoes, places: dict[str, Address]) -> None:
    async def work(url: str) -> None:
        await send(places["requests"], {"id": "s", "prompt": "to be or not to be"})
        async with Feed(url, places, stream=True), reading(places["answers"]) as answers:
            found = await records(answers, 7)
        assert [record["sequence"] for record in found] == list(range(7))
        assert "".join(record["piece"] for record in found[:6]) == "to be or not to be"
        assert (
            found[6]["final"]
            and found[6]["text"] == "to be or not to be"
            and found[6]["usage"]["completion_tokens"] == 6
        )
        assert len({(record["id"], record["attempt"]) for record in found}) == 1

    with GatewayThread(route_to(echo().port)) as gateway:
        run(work(gateway.url))


def test_what_cannot_be_answered_goes_to_the_errors_once(echo: Echoes, places: dict[str, Address]) -> None:
    async def work(url: str) -> None:
        bad = [b"\xff", '{"prompt": 1, ', {"prompt": "x", "temperature": 9}, {"id": "z", "prompt": "x", "nonsense": 1}]
        await send(places["requests"], *bad, "fine")
        async with Feed(url, places) as worker, reading(places["errors"]) as errors:
            found = await records(errors, 4)
            async with reading(places["answers"]) as answers:
                assert [record["text"] for record in await records(answers, 1)] == ["fine"]
            await asyncio.sleep(2 * SETTINGS.ack_wait_s)  # nothing of it is delivered again
            assert worker.counts.received == 5 and worker.counts.refused == 4
        reasons = sorted(record["error"]["code"] or record["error"]["message"] for record in found)
        assert {record["error"]["status"] for record in found} == {400}
        assert reasons.count("message_refused") == 2 and len(reasons) == 4
        assert [r["message"] for r in found if r["id"] == "z" or "nonsense" in r.get("message", "")]

    with GatewayThread(route_to(echo().port)) as gateway:
        run(work(gateway.url))


def test_without_a_place_for_errors_they_go_where_the_answers_go(echo: Echoes, places: dict[str, Address]) -> None:
    async def work(url: str) -> None:
        del places["errors"]
        await send(places["requests"], b"")
        async with Feed(url, places), reading(places["answers"]) as answers:
            [record] = await records(answers, 1)
        assert record["error"]["message"] == "the message is empty"

    with GatewayThread(route_to(echo().port)) as gateway:
        run(work(gateway.url))


def test_hundreds_of_malformed_messages_stop_nothing(echo: Echoes, places: dict[str, Address]) -> None:
    random = Random(1)
    whole = json.dumps({"id": "x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}).encode()

    def altered() -> bytes:
        data = bytearray(whole)
        for _ in range(random.randrange(1, 6)):
            data[random.randrange(len(data))] = random.randrange(256)
        return bytes(data[: random.randrange(len(data) + 1)])

    bodies = [altered() for _ in range(400)]

    async def work(url: str) -> None:
        await send(places["requests"], *bodies, "the last")
        async with Feed(url, places) as worker:
            while worker.counts.answered + worker.counts.refused < len(bodies) + 1:
                await asyncio.sleep(0.02)
            assert worker.counts.returned == worker.counts.waited == 0
            async with reading(places["errors"]) as errors:
                for record in await records(errors, worker.counts.refused):
                    assert record["error"]["status"] == 400 and record["error"]["message"]

    with GatewayThread(route_to(echo().port)) as gateway:
        run(work(gateway.url))


def broken(connected: socket.socket) -> None:
    """Half an answer, and then nothing."""
    connected.sendall(HEAD % 1000 + b'{"choices": ')


def broken_stream(connected: socket.socket) -> None:
    connected.sendall(STREAM + chunk(b'data: {"choices": [{"index": 0, "text": "half"}]}\n\n'))


def test_a_message_whose_engine_always_fails_is_given_up_after_its_tries(
    script: Callable[..., Script], places: dict[str, Address]
) -> None:
    async def work(url: str) -> None:
        await send(places["requests"], {"id": "poison", "prompt": "x"})
        async with Feed(url, places) as worker, reading(places["errors"]) as errors:
            [record] = await records(errors, 1)
            assert worker.counts.returned == SETTINGS.max_deliveries - 1
            await asyncio.sleep(SETTINGS.ack_wait_s)
            assert worker.counts.received == SETTINGS.max_deliveries
        assert record["id"] and record["deliveries"] == SETTINGS.max_deliveries and record["error"]["status"] == 502

    with GatewayThread(route_to(script(broken).port)) as gateway:
        run(work(gateway.url))


def test_a_stream_that_breaks_is_begun_again_and_says_so(
    script: Callable[..., Script], places: dict[str, Address]
) -> None:
    def whole(connected: socket.socket) -> None:
        events = [b'{"choices": [{"index": 0, "text": "all"}]}', b'{"choices": [], "usage": {}}', b"[DONE]"]
        connected.sendall(STREAM + b"".join(chunk(b"data: " + event + b"\n\n") for event in events) + b"0\r\n\r\n")

    async def work(url: str) -> None:
        await send(places["requests"], {"id": "s", "prompt": "x"})
        async with Feed(url, places, stream=True), reading(places["answers"]) as answers:
            found = await records(answers, 3)
        assert [record.get("piece") for record in found] == ["half", "all", None]
        assert found[0]["attempt"] != found[1]["attempt"] == found[2]["attempt"]
        assert found[2]["text"] == "all" and found[2]["deliveries"] == 2

    with GatewayThread(route_to(script(broken_stream, whole).port)) as gateway:
        run(work(gateway.url))


def test_while_nobody_can_answer_the_messages_wait_and_are_not_spent(echo: Echoes, places: dict[str, Address]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"  # closed below: nobody listens there

    async def work(gateway: GatewayThread) -> None:
        await send(places["requests"], "one", "two", "three", "four", "five", "six")
        async with Feed(nowhere, places) as worker:
            while worker.counts.waited < 6:
                await asyncio.sleep(0.01)
            assert worker.counts.in_flight == SETTINGS.concurrency == worker.counts.received, "no more than its places"
        assert worker.counts.returned == 4 and worker.counts.answered == 0
        # The deployment is not there yet; then it is.
        async with Feed(gateway.url, places) as worker, reading(places["answers"]) as answers:
            while worker.counts.waited < 4:
                await asyncio.sleep(0.01)
            engine = echo()
            gateway.on_loop(lambda: gateway.routes.set(route_to(engine.port)))
            found = await records(answers, 6)
            assert worker.counts.refused == 0
        assert {record["text"] for record in found} == {"one", "two", "three", "four", "five", "six"}

    with GatewayThread() as gateway:
        run(work(gateway))


def test_stopping_lets_what_is_being_answered_finish(echo: Echoes, places: dict[str, Address]) -> None:
    async def work(url: str) -> None:
        await send(places["requests"], *(f"number {number}" for number in range(8)))
        async with Feed(url, places) as worker:
            while worker.counts.in_flight < SETTINGS.concurrency:
                await asyncio.sleep(0.01)
        assert worker.counts.answered == SETTINGS.concurrency
        async with Feed(url, places), reading(places["answers"]) as answers:
            assert len({record["text"] for record in await records(answers, 8)}) == 8

    with GatewayThread(route_to(echo(first_delay_s=0.3).port)) as gateway:
        run(work(gateway.url))


def test_an_answer_that_the_broker_does_not_take_is_an_error(echo: Echoes, places: dict[str, Address]) -> None:
    async def work(url: str) -> None:
        await send(places["requests"], {"id": "long", "prompt": "x"}, "short")
        async with Feed(url, places), reading(places["errors"]) as errors:
            [record] = await records(errors, 1)
        assert "too large" in record["error"]["message"]

    with GatewayThread(route_to(echo(text="word" * 300_000).port)) as gateway:
        run(work(gateway.url))


def test_a_broker_that_is_killed_and_comes_back_loses_nothing(echo: Echoes, tmp_path: Path) -> None:
    server = Nats(tmp_path)
    server.start()

    async def work(url: str) -> None:
        own = {name: parse_address(await asyncio.to_thread(server.fresh, name)) for name in ("requests", "answers")}
        texts = [f"number {number}" for number in range(60)]
        await send(own["requests"], *texts)
        async with Feed(url, own) as worker:
            for _ in range(2):
                seen = worker.counts.answered
                while worker.counts.answered < seen + 8:
                    await asyncio.sleep(0.005)
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(0.3)
                await asyncio.to_thread(server.start)
            async with reading(own["answers"]) as answers:
                found: set[str] = set()
                while len(found) < len(texts):
                    found |= {record["text"] for record in await records(answers, 1)}
        assert found == set(texts)

    try:
        with GatewayThread(route_to(echo(delay_s=0.02).port)) as gateway:
            run(work(gateway.url))
    finally:
        server.kill()


def test_plain_subjects_answer_to_whoever_asked(echo: Echoes, nats_server: Nats) -> None:
    import nats

    settings = FeedSettings(group="plain", durable=False)
    places = {name: parse_address(nats_server.url(f"plain.{name}")) for name in ("requests", "answers", "errors")}

    async def work(url: str) -> None:
        client = await nats.connect(f"nats://127.0.0.1:{nats_server.port}")
        heard = {name: await client.subscribe(f"plain.{name}") for name in ("answers", "errors")}
        # Two workers of one group: one answer for each question.
        async with Feed(url, places, settings=settings), Feed(url, places, settings=settings):
            reply = await client.request("plain.requests", b"hello", timeout=30, headers={"X-Tenant": "a"})
            assert json.loads(reply.data)["text"] == "hello" and reply.headers["X-Tenant"] == "a"
            refused = await client.request("plain.requests", b"{", timeout=30)
            assert json.loads(refused.data)["error"]["status"] == 400
            assert json.loads((await heard["errors"].next_msg(30)).data)["error"]["status"] == 400
            await client.publish("plain.requests", b"no reply wanted")
            assert json.loads((await heard["answers"].next_msg(30)).data)["text"] == "no reply wanted"
        assert heard["answers"].pending_msgs == 0
        await client.close()

    with GatewayThread(route_to(echo().port)) as gateway:
        run(work(gateway.url))


def test_credentials_come_from_the_environment_and_are_said_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Nats(tmp_path, user="press", password="hunter2")
    server.start()
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")

    async def work() -> None:
        address = parse_address(await asyncio.to_thread(server.fresh, "guarded"))
        for environ in ({}, {"NATS_USER": "press", "NATS_PASSWORD": "hunter2wrong"}):
            with pytest.raises(FeedError) as refused:
                await broker_for("nats", environ).source(address, SETTINGS).open()
            assert "hunter2" not in str(refused.value.as_dict()) + repr(refused.value)
        for environ in ({"NATS_PASSWORD": "hunter2"}, {"NATS_PASSWORD_FILE": str(secret)}):
            source = broker_for("nats", {"NATS_USER": "press", **environ}).source(address, SETTINGS)
            await source.open()
            await source.close()

    try:
        run(work())
    finally:
        server.kill()
    assert "hunter2" not in caplog.text


def test_kafka_answers_keep_their_key(echo: Echoes, kafka_server: Kafka) -> None:
    places = {name: parse_address(kafka_server.fresh(name)) for name in ("requests", "answers")}

    async def work(url: str) -> None:
        _, sink = makers(places["requests"])
        await sink.open()
        for number in range(12):
            out = Outgoing(
                data=b"number %d" % number, partition_key=b"k%d" % (number % 3), headers={"id": f"n{number}"}
            )
            await sink.publish(out)
        await sink.close()
        async with Feed(url, places), reading(places["answers"]) as answers:
            found: list[Message] = await collect(answers, 12)
        said = {json.loads(message.data)["text"]: message for message in found}
        assert len(said) == 12
        for number in range(12):
            message = said[f"number {number}"]
            assert message.partition_key == b"k%d" % (number % 3)
            assert json.loads(message.data)["id"] == f"n{number}" == message.headers["id"]

    with GatewayThread(route_to(echo().port)) as gateway:
        run(work(gateway.url))


def test_a_feed_without_a_key_ends_and_says_what_to_do(echo: Echoes, places: dict[str, Address]) -> None:
    async def work(gateway: GatewayThread) -> None:
        await send(places["requests"], "one")
        with pytest.raises(FeedError) as caught:
            async with Feed(gateway.url, places) as worker:
                while worker.counts.in_flight or not worker.counts.received:
                    await asyncio.sleep(0.01)
        assert "press keys create" in caught.value.hint and worker.counts.refused == 0
        async with Feed(gateway.url, places, key="secret"), reading(places["answers"]) as answers:
            assert [record["text"] for record in await records(answers, 1)] == ["one"]  # nothing was lost

    with GatewayThread(route_to(echo().port)) as gateway:
        handle = gateway.gateway.handle

        def guarded(connection: Any, request: Any) -> None:
            if request.headers.get(b"authorization") == b"Bearer secret":
                handle(connection, request)
            else:
                connection.respond(401, b"", b'{"error": {"message": "no key", "code": "invalid_api_key"}}')

        gateway.gateway.handle = guarded  # type: ignore[method-assign]
        run(work(gateway))


def test_a_message_that_is_too_large_for_its_key_is_refused(echo: Echoes, places: dict[str, Address]) -> None:
    large = b'{"error": {"message": "too many tokens", "type": "tokens", "code": "rate_limit_exceeded"}}'
    refused: list[bytes] = []

    async def work(url: str) -> None:
        await send(places["requests"], "large", "small")
        async with Feed(url, places), reading(places["errors"]) as errors, reading(places["answers"]) as answers:
            assert (await records(errors, 1))[0]["error"]["message"] == "too many tokens"
            assert (await records(answers, 1))[0]["text"] == "small"
        assert len(refused) == 2  # the one that comes with a time to wait is asked again

    with GatewayThread(route_to(echo().port)) as gateway:
        handle = gateway.gateway.handle

        def limited(connection: Any, request: Any) -> None:
            again = b"large" not in request.body
            if not again or not any(b"small" in body for body in refused):
                refused.append(request.body)
                connection.respond(429, b"retry-after: 1\r\n" if again else b"", large)
            else:
                handle(connection, request)

        gateway.gateway.handle = limited  # type: ignore[method-assign]
        run(work(gateway.url))
