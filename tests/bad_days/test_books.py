"""The books of a server that is killed: no answer without its row, no row twice, budgets that go on where they were."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sqlalchemy as sa

from pressroom.deploy import Phase, make_wish, wait_until
from pressroom.gateway.money import Budget, Budgets, Period, Scope, Unit
from pressroom.registry import pull

from .conftest import MakeHouse
from .house import House

pytestmark = pytest.mark.slow

REQUESTS, KILLS, AT_ONCE = 600, 5, 12


class Vendor(ThreadingHTTPServer):
    """A vendor of one model, who keeps books of its own: tokens by the name that a request has in its prompt."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.billed: dict[str, tuple[int, int]] = {}
        self.daemon_threads = True
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = str(asked["messages"][-1]["content"])
        time.sleep(random.uniform(0.0, 0.02))
        prompt, completion = len(text.split()), random.randint(1, int(asked["max_tokens"]))
        assert isinstance(self.server, Vendor)
        self.server.billed[text.split()[0]] = (prompt, completion)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        message = {"role": "assistant", "content": "word " * completion}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "v", "choices": [choice],
                           "usage": usage}).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    server = Vendor()
    yield server
    server.shutdown()
    server.server_close()


async def ask(port: int, name: str, answered: dict[str, int]) -> None:
    body = json.dumps(
        {"model": "v", "messages": [{"role": "user", "content": f"{name} says hello"}], "max_tokens": 9}
    ).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    head = "\r\n".join([*lines, "", ""])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    try:
        said = await reader.read()
    finally:
        writer.close()
    status, _, rest = said.partition(b"\r\n\r\n")
    if status.startswith(b"HTTP/1.1 200") and rest.endswith(b"}"):
        answered[name] = json.loads(rest)["usage"]["total_tokens"]


def serve(house: House, vendor: Vendor) -> None:
    pull(house.workspace, f"openai:v@{vendor.url}", name="v")
    wish = make_wish(house.workspace, "v", engine="vendor", options={"no_key": True, "allow_http": True})
    wait_until(house.deployments, wish, Phase.READY, timeout_s=60)


def test_a_server_that_is_killed_again_and_again(house: MakeHouse, vendor: Vendor) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    running = house()
    budget = Budget(scope=Scope.ALL, name="", unit=Unit.TOKENS, period=Period.TOTAL, amount=10**9)
    Budgets(running.workspace).set(budget)
    serve(running, vendor)
    answered: dict[str, int] = {}
    names = iter(range(REQUESTS))

    async def some(count: int) -> None:
        async def client() -> None:
            for _ in range(count // AT_ONCE):
                try:
                    await ask(running.port, f"n{next(names)}", answered)
                except OSError:
                    await asyncio.sleep(0.02)

        await asyncio.gather(*(client() for _ in range(AT_ONCE)))

    for _ in range(KILLS):
        killer = threading.Timer(dice.uniform(0.1, 0.6), running.kill)
        killer.start()
        asyncio.run(some(REQUESTS // (KILLS + 1)))
        killer.join()
        running.start()
        until_ready(running)
    asyncio.run(some(REQUESTS // (KILLS + 1)))
    running.kill()  # what is not folded yet is folded by the next
    running.start()
    with running.workspace.database.reading() as connection:
        rows = connection.execute(sa.text("SELECT * FROM ledger WHERE door = 'chat.completions'")).mappings().all()
        every = connection.execute(sa.text("SELECT id, outcome FROM ledger")).mappings().all()
        spent = connection.execute(
            sa.text("SELECT tokens FROM spending WHERE scope = 'all' AND period = 'total'")
        ).scalar_one()
    assert len({row["id"] for row in every}) == len(every), f"seed {seed}: a row is there twice"
    whole = [row for row in rows if row["outcome"] == "answered"]
    assert len(whole) >= len(answered) > 0, f"seed {seed}: an answer has no row"
    assert sum(row["prompt_tokens"] + row["completion_tokens"] for row in whole) >= sum(answered.values())
    billed = sum(map(sum, vendor.billed.values()))
    told = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    assert told == spent
    # What the vendor bills beyond that was under way when the server was killed: those requests are named as lost.
    lost = [row for row in every if row["outcome"] == "lost"]
    assert 0 <= billed - told <= len(lost) * 12, f"seed {seed}: {billed} billed, {told} in the ledger, {len(lost)} lost"


def until_ready(house: House) -> None:
    wait_until(house.deployments, house.deployments.get("v"), Phase.READY, timeout_s=60)
