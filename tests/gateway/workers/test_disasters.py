"""Workers and servers that are killed, hang, or must make way."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pressroom.gateway._usage import TEMPLATE
from pressroom.gateway.money import Budgets, Scope, Unit, parse_budget
from pressroom.gateway.workers import owner
from pressroom.kernel import DeployError, PortInUseError, Workspace
from tests.gateway.engines_and_clients import Client, Echoes, chat, post, route_to, until

from . import houses
from .houses import House
from .loads import ask_many, spent, total

Make = Callable[..., House]
Both = Callable[[House], dict[int, Client]]


def set_budget(root: Path, amount: str) -> None:
    with Workspace.open(root) as workspace:
        Budgets(workspace).set(parse_budget("all", amount))


def known(served: House) -> tuple[int, int]:
    """Tokens that are spent, and that are held, as the owner knows."""

    def look() -> tuple[int, int]:
        treasury = served.books.treasury
        (pot,) = treasury.pots()
        return treasury.spent(Scope.ALL, "", "total", Unit.TOKENS), pot.held

    found = served.on_loop(look)
    assert isinstance(found, tuple)
    return found


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_only_its_own_connections(
    echo: Echoes, house: Make, tmp_path: Path, on_both: Both
) -> None:
    set_budget(tmp_path, "100k tokens")
    served = house(route_to(echo(tokens=5, delay_s=0.001).port))
    clients = on_both(served)
    first, other = clients
    done = threading.Event()
    answers: list[Any] = []
    load = threading.Thread(target=lambda: answers.extend(ask_many(served, 60_000, stop=done.is_set)))
    load.start()
    until(lambda: spent(served) > 2_000)
    os.kill(first, signal.SIGKILL)
    # The other one does not notice.
    for _ in range(5):
        assert clients[other].ask(post(chat()))[0] == 200
    with suppress(AssertionError):
        clients[first].ask(post(chat()))
        raise RuntimeError("a dead process answered")
    until(lambda: len(set(served.workers.pids) - {first}) == 2)
    again = on_both(served)
    for client in again.values():
        assert client.ask(post(chat()))[0] == 200
    done.set()
    load.join()
    good = sum(total(answer) for answer in answers if answer is not None and "usage" in answer)
    assert answers.count(None) <= 12
    assert all(answer is None or "usage" in answer for answer in answers)
    until(lambda: good <= spent(served))
    assert spent(served) <= 100_000


@pytest.mark.slow
def test_a_budget_that_is_used_up_while_workers_are_killed(echo: Echoes, house: Make, tmp_path: Path) -> None:
    whole = 40_000
    set_budget(tmp_path, f"{whole} tokens")
    served = house(route_to(echo(tokens=5, delay_s=0.001).port))
    over = threading.Event()
    answers: list[Any] = []
    load = threading.Thread(target=lambda: answers.extend(ask_many(served, 600_000, stop=over.is_set)))
    load.start()
    chance = random.Random(4)
    try:
        for kills in range(1, 5):
            until(lambda share=kills / 5: spent(served) > share * whole, seconds=60)  # type: ignore[misc]
            until(lambda: len(served.workers.pids) == 2)
            os.kill(chance.choice(served.workers.pids), signal.SIGKILL)
        largest = len(chat(max_tokens=20)) + TEMPLATE + 20
        # All is spent but for what was lost with its workers, and what is too little for one more.
        before = (-1, -1)
        while (now := known(served)) != before:
            before = now
            time.sleep(3.0)  # leases that nobody uses are given back in less
        assert whole - largest < sum(now) <= whole
    finally:
        over.set()
        load.join()
    good = sum(total(answer) for answer in answers if answer is not None and "usage" in answer)
    # Rows and reports come within a second; then every answer is in both, and both say the same.
    until(lambda: good <= spent(served) == known(served)[0])


def test_what_a_killed_worker_had_settled_counts_and_what_it_had_not_is_free(
    echo: Echoes, house: Make, tmp_path: Path, on_both: Both
) -> None:
    set_budget(tmp_path, "100k tokens")
    served = house(route_to(echo(tokens=5).port))
    (pid, client), (other, _) = on_both(served).items()
    good = 0
    for _ in range(200):
        good += total(client.ask(post(chat()))[2])
    os.kill(pid, signal.SIGKILL)  # long before all of it was reported
    until(lambda: known(served) == (good, 0))
    assert spent(served) == good
    until(lambda: len(served.workers.pids) == 2)
    assert other in served.workers.pids


def test_what_ran_at_a_killed_worker_is_held(echo: Echoes, house: Make, tmp_path: Path, on_both: Both) -> None:
    set_budget(tmp_path, "100k tokens")
    slow = echo(tokens=5, first_delay_s=60)
    served = house(route_to(slow.port))
    pid, client = next(iter(on_both(served).items()))
    body = chat(max_tokens=20)
    client.send(post(body))
    until(lambda: slow.active == 1)
    time.sleep(0.1)  # the system writes its journal without us
    os.kill(pid, signal.SIGKILL)
    until(lambda: 20 < known(served)[1] < 200)  # no lease any more, but that request
    assert known(served)[0] == 0


@pytest.mark.slow
def test_a_worker_that_hangs_makes_way(
    echo: Echoes, house: Make, on_both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "_SILENCE_S", 3.0)
    served = house(route_to(echo(tokens=5).port))
    clients = on_both(served)
    pid = next(iter(clients))
    os.kill(pid, signal.SIGSTOP)
    old = served.table.get("m")
    assert old is not None
    served.table.set(route_to(echo(tokens=6).port))
    assert served.table.in_flight(old) >= 1  # it may still send there
    until(lambda: pid not in served.workers.pids and len(served.workers.pids) == 2)
    until(lambda: not served.table.in_flight(old))
    for client in on_both(served).values():
        assert client.ask(post(chat()))[2]["usage"]["completion_tokens"] == 6


def test_requests_that_run_go_to_their_end_when_the_routes_change(echo: Echoes, house: Make, on_both: Both) -> None:
    first, second = echo(tokens=5, first_delay_s=1.0), echo(tokens=6)
    old = route_to(first.port)
    served = house(old)
    clients = list(on_both(served).values())
    for client in clients:
        client.send(post(chat()))
    until(lambda: first.active == 2)
    until(lambda: served.table.in_flight(old) == 2)
    served.table.set(route_to(second.port))
    seen = []
    while running := served.table.in_flight(old):
        seen.append(running)
        assert running >= first.active
        time.sleep(0.002)
    assert 2 in seen and not first.active
    for client in clients:
        assert client.response()[0] == 200
        assert client.ask(post(chat()))[2]["usage"]["completion_tokens"] == 6
    assert served.table.last_used(old) > 0 or served.table.get("m") != old


def test_a_model_that_sleeps_is_asked_for(echo: Echoes, house: Make) -> None:
    engine = echo(tokens=5)
    asleep = route_to(0, ready=False, coming=True, asleep=True)
    served = house(asleep)
    with Client(served.port) as client:
        client.send(post(chat()))
        until(lambda: served.table.asked("m"))
        served.table.set(route_to(engine.port))
        assert client.response()[0] == 200


def test_what_runs_comes_to_its_end_when_the_server_stops(echo: Echoes, house: Make) -> None:
    engine = echo(tokens=5, first_delay_s=0.7)
    served = house(route_to(engine.port), drain_s=20)
    with Client(served.port) as client, Client(served.port) as idle, Client(served.port) as carried:
        assert idle.ask(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200
        assert carried.ask(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200
        client.send(post(chat()))
        until(lambda: engine.active)
        pids = served.workers.pids
        began = time.monotonic()
        served.close()
        assert time.monotonic() - began < 15  # not the whole time to drain: idle connections hold nothing up
        assert client.response()[0] == 200
        assert idle.rest() == carried.rest() == b""
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_an_address_that_somebody_has(house: Make, tmp_path_factory: pytest.TempPathFactory) -> None:
    served = house()
    with pytest.raises(PortInUseError):
        House(tmp_path_factory.mktemp("other"), port=served.port).start()


@pytest.mark.slow
def test_workers_that_cannot_start_are_an_error(tmp_path: Path) -> None:
    made = House(tmp_path)
    with (
        made.workspace.lock("ledger-worker-2", purpose="be in the way"),
        pytest.raises(DeployError, match="do not come up"),
    ):
        made.start()


class Server:
    """A server with two workers in a process of its own."""

    def __init__(self, root: Path, port: int, engine: int) -> None:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [
            sys.executable,
            "-m",
            houses.__name__,
            str(root),
            str(port),
            str(engine),
        ]
        self.process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        said = json.loads(self.process.stdout.readline())
        self.port = int(said["url"].rpartition(":")[2])
        self.workers: list[int] = said["workers"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_a_server_that_is_killed_loses_nothing(echo: Echoes, tmp_path: Path) -> None:
    set_budget(tmp_path, "100k tokens")
    engine = echo(tokens=5, first_delay_s=0.6)
    first = Server(tmp_path, 0, engine.port)
    good = 0
    with Client(first.port) as client:
        good += total(client.ask(post(chat()))[2])
        client.send(post(chat()))
        until(lambda: engine.active)
        first.kill()

        def refused() -> bool:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", first.port)):
                return False
            return True

        # Its workers answer what runs, and take nothing more.
        until(refused)
        assert engine.active
        good += total(json.loads(client.response()[2]))
        assert client.rest() == b""
    second = Server(tmp_path, first.port, engine.port)
    try:
        assert not any(lives(pid) for pid in first.workers)
        with Workspace.open(tmp_path) as workspace:
            of_all = [one for one in Budgets(workspace).spending() if one.scope == "all" and one.period == "total"]
            assert [one.tokens for one in of_all] == [good]
        with Client(second.port) as client:
            assert client.ask(post(chat()))[0] == 200
    finally:
        second.kill()
        until(lambda: not any(lives(pid) for pid in second.workers))
