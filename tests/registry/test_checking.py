"""`verify` finds what is damaged, missing or contradictory, says which versions have it, and nothing else."""

from __future__ import annotations

import sqlite3

import pytest

from pressroom.kernel import NotFoundError, Progress, Workspace
from pressroom.registry import FileEntry, Registry, Version, _mlflow_tables, verify


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry(workspace)


def make(registry: Registry, content: bytes, name: str = "m") -> Version:
    blob = registry.store.put([content])
    return registry.register(name, [FileEntry(path="model.gguf", blob=blob.digest, size=blob.size)])


def change(workspace: Workspace, statement: str) -> None:
    with sqlite3.connect(workspace.dir / "pressroom.db") as database:
        database.execute(statement)


def test_what_is_whole_is_said_to_be(registry: Registry, workspace: Workspace) -> None:
    make(registry, b"one")
    make(registry, b"two", "other")
    registry.promote("m", "production")
    registry.store.put([b"loose"])
    seen: list[Progress] = []
    workspace.events.subscribe(Progress, seen.append)
    report = verify(workspace)
    assert report.sound and report.problems == []
    assert (report.versions, report.files, report.bytes) == (2, 3, 11)
    assert (report.loose_files, report.loose_bytes) == (1, 5)
    assert seen[-1].done == seen[-1].total == 11
    one = verify(workspace, "m:production")
    assert (one.versions, one.files, one.bytes, one.loose_files) == (1, 1, 3, 0)
    with pytest.raises(NotFoundError):
        verify(workspace, "m:2")


def test_bytes_that_are_gone_are_a_row_without_bytes(registry: Registry, workspace: Workspace) -> None:
    kept = make(registry, b"kept")
    gone = make(registry, b"gone", "a")
    make(registry, b"gone", "b")
    registry.store.delete(gone.files[0].blob)
    report = verify(workspace)
    assert not report.sound and [problem.kind for problem in report.problems] == ["missing"]
    problem = report.problems[0]
    assert problem.refs == ("a:1 (model.gguf)", "b:1 (model.gguf)") and "a:1" in problem.message
    assert problem.blob == gone.files[0].blob and problem.hint
    assert verify(workspace, kept.ref).sound and not verify(workspace, "b").sound


def test_a_row_of_another_size_is_damage(registry: Registry, workspace: Workspace) -> None:
    make(registry, b"whole")
    change(workspace, "update version_files set size = 4")
    kinds = [problem.kind for problem in verify(workspace).problems]
    assert kinds == ["damaged", "record"]  # and the files no longer make the digest


def test_rows_that_were_altered_are_found(registry: Registry, workspace: Workspace) -> None:
    make(registry, b"one")
    make(registry, b"two")
    registry.promote("m:1", "production")
    change(workspace, "update aliases set number = 2")
    assert [problem.message for problem in verify(workspace).problems] == [
        "m:production points to 2, and its history says 1"
    ]
    change(workspace, "delete from aliases")
    assert "points to nothing" in verify(workspace).problems[0].message
    registry.promote("m:1", "production")
    assert verify(workspace).sound
    change(workspace, "update names set last_number = 1")
    assert "above the last number" in verify(workspace).problems[0].message
    change(workspace, "update names set last_number = 2")
    change(workspace, "delete from version_files where number = 2")
    assert [problem.message for problem in verify(workspace).problems] == ["m:2 has no files"]


def test_artifacts_of_mlflow_are_kept_and_looked_at(registry: Registry, workspace: Workspace) -> None:
    """Whether or not MLflow is installed here: another machine may have put them."""
    workspace.database.migrate("mlflow", _mlflow_tables.MIGRATIONS)
    blob = registry.store.put([b"artifact"])
    with workspace.database.begin() as connection:
        _mlflow_tables.put(connection, [("1/run/model.bin", blob.digest, blob.size)], at=1.0)
    assert registry.collect() == 0 and registry.loose() == []
    report = verify(workspace)
    assert report.sound and (report.files, report.bytes, report.loose_files) == (1, 8, 0)
    registry.store.delete(blob.digest)
    problem = verify(workspace).problems[0]
    assert problem.kind == "missing" and "1/run/model.bin" in problem.message


def test_every_byte_is_read(registry: Registry, workspace: Workspace) -> None:
    """One bit of a large file, wherever the store keeps it."""
    import random

    version = make(registry, random.Random(1).randbytes(300_000))
    store = workspace.dir / "store"
    files = sorted((path for path in store.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest = files[-1]
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(content)
    report = verify(workspace)
    assert [problem.kind for problem in report.problems] == ["damaged"]
    assert report.problems[0].refs == (f"m:{version.number} (model.gguf)",)
