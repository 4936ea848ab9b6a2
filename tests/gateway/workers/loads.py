"""What tests of workers send, and where they look at what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pressroom.gateway.money import Budgets
from tests.gateway.engines_and_clients import Client, chat, post

from .houses import House


def worker_of(served: House, client: Client) -> int:
    """The process that a connection is with."""
    import psutil

    port = client.socket.getsockname()[1]
    for pid in served.workers.pids:
        for connection in psutil.Process(pid).net_connections(kind="tcp"):
            if connection.raddr and connection.raddr.port == port:
                return pid
    raise AssertionError("nobody has the connection")


def total(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["total_tokens"])


def spent(served: House) -> int:
    """Tokens of all requests, as the database has them."""
    return sum(
        one.tokens for one in Budgets(served.workspace).spending() if one.scope == "all" and one.period == "total"
    )


def ask_many(served: House, count: int, *, threads: int = 12, stop: Callable[[], bool] = lambda: False) -> list[Any]:
    """Send so many requests over several connections; the answers, None where a connection broke."""

    def some(number: int) -> list[Any]:
        found: list[Any] = []
        client: Client | None = None
        for _ in range(count // threads):
            if stop():
                break
            try:
                client = client or Client(served.port)
                client.send(post(chat(max_tokens=20)))
                found.append(json.loads(client.response()[2]))
            except (AssertionError, OSError):
                found.append(None)
                if client is not None:
                    client.close()
                    client = None
        if client is not None:
            client.close()
        return found

    with ThreadPoolExecutor(threads) as pool:
        return [answer for each in pool.map(some, range(threads)) for answer in each]
