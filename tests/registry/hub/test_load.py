"""Many clients, slow clients, clients that leave: completions go on, memory stays bounded, nothing is kept."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import uvloop

from pressroom.engines.backends.echo import EchoServer
from pressroom.gateway import Route
from pressroom.registry.hub import _downloads

from .serving import HubServer, write
from .weights import noise_bytes
from .wire import Wire, until

SIZE = 24 << 20
DATA = noise_bytes(1, SIZE)
FILE = "GET /big/resolve/main/model.safetensors"
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "one two"}]}).encode()


@pytest.fixture(autouse=True)
def model(hub: HubServer, tmp_path: Path) -> None:
    hub.add("big", write(tmp_path / "big", {"model.safetensors": DATA}))


@pytest.fixture
def engine(hub: HubServer) -> Iterator[None]:
    """A model to talk to, behind the same gateway."""
    running, over = threading.Event(), []

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        over.append(lambda: loop.call_soon_threadsafe(stop.set))
        server = EchoServer("m")
        await server.listen()
        hub.routes.set(Route(model="m", host="127.0.0.1", port=server.port, ref="m:1", engine="echo"))
        running.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: uvloop.run(run()), daemon=True)
    thread.start()
    assert running.wait(30)
    yield
    hub.stop()  # first, with its connections to the engine
    over[0]()
    thread.join()


def files_open() -> int:
    """How many descriptors there are for the file's bytes."""
    return sum(Path(file.path).stat().st_size >= SIZE for file in psutil.Process().open_files())


def running(hub: HubServer) -> int:
    assert hub.gateway._hub is not None
    return len(hub.gateway._hub.running)


@pytest.mark.usefixtures("engine")
def test_completions_go_on_while_every_thread_of_the_hub_reads(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is stopped in the middle: what is not the hub's must not wait for it."""
    go_on, entered = threading.Event(), threading.Semaphore(0)
    read = _downloads.Pieces.read

    def stopped(self: _downloads.Pieces, size: int) -> bytes:
        entered.release()
        assert go_on.wait(60)
        return read(self, size)

    monkeypatch.setattr(_downloads.Pieces, "read", stopped)
    downloads = [Wire(hub) for _ in range(8)]
    try:
        for wire in downloads:
            wire.head(FILE)
        for _ in downloads:
            assert entered.acquire(timeout=60)
        with Wire(hub) as wire:
            for _ in range(20):
                assert wire.ask("GET /health/live")[0] == 200
                status, _, body = wire.ask("POST /v1/chat/completions", CHAT)
                assert status == 200 and json.loads(body)["choices"][0]["message"]["content"] == "one two"
        go_on.set()
        for wire in downloads:
            assert wire.answer()[2] == DATA
    finally:
        go_on.set()
        for wire in downloads:
            wire.socket.close()


@pytest.mark.usefixtures("engine")
def test_many_downloads_and_completions_at_once(hub: HubServer) -> None:
    found: list[bool] = []

    def download() -> None:
        with Wire(hub) as wire:
            found.append(wire.ask(FILE)[2] == DATA)

    threads = [threading.Thread(target=download) for _ in range(8)]
    for thread in threads:
        thread.start()
    with Wire(hub) as wire:
        for _ in range(50):
            assert wire.ask("POST /v1/chat/completions", CHAT)[0] == 200
    for thread in threads:
        thread.join()
    assert found == [True] * 8


def test_clients_that_do_not_read_cost_little(hub: HubServer) -> None:
    """40 files of 24 MB are asked for, and nobody takes them."""
    process = psutil.Process()
    hub.registry.sha256(hub.registry.get("big").files[0].blob)
    with Wire(hub) as wire:
        assert wire.ask(FILE)[0] == 200
    before = process.memory_info().rss
    wires = [Wire(hub, receive_buffer=4_096) for _ in range(40)]
    try:
        for wire in wires:
            wire.head(FILE)
        until(lambda: running(hub) == 40)
        figures = hub.gateway.metrics.hub
        assert figures is not None
        with Wire(hub) as wire:
            assert wire.ask(FILE)[2] == DATA  # another one is served meanwhile
        assert process.memory_info().rss - before < 250 << 20  # 960 MB, if they were read ahead
        assert wires[7].answer()[2] == DATA  # and one that begins to read gets everything
    finally:
        for wire in wires:
            wire.socket.close()
    until(lambda: running(hub) == 0 and files_open() == 0)


def test_clients_that_leave_leave_nothing(hub: HubServer) -> None:
    for number in range(30):
        wire = Wire(hub, receive_buffer=4_096)
        wire.head(FILE)
        if number % 3:
            wire.socket.recv(1_000 * number)
        wire.socket.close()
    until(lambda: running(hub) == 0 and files_open() == 0)
    figures = hub.gateway.metrics.hub
    assert figures is not None and figures.requests["GET", 499] == 30


def test_the_figures(hub: HubServer) -> None:
    with Wire(hub) as wire:
        wire.ask(FILE)
        wire.ask("GET /api/models/nothing")
        _, _, text = wire.ask("GET /metrics")
    lines = text.decode().splitlines()
    assert 'pressroom_hub_requests_total{method="GET",status="200"} 1.0' in lines
    assert 'pressroom_hub_requests_total{method="GET",status="404"} 1.0' in lines
    sent = next(line for line in lines if line.startswith("pressroom_hub_sent_bytes_total"))
    assert float(sent.split()[1]) > len(DATA)
    assert "pressroom_hub_requests_in_flight 0.0" in lines


def test_a_stopping_server_ends_what_waits(hub: HubServer) -> None:
    with Wire(hub, receive_buffer=4_096) as wire:
        wire.head(FILE)
        until(lambda: running(hub) == 1)
        hub.stop()
        until(lambda: running(hub) == 0 and files_open() == 0)
