"""The machine itself misbehaves: a full disk, a locked database, a clock that jumps, a server that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path

import psutil
import pytest

from pressroom.deploy import Phase, Server, running_server, wait_until

from .clients import CHAT, ask, chat, connected, generate, infer, post, stream_infer, tensors
from .conftest import MakeHouse
from .house import SERVICE, House, until


def answer(house: House, name: str = "m", text: str = "hello") -> str:
    found = asyncio.run(ask(house.port, CHAT, chat(name, text)))
    assert found.status == 200, found
    said: str = found.json()["choices"][0]["message"]["content"]
    return said


# Two at once.

_DEPLOY = """
import sys
from pathlib import Path
from pressroom.deploy import make_wish
from pressroom.kernel import Workspace
with Workspace.open(Path(sys.argv[1])) as workspace:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(20):
        make_wish(workspace, "m:1", engine="echo", options={"text": f"{sys.argv[2]} {number}"})
"""


def test_one_name_deployed_by_two_at_once(house: MakeHouse) -> None:
    """Every wish counts; the last one is what answers, once, and of the others nothing is left."""
    running = house()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _DEPLOY, str(running.workspace.root), who],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who in ("one", "other")
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        assert writer.communicate() == ("", None) and writer.returncode == 0
    last = running.deployments.get("m")
    assert last.generation == 40 and last.options["text"] in ("one 19", "other 19")
    wait_until(running.deployments, last, Phase.READY, timeout_s=60)
    assert answer(running) == last.options["text"]
    until(lambda: len(running.engines()) == 1, "the end of the engines in between")
    assert [each.pid for each in running.engines()] == [running.engine("m")]


# The database.


@pytest.mark.slow
def test_a_database_that_is_locked_for_ten_seconds(house: MakeHouse) -> None:
    running = house("wait_s = 8")
    running.deploy("m")
    answer(running)
    before = running.engine("m")
    with closing(sqlite3.connect(running.workspace.dir / "pressroom.db", isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        over = time.monotonic() + 10
        os.kill(before, signal.SIGKILL)
        answered = 0
        while time.monotonic() < over:
            assert answer(running) == "hello"
            answered += 1
            time.sleep(0.1)
        lock.execute("ROLLBACK")
    assert answered > 20  # its engine was started again in the meantime, and found
    until(lambda: running.seen("m").pid not in (None, before), "a word on the new engine")
    assert running.seen("m").restarts == 1


_FULL = """
import os, signal, sqlite3, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from bad_days.house import House, until
from bad_days.test_machine import answer

root = Path(sys.argv[1])
with House(root, "wait_s = 15") as house:
    for name in "ab":
        house.deploy(name)
    engines = [house.engine(name) for name in "ab"]
    with sqlite3.connect(house.workspace.dir / "pressroom.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    with open(root / "filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(65536))
        except OSError:
            pass
        try:
            while True:
                filler.write(bytes(1))
        except OSError:
            pass
    for pid in engines:
        os.kill(pid, signal.SIGKILL)
    for name in "abab":
        assert answer(house, name) == "hello"
    os.unlink(root / "filler")
    for name, pid in zip("ab", engines):
        until(lambda: house.seen(name).pid not in (None, pid) and house.seen(name).restarts == 1, "a look at " + name)
        assert answer(house, name) == "hello"
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """What runs goes on, and what ends is started again; when there is room, all of it is written down."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a user mount a small disk")
    command = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$1" -c "$2" "$0" "$3"'
    done = subprocess.run(
        [*unshare, "bash", "-c", command, str(tmp_path), sys.executable, _FULL, str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout


# Descriptors.


def test_more_clients_than_there_are_descriptors_for(house: MakeHouse) -> None:
    """Those beyond are let go; engines, database and log go on as if nothing was."""
    running = house(descriptors=512)
    running.deploy("silent", first_delay_s=3_600)
    running.deploy("m")
    engines = running.engine("silent"), running.engine("m")

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(running.port)) for _ in range(800)]
            for number, client in enumerate(clients):
                # Several answers at once need as many connections to the engine.
                body = chat("silent", n=8) if number % 2 else chat("silent", stream=True)
                with suppress(ConnectionError):
                    await client.send(post(CHAT, body))
            await asyncio.sleep(4)  # health is looked at every three seconds
            assert 200 < running.process.num_fds() < 512
            assert running.engine_counts("silent")["active"] > 50

    asyncio.run(scene())
    assert answer(running) == "hello"
    until(lambda: running.calm("silent"))
    assert (running.engine("silent"), running.engine("m")) == engines
    assert "Too many open files" not in running.log() and "Traceback" not in running.log()


# The clock.


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """A day back or forth while it serves: nothing ends, sleeps or is lost, and what dies is started again."""
    real = time.time
    house = House(tmp_path, "[engines]\nidle_stop_s = 3600\n")
    with Server(house.workspace) as server:
        house.url = server.url
        house.deploy("m")
        assert answer(house) == "hello"
        before = house.engine("m")
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        assert answer(house) == "hello"
        time.sleep(1)
        assert answer(house) == "hello" and house.engine("m") == before
        os.kill(before, signal.SIGKILL)
        assert answer(house, text="again") == "again"
        until(lambda: house.seen("m").restarts == 1 and house.seen("m").phase is Phase.READY)
        house.deploy("other")
        assert answer(house, "other") == "hello"
    house.workspace.close()


# The server.


def test_a_server_that_is_killed_under_load(house: MakeHouse) -> None:
    running = house()
    running.deploy("m", tokens=1_000, delay_s=0.02)
    running.deploy("silent", first_delay_s=3_600)
    engines = running.engines()
    assert len(engines) == 2
    port, channel = running.port, running.channel()

    begun = 0

    async def scene() -> list[bytes]:
        async def one(path: str, body: bytes) -> bytes:
            nonlocal begun
            async with connected(port) as connection:
                await connection.send(post(path, body))
                if path != CHAT:
                    return await connection.rest()
                found = await connection.reader.readuntil(b"data: ")
                begun += 1
                return found + await connection.rest()

        asks = [one(CHAT, chat("m", stream=True)) for _ in range(20)]
        asks += [one("/v2/models/silent/generate", generate()) for _ in range(20)]
        waiting = asyncio.gather(*asks)
        stream = stream_infer(channel, SERVICE, [tensors("m", "a")])
        call = infer(channel, SERVICE).future(tensors("silent", "a").SerializeToString(), timeout=60)
        await asyncio.to_thread(next, stream)
        await asyncio.to_thread(until, lambda: begun == 20)
        await asyncio.to_thread(until, lambda: running.figure("pressroom_requests_in_flight") == 42)
        await asyncio.to_thread(running.kill)
        found = await waiting
        assert stream.code() is not None and call.code() is not None  # both have ended, with an error
        assert call.exception() is not None
        return found

    found = asyncio.run(scene())
    channel.close()
    # Connections end: nobody waits for what cannot come.
    assert sum(each.count(b"data: ") > 0 for each in found) == 20 and b"[DONE]" not in b"".join(found)
    _, left = psutil.wait_procs(engines, timeout=30)
    assert not left and running_server(running.workspace) is None
    with closing(sqlite3.connect(running.workspace.dir / "pressroom.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    running.start()
    until(lambda: running.seen("m").phase is Phase.READY and running.seen("silent").phase is Phase.READY)
    assert len(running.engines()) == 2
    running.deploy("m")
    assert answer(running) == "hello"
