"""Fixtures that start servers with workers, and stop them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.gateway import Route
from tests.gateway.engines_and_clients import Client

from .houses import House
from .loads import worker_of


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Starts a server with two workers: `house(route, ...)`."""
    made: list[House] = []

    def make(*routes: Route, **more: Any) -> House:
        made.append(House(tmp_path, *routes, **more))
        return made[-1].start()

    yield make
    for each in made:
        each.close()


@pytest.fixture
def on_both() -> Iterator[Callable[[House], dict[int, Client]]]:
    """Opens a connection with each worker: `on_both(served)`, by process."""
    made: list[Client] = []

    def find(served: House) -> dict[int, Client]:
        found: dict[int, Client] = {}
        while len(found) < len(served.workers.pids):
            client = Client(served.port)
            made.append(client)
            client.ask(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            found.setdefault(worker_of(served, client), client)
        return found

    yield find
    for client in made:
        client.close()
