"""`press feed` as a process of its own, between real brokers and a real server: it is killed, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.cli._app import run
from pressroom.deploy import Deployments, Phase, Server, wait_until
from pressroom.gateway.feeds import Address, FeedSettings, Outgoing, broker_for, parse_address
from pressroom.kernel import Workspace
from tests.gateway.feeds.servers import Kafka, Nats
from tests.gateway.feeds.servers import Server as BrokerServer

# Only ends a test that fails.
_PATIENCE_S = 120.0
_MESSAGES = 200


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[Nats]:
    server = Nats(tmp_path / "broker")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def kafka_server(tmp_path: Path) -> Iterator[Kafka]:
    server = Kafka(tmp_path / "broker")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A workspace whose server runs an echo called parrot, a hundredth of a second a word."""
    (tmp_path / "pressroom.toml").write_text("[gateway]\nport = 0\ngrpc_port = -1\ndrain_s = 1.0\n")
    with Workspace.open(tmp_path) as workspace, Server(workspace):
        deployments = Deployments(workspace)
        made = deployments.put("parrot", ref="parrot:1", digest="", engine="echo", options={"delay_s": 0.01})
        wait_until(deployments, made, Phase.READY, timeout_s=60)
        yield tmp_path


def start(folder: Path, source: str, sink: str, *more: str) -> subprocess.Popen[str]:
    arguments = ["--deployment", "parrot", "--from", source, "--to", sink, "--json", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "pressroom", "feed", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def fill(address: Address, texts: list[str]) -> None:
    sink = broker_for(address.scheme, {}).sink(address, FeedSettings(group="fill"))
    await sink.open()
    for number, text in enumerate(texts):
        body = {"id": number, "prompt": text}
        await sink.publish(Outgoing(data=json.dumps(body).encode(), key=f"in-{number}"))
    await sink.close()


class Reader:
    """What was answered so far: each message that the broker has, once."""

    def __init__(self, address: Address) -> None:
        settings = FeedSettings(group="reader", ack_wait_s=3)
        self._source = broker_for(address.scheme, {}).source(address, settings)
        self._found: dict[str, dict[str, Any]] = {}

    @property
    def records(self) -> list[dict[str, Any]]:
        return list(self._found.values())

    async def __aenter__(self) -> Reader:
        await self._source.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._source.close()

    async def until(self, ids: int) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while len({record["id"] for record in self.records}) < ids:
            assert time.monotonic() < deadline, f"{len(self.records)} of {ids} answers came"
            for message in await self._source.receive(50):
                self._found[message.key] = json.loads(message.data)
                await self._source.ack(message)


def survives_kills(folder: Path, broker: BrokerServer) -> list[dict[str, Any]]:
    """Feed 200 messages through processes of which the first two are killed in the middle; what was answered."""
    source, sink = broker.fresh("requests"), broker.fresh("answers")
    texts = [f"number {number}" for number in range(_MESSAGES)]
    more = ("--concurrency", "8", "--ack-wait", "3")

    async def work() -> list[dict[str, Any]]:
        await fill(parse_address(source), texts)
        async with Reader(parse_address(sink)) as reader:
            for seen in (40, 100):
                process = start(folder, source, sink, *more)
                await reader.until(seen)
                process.kill()
                process.communicate()
            process = start(folder, source, sink, *more)
            await reader.until(_MESSAGES)
            process.send_signal(signal.SIGINT)
            output, errors = await asyncio.to_thread(process.communicate)
            assert process.returncode == 0, errors
            assert json.loads(output)["refused"] == 0
            return reader.records

    found = asyncio.run(work())
    assert {record["id"]: record["text"] for record in found} == dict(enumerate(texts))
    return found


def test_killed_in_the_middle_every_message_is_answered(folder: Path, nats_server: Nats) -> None:
    found = survives_kills(folder, nats_server)
    assert len(found) == _MESSAGES, "and the server has dropped second answers"


@pytest.mark.slow  # the group waits for the session of the one that was killed to end
def test_killed_in_the_middle_every_message_of_kafka_is_answered(folder: Path, kafka_server: Kafka) -> None:
    survives_kills(folder, kafka_server)


def test_an_interrupt_ends_it_in_order_and_says_what_was_done(folder: Path, nats_server: Nats) -> None:
    source, sink = nats_server.fresh("requests"), nats_server.fresh("answers")

    async def work() -> None:
        await fill(parse_address(source), [f"number {number}" for number in range(12)])
        process = start(folder, source, sink, "--concurrency", "2", "--stream")
        async with Reader(parse_address(sink)) as reader:
            await reader.until(4)
            process.send_signal(signal.SIGINT)
            output, errors = await asyncio.to_thread(process.communicate)
            assert process.returncode == 0, errors
            counts = json.loads(output)
            assert counts["answered"] == counts["received"] >= 4 and counts["in_flight"] == 0
            assert counts["completion_tokens"] == 2 * counts["answered"]
            await reader.until(counts["answered"])

    asyncio.run(work())


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def feed(*arguments: str) -> int:
    return run(["feed", "--deployment", "parrot", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "nats://localhost/a.>", "--to", "nats://127.0.0.1/a.b"], "read again"),
        (["--from", "kafka://h:9/t", "--to", "nats://h/x", "--errors", "kafka://h:9/t"], "read again"),
        (["--from", "kafka://h/t", "--to", "kafka://h/u", "--no-jetstream"], "--no-jetstream"),
        (["--from", "amqp://h/t", "--to", "nats://h/u"], "'amqp'"),
        (["--from", "nats://h/a", "--to", "nats://h/b.*"], "pattern"),
        (["--from", "nats://h/a", "--to", "nats://h/b", "--group", "with.dots"], "with.dots"),
        (["--from", "nats://h/a", "--to", "nats://h/b"], "parrot"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_read(
    empty: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert feed(*arguments) == 1
    assert said in capsys.readouterr().err


def test_a_password_in_an_address_is_refused_and_not_repeated(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert feed("--from", "nats://u:hunter2@h/a", "--to", "nats://h/b", "--json") == 1
    output = "".join(capsys.readouterr())
    assert "hunter2" not in output and json.loads(output)["error"]["code"] == "feed_address"


def test_the_password_is_not_in_the_arguments_of_the_process(folder: Path, tmp_path: Path) -> None:
    server = Nats(tmp_path / "nats", user="press", password="hunter2")
    server.start()
    try:
        source, sink = server.fresh("requests"), server.fresh("answers")
        environment = {**os.environ, "NATS_USER": "press", "NATS_PASSWORD": "hunter2"}
        command = [sys.executable, "-m", "pressroom", "feed", "--deployment", "parrot", "--from", source, "--to", sink]
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert source in line and sink in line
        assert b"hunter2" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        assert process.returncode == 0 and "hunter2" not in line + errors
    finally:
        server.kill()
