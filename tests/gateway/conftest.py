"""Fixtures that start engines for the gateway, and stop them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from .engines_and_clients import Echoes, Script


@pytest.fixture
def echo() -> Iterator[Echoes]:
    """Starts echo engines: `echo(tokens=5)`."""
    echoes = Echoes()
    yield echoes
    echoes.close()


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Starts scripted engines: `script(lambda connected: connected.sendall(…))`."""
    made: list[Script] = []

    def make(*steps: Callable[[socket.socket], None]) -> Script:
        made.append(Script(*steps))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
