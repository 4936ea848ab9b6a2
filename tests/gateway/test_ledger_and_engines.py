"""The ledger against the engines' own counts: thousands of requests through every door, cut at random moments."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pressroom.gateway import Books
from pressroom.gateway.ledger import Outcome, open_ledger
from pressroom.gateway.money import Accounts, Budget, Period, Scope, Unit
from pressroom.gateway.policy import Policy
from pressroom.kernel import Workspace
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, post, until
from .test_steered_gateway import branch

pytestmark = pytest.mark.slow

REQUESTS, CLIENTS = 5_000, 40
PLENTY = Budget(scope=Scope.ALL, name="", unit=Unit.TOKENS, period=Period.TOTAL, amount=10**12)


def request(dice: random.Random) -> bytes:
    """One of any kind: door, length, streamed or not."""
    words = " ".join(f"w{dice.randrange(1000)}" for _ in range(dice.randint(1, 40)))
    most, stream = dice.randint(1, 60), dice.random() < 0.5
    match dice.randrange(4):
        case 0:
            body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": words}]}
            body |= {"max_tokens": most, "stream": stream}
            if stream and dice.random() < 0.5:
                body["stream_options"] = {"include_usage": True}
            if dice.random() < 0.1:
                body["n"] = dice.randint(2, 3)
            return post(json.dumps(body).encode())
        case 1:
            prompts = [words, "and more"] if dice.random() < 0.2 else words
            body = {"model": "m", "prompt": prompts, "max_tokens": most, "stream": stream}
            return post(json.dumps(body).encode(), "/v1/completions")
        case 2:
            path = f"/v2/models/m/generate{'_stream' if stream else ''}"
            return post(json.dumps({"text_input": words, "parameters": {"max_tokens": most}}).encode(), path)
        case _:
            tensor = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [words]}
            body = {"inputs": [tensor], "parameters": {"max_tokens": most}}
            return post(json.dumps(body).encode(), "/v2/models/m/infer")


async def ask(port: int, dice: random.Random, leaves: Counter[str]) -> None:
    """One request on a connection of its own; one in four leaves before its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(dice).replace(b"Host: localhost", b"Host: localhost\r\nConnection: close"))
    try:
        if dice.random() < 0.25:
            await asyncio.sleep(dice.choice((0.0, 0.001, 0.005, 0.02, 0.05)))
            leaves["left"] += 1
            if dice.random() < 0.5:
                writer.transport.abort()
        else:
            await reader.read()
            leaves["stayed"] += 1
    finally:
        writer.close()


async def crowd(port: int, seed: int, leaves: Counter[str]) -> None:
    async def client(number: int) -> None:
        dice = random.Random(f"{seed} {number}")
        for _ in range(REQUESTS // CLIENTS):
            await ask(port, dice, leaves)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))


def test_five_thousand_mixed_requests(tmp_path: Path, echo: Callable[..., Any]) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    engines = [echo(), echo(delay_s=0.001), echo(delay_s=0.002)]
    accounts = Accounts((PLENTY,))
    leaves: Counter[str] = Counter()
    with Workspace.open(tmp_path) as workspace:
        ledger = open_ledger(workspace)
        ledger.start()
        with GatewayThread(books=Books(accounts, ledger)) as gateway:
            gateway.routes.put_branches(
                "m",
                [branch(f"b{number}", engine.port) for number, engine in enumerate(engines)],
                policy=Policy.parse({}, ["b0", "b1", "b2"], ["b0", "b1", "b2"]),
            )
            thread = threading.Thread(target=lambda: asyncio.run(crowd(gateway.port, seed, leaves)))
            thread.start()
            thread.join()
            # Connections are taken in the order they came: behind this one there are none that somebody left.
            with Client(gateway.port) as last:
                assert last.ask(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200
            until(lambda: gateway.on_loop(lambda: not accounts.open()))
            spent = gateway.on_loop(lambda: accounts.spent(Scope.ALL, "", "total", Unit.TOKENS))
        assert ledger.stop()
        with workspace.database.reading() as connection:
            rows = connection.execute(sa.text("SELECT * FROM ledger")).mappings().all()
    made = (
        sum(engine.prompt_tokens for engine in engines),
        sum(engine.completion_tokens for engine in engines),
    )
    told = sum(row["prompt_tokens"] for row in rows), sum(row["completion_tokens"] for row in rows)
    outcomes = Counter(row["outcome"] for row in rows)
    assert told == made, f"seed {seed}: {outcomes}, {leaves}"
    assert spent == sum(told)
    assert outcomes.keys() <= {Outcome.ANSWERED, Outcome.LEFT}
    assert outcomes[Outcome.LEFT] > 100
    assert len({row["id"] for row in rows}) == len(rows)
