"""MLflow's database takes seconds to make: once for all tests, which begin with a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pressroom.track.backends.mlflow import Backend


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mlflow")
    with Backend("sqlite:///empty.db", root=root) as tracker:
        assert tracker._client.search_experiments()[0].name == "Default"  # makes the tables, and nothing else
    return root / "empty.db"


@pytest.fixture
def prepared(empty_database: Path) -> Callable[[Path], None]:
    """Puts the tables into a workspace that has none."""

    def prepare(root: Path) -> None:
        target = root / ".pressroom" / "mlflow.db"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(empty_database, target)

    return prepare
