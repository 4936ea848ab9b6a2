"""Leases over a socket: messages as bytes, and processes that are killed."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.gateway.admission import Caller, Refused
from pressroom.gateway.money import Hold, Pending, parse_budget
from pressroom.gateway.money.leases import Answer, Ask, Hello, Recall, Refusal, Report, Seen, Spent, Welcome
from pressroom.gateway.money.owner import Owner
from pressroom.gateway.money.worker import Worker

from . import processes
from .clocks import Clocks, budget
from .sockets import OwnerSocket, WorkerSocket, decode, encode, process_alive

POT = ("pot", "key", "älice", "usd", "day", "2026-11-21")
MESSAGES = [
    Hello("s", 7, (Spent(("k", "", "chat", 20778), 10**15, 2**62),), ((POT, -5),)),
    Ask(1, ((POT, 1, 2, 3), (("requests", "k"), 1, 4, 1)), (60, None, 8), True, 1.5),
    Report(2, 3, 4, (), ((POT, 0),), ((("tokens", "k"), 9),)),
    Welcome(5.0, (budget("all", "5usd/day"), budget("key:alice", "2M tokens"))),
    Answer(1, 0, (), Refusal("budget", 429, "no", "t", None, None)),
    Answer(1, 2, ((POT, 3),), None),
    Recall(3, (POT,)),
    Seen(9),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_arrive_as_they_were_sent(message: object) -> None:
    sent = encode(message)  # type: ignore[arg-type]
    assert decode(sent[4:]) == message
    assert int.from_bytes(sent[:4], "big") == len(sent) - 4


@given(st.binary(max_size=40) | st.sampled_from([encode(message)[4:] for message in MESSAGES]), st.integers(0, 200))
def test_what_is_no_message_is_an_error(body: bytes, cut: int) -> None:
    try:
        decode(body[:cut])
    except ValueError:
        return
    assert body[:cut] == body


class Rooms:
    """Files and processes of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, what: str) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.running.append(subprocess.Popen([sys.executable, processes.__file__, what, self.folder], env=environ))
        return self.running[-1]

    def spent(self) -> int:
        return sum(processes.rows(self.folder, session) for session in processes.sessions(self.folder))

    def until(self, what: Callable[[], bool]) -> None:
        while not what():
            assert all(process.poll() in (None, -9) for process in self.running)
            time.sleep(0.02)


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rooms]:
    monkeypatch.chdir(tmp_path)  # a socket's path has little room
    made = Rooms(Path("."))
    yield made
    for process in made.running:
        process.kill()
        process.wait()


def test_owner_and_workers_are_killed_and_nothing_is_overspent_or_stuck(rooms: Rooms) -> None:
    whole = processes.BUDGET.amount
    owner = rooms.start("owner")
    workers = [rooms.start("worker") for _ in range(3)]
    rooms.until(lambda: rooms.spent() > whole // 10)
    workers[0].kill()
    rooms.until(lambda: rooms.spent() > whole // 5)
    owner.kill()
    owner.wait()
    time.sleep(0.3)
    workers[1].kill()
    owner = rooms.start("owner")
    rooms.start("worker")
    rooms.until(lambda: rooms.spent() > whole // 2)
    owner.kill()
    owner.wait()
    rooms.start("owner")
    rooms.until(lambda: rooms.spent() > whole - 12)
    workers[2].kill()
    time.sleep(0.5)
    for process in rooms.running:
        if process.args[2] == "worker":  # type: ignore[index]
            process.kill()
            process.wait()
    left = whole - rooms.spent()
    assert 0 <= left < 12

    async def the_rest() -> None:
        worker = Worker("the-rest", pid=os.getpid(), clock=lambda: processes.DAY * 86400.0)
        worker.beat_s = 0.1
        socket = WorkerSocket(worker, rooms.folder / "owner.sock")
        socket.start()

        async def ask(tokens: int) -> Hold | Refused:
            found = worker.admit(Caller("bob", "red"), "chat", tokens=tokens, nano_usd=0, request_id="r")
            if isinstance(found, Pending):
                answer: asyncio.Future[Hold | Refused] = asyncio.get_running_loop().create_future()
                found.wait(answer.set_result)
                return await answer
            assert isinstance(found, Hold | Refused)
            return found

        while True:
            more = await ask(left + 1)
            assert isinstance(more, Refused)
            rest = await ask(left)
            if isinstance(rest, Hold):
                break
            await asyncio.sleep(0.1)  # until the owner has seen that the others are gone
        rest.settle(tokens=left, nano_usd=0)
        await socket.stop()

    asyncio.run(the_rest())


def test_strangers_on_the_socket_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("run/owner.sock")

    async def main() -> None:
        owner = Owner(
            Clocks().accounts(),
            settled=lambda session: [],
            alive=process_alive,
            budgets=[parse_budget("all", "100 tokens")],
            expected={},
        )
        server = OwnerSocket(owner, path)
        await server.start()
        assert path.stat().st_mode & 0o777 == 0o600
        chance = random.Random(1)
        for said in (b"\xff\xff\xff\xff", b"\0\0\0\1x", encode(Seen(1)), encode(MESSAGES[1]), chance.randbytes(5000)):  # type: ignore[arg-type]
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(said)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
        worker = Worker("w", pid=os.getpid())
        socket = WorkerSocket(worker, path)
        socket.start()
        while not worker.known:
            await asyncio.sleep(0.01)
        found = worker.admit(Caller("a"), "chat", tokens=100, nano_usd=0, request_id="r")
        assert isinstance(found, Pending)
        answer: asyncio.Future[Hold | Refused] = asyncio.get_running_loop().create_future()
        found.wait(answer.set_result)
        assert isinstance(await answer, Hold)
        await server.stop()
        await socket.stop()

    asyncio.run(main())


def test_processes_that_have_ended_are_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    while process_alive(process.pid):
        time.sleep(0.01)
    process.wait()
    assert not process_alive(process.pid)
    assert process_alive(os.getpid())
