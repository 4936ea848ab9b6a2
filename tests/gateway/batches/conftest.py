"""Fixtures: a workspace, and a gateway over echo engines with the door of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.kernel import Workspace

from .serving import Echoes, Serving, route_to


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "pressroom.toml").write_text("[gateway]\nport = 0\n[batch]\nmax_file_bytes = 2_000_000\n")
    with Workspace.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def serving(workspace: Workspace, echo: Echoes) -> Iterator[Callable[..., Serving]]:
    """Starts a gateway: `serving(delay_s=0.1)` gives the echo its options."""
    made: list[Serving] = []

    def make(*, clock: Any = None, **options: Any) -> Serving:
        serving = Serving(workspace, route_to(echo(**options).port), clock=clock)
        made.append(serving.__enter__())
        return serving

    yield make
    for each in made:
        each.__exit__(None, None, None)
