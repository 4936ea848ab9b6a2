"""A workspace, a hub on a free port, and clients that know no other hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import Workspace

from .serving import HubServer, Tool, write
from .weights import SMOL


@pytest.fixture(autouse=True)
def _no_other_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process, clients send files by LFS: Xet keeps a cache in the home of whoever runs the tests."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    root = tmp_path / "workspace"
    root.mkdir()
    with Workspace.open(root, environ={}) as opened:
        yield opened


@pytest.fixture
def hub(workspace: Workspace) -> Iterator[HubServer]:
    with HubServer(workspace) as running:
        yield running


@pytest.fixture
def tool(hub: HubServer, tmp_path: Path) -> Tool:
    """Programs that use the hub, each in a process of its own."""
    return Tool(hub, tmp_path)


@pytest.fixture
def smol(tmp_path: Path) -> Path:
    """A folder with a model of a few hundred bytes."""
    return write(tmp_path / "smol", SMOL)
