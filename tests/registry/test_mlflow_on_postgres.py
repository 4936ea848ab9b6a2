"""Artifacts of MLflow with their paths in a real PostgreSQL: folders are ranges of bytes there, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import Workspace
from pressroom.registry import Registry
from pressroom.registry import _mlflow_tables as tables
from pressroom.registry._mlflow_files import Files
from pressroom.registry._mlflow_place import Place

pytestmark = pytest.mark.slow


@pytest.fixture
def place(postgres_url: str, tmp_path: Path) -> Iterator[Place]:
    root = tmp_path / "shared"
    root.mkdir()
    with Workspace.open(root, environ={"PRESSROOM_DATABASE": postgres_url}) as workspace:
        registry = Registry(workspace)
        workspace.database.migrate("mlflow", tables.MIGRATIONS)
        yield Place(workspace, registry, "1/run")


def test_folders_on_postgres(place: Place) -> None:
    files = Files(place)
    paths = ["a/b", "a/ü", "a-b", "a.b/c", "A/b", "a0", "a b/c"]
    store = place.registry.store
    files.put({path: lambda path=path: store.put([path.encode()]) for path in paths})  # type: ignore[misc]
    files.put({"a/b": lambda: store.put([b"newer"])})
    assert {entry.path for entry in files.list()} == set(paths)
    assert {entry.path for entry in files.list("a")} == {"a/b", "a/ü"}
    with files.open("a/b") as file:
        assert file.read() == b"newer"
    files.delete("a")
    assert {entry.path for entry in files.list()} == set(paths) - {"a/b", "a/ü"}
    with place.workspace.database.reading() as connection:
        assert len(tables.blobs_of_artifacts(connection)) == 5


def test_where_mlflow_never_was_nothing_is_kept_for_it(postgres_url: str, tmp_path: Path) -> None:
    with Workspace.open(tmp_path, environ={"PRESSROOM_DATABASE": postgres_url}) as workspace:
        Registry(workspace)
        with workspace.database.reading() as connection:
            assert tables.blobs_of_artifacts(connection) == set()
