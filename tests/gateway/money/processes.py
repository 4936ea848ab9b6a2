"""An owner and workers as processes of their own: `python processes.py owner|worker FOLDER [SESSION]`.

A worker makes requests without end and writes a row for each into FOLDER/SESSION.rows before it settles it. The owner
learns from these files what was spent before it began, and what a worker that was killed had settled.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path

from pressroom.gateway.admission import Caller, Limits, Refused
from pressroom.gateway.money import Accounts, Hold, Pending, parse_budget
from pressroom.gateway.money.leases import Spent
from pressroom.gateway.money.owner import Owner
from pressroom.gateway.money.worker import Worker
from tests.gateway.money.sockets import OwnerSocket, WorkerSocket, process_alive

BUDGET = parse_budget("team:red", "3000 tokens")
LEASE_S = 2.0
DAY = 20_778


def rows(folder: Path, session: str) -> int:
    """Tokens that a worker has settled."""
    try:
        return sum(int(line) for line in (folder / f"{session}.rows").read_text().split("\n")[:-1])
    except FileNotFoundError:
        return 0


def sessions(folder: Path) -> list[str]:
    return [file.stem for file in folder.glob("*.rows")]


def spent(folder: Path, session: str) -> Iterable[Spent]:
    return [Spent(("alice", "red", "chat", DAY), rows(folder, session), 0)]


async def own(folder: Path) -> None:
    accounts = Accounts(clock=lambda: DAY * 86400.0)
    # One look at the rows, for both: what is loaded, and what of each session is in it.
    seen = {session: spent(folder, session) for session in sessions(folder)}
    for sums in seen.values():
        for each in sums:
            accounts.spend(*each.line, tokens=each.tokens, nano_usd=0)
    expected = {
        session: (int(session.rpartition("-")[2]), sums)
        for session, sums in seen.items()
        if process_alive(int(session.rpartition("-")[2]))
    }
    owner = Owner(
        accounts,
        budgets=[BUDGET],
        settled=lambda session: spent(folder, session),
        alive=process_alive,
        expected=expected,
        lease_s=LEASE_S,
    )
    await OwnerSocket(owner, folder / "owner.sock").start()
    await asyncio.Event().wait()


async def work(folder: Path) -> None:
    session = f"worker-{os.getpid()}"
    file = os.open(folder / f"{session}.rows", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    worker = Worker(session, pid=os.getpid(), clock=lambda: DAY * 86400.0)
    worker.beat_s = 0.1
    WorkerSocket(worker, folder / "owner.sock").start()
    caller = Caller("alice", "red", limits=Limits(parallel=8))

    async def one() -> None:
        while True:
            found = worker.admit(caller, "chat", tokens=random.randrange(1, 12), nano_usd=0, request_id="r")
            if isinstance(found, Pending):
                answer: asyncio.Future[Hold | Refused] = asyncio.get_running_loop().create_future()
                found.wait(answer.set_result)
                found = await answer
            await asyncio.sleep(random.random() * 0.02)
            if isinstance(found, Hold):
                tokens = random.randrange(found.tokens + 1)
                os.write(file, f"{tokens}\n".encode())
                found.settle(tokens=tokens, nano_usd=0)

    await asyncio.gather(*(one() for _ in range(6)))


if __name__ == "__main__":
    asyncio.run((own if sys.argv[1] == "owner" else work)(Path(sys.argv[2])))
