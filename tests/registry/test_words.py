"""What is said of a version beside its files: tags, a description, its run; SHA-256; bytes kept for later."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading

import pytest

from pressroom.kernel import NotFoundError, Workspace
from pressroom.registry import AnnotationError, Figure, FileEntry, Registry, Version
from pressroom.registry import _tables as tables


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry(workspace)


def entry(registry: Registry, content: bytes, path: str = "model.gguf") -> FileEntry:
    blob = registry.store.put([content])
    return FileEntry(path=path, blob=blob.digest, size=blob.size)


def make(registry: Registry, content: bytes, name: str = "m", **more: object) -> Version:
    return registry.register(name, [entry(registry, content)], **more)  # type: ignore[arg-type]


def test_what_is_said_with_a_version_is_given_back(registry: Registry) -> None:
    made = make(
        registry,
        b"one",
        tags={"team": "search", "mlflow.source": "train.py"},
        description="The first.\nOf many: ü",
        run="a1b2",
        figures=[Figure(name="kl_mean", value=0.25)],
    )
    assert made == registry.get("m:1")
    assert made.tags == {"team": "search", "mlflow.source": "train.py"}
    assert (made.description, made.run) == ("The first.\nOf many: ü", "a1b2")
    assert [figure.value for figure in made.sheet] == [0.25]
    assert make(registry, b"two").tags == {}


def test_tags_are_set_changed_and_taken_away(registry: Registry) -> None:
    make(registry, b"one", tags={"a": "1", "b": "2"}, description="first")
    found = registry.annotate("m", tags={"a": "3", "b": None, "c": "", "never": None})
    assert found.tags == {"a": "3", "c": ""} and found.description == "first"
    found = registry.annotate("m", description="second", run="r")
    assert (found.tags, found.description, found.run) == ({"a": "3", "c": ""}, "second", "r")
    assert registry.annotate("m", description="", run="").description == ""
    with pytest.raises(NotFoundError):
        registry.annotate("m:2", tags={"a": "1"})


def test_the_words_are_no_part_of_the_digest(registry: Registry) -> None:
    made = make(registry, b"one")
    assert registry.annotate("m", tags={"a": "1"}, description="x").digest == made.digest
    again = make(registry, b"one", tags={"b": "2"})
    assert (again.number, again.tags, again.description) == (1, {"a": "1", "b": "2"}, "x")


def test_what_cannot_be_a_tag(registry: Registry) -> None:
    make(registry, b"one")
    for tag in ("", " ", " a", "a ", "a=b", "a\nb", "a\x1b[31m", "a\0", "x" * 251, "\ud800"):
        with pytest.raises(AnnotationError):
            registry.annotate("m", tags={tag: "x"})
        with pytest.raises(AnnotationError):
            make(registry, b"two", tags={tag: "x"})
    assert [version.tags for version in registry.list()] == [{}]


def test_what_cannot_be_said(registry: Registry) -> None:
    make(registry, b"one")
    for text in ("a\0b", "\ud800", "x" * 100_001, "\x1b[2J"):
        for words in ({"tags": {"a": text}}, {"description": text}, {"run": text}):
            with pytest.raises(AnnotationError):
                registry.annotate("m", **words)  # type: ignore[arg-type]


def test_everything_goes_with_the_version(registry: Registry, workspace: Workspace) -> None:
    make(registry, b"one", tags={"a": "1"}, description="x", figures=[Figure(name="f", value=1)])
    registry.sha256(registry.get("m").files[0].blob)
    registry.delete("m")
    with sqlite3.connect(workspace.dir / "pressroom.db") as database:
        for table in ("version_tags", "version_notes", "figures", "version_files", "versions", "blob_hashes"):
            assert database.execute(f"select count(*) from {table}").fetchone() == (0,)
    assert make(registry, b"one").tags == {}


def test_threads_tag_at_once(registry: Registry) -> None:
    make(registry, b"one")
    threads = [
        threading.Thread(target=lambda n=n: registry.annotate("m", tags={"who": str(n), str(n): "x"}, run=str(n)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = registry.get("m")
    assert found.tags.keys() == {"who", *map(str, range(8))} and found.run in found.tags


def test_a_version_is_not_its_own_parent(registry: Registry) -> None:
    made = make(registry, b"one", "a")
    assert make(registry, b"one", "b", parent=made.digest).parent is None


def test_what_a_table_cannot_take_is_refused(registry: Registry) -> None:
    for parent in ("", "x", "sha256-abc", "blake3-" + "0" * 64):
        with pytest.raises(ValueError, match="parent"):
            make(registry, b"one", parent=parent)
    for figure in (Figure(name="", value=1), Figure(name="x" * 101, value=1), Figure(name="x", value=1, unit="x" * 41)):
        with pytest.raises(ValueError, match="figure"):
            make(registry, b"one", figures=[figure])
    assert registry.list() == []


def test_metadata_of_a_header_that_has_no_numbers(registry: Registry) -> None:
    made = make(registry, b"one", metadata={"a": float("nan"), "b": [float("inf"), {"c": -float("inf")}], "d": 1.5})
    assert made.metadata == {"a": "nan", "b": ["inf", {"c": "-inf"}], "d": 1.5}


def test_a_number_is_taken_where_it_is_free(registry: Registry) -> None:
    assert make(registry, b"one", number=3, created=12.5).number == 3
    assert registry.get("m:3").created == 12.5
    assert make(registry, b"two", number=2).number == 4
    assert make(registry, b"three", number=4).number == 5


def test_sha256_is_computed_once_and_looked_up(registry: Registry, workspace: Workspace) -> None:
    content = b"weights" * 1000
    blob = make(registry, content).files[0].blob
    expected = hashlib.sha256(content).hexdigest()
    assert registry.by_sha256(expected) is None
    assert registry.sha256(blob) == expected
    assert registry.by_sha256(expected) == blob
    held = registry.store
    registry.store = None  # type: ignore[assignment]  # it is not read again
    assert registry.sha256(blob) == expected
    registry.store = held
    assert Registry(workspace).by_sha256(expected) == blob
    with pytest.raises(NotFoundError):
        registry.sha256("blake3-" + "0" * 64)
    registry.delete("m")
    assert registry.by_sha256(expected) is None


def test_sha256_is_taken_from_who_read_the_bytes_anyway(registry: Registry) -> None:
    blob = registry.store.put([b"x"])
    known = hashlib.sha256(b"x").hexdigest()
    registry.remember_sha256(blob.digest, known)
    registry.remember_sha256(blob.digest, known)
    assert registry.by_sha256(known) == blob.digest
    with pytest.raises(ValueError, match="SHA-256"):
        registry.remember_sha256(blob.digest, "abc")


def test_leased_bytes_are_not_collected(registry: Registry) -> None:
    blob = registry.store.put([b"pushed"])
    registry.lease([blob.digest, "blake3-" + "0" * 64])
    assert registry.collect() == 0 and registry.loose() == []
    registry.lease([blob.digest], seconds=-1)  # a longer lease stays
    assert registry.collect([blob.digest]) == 0
    version = registry.register("m", [FileEntry(path="f", blob=blob.digest, size=blob.size)])
    assert registry.delete(version.ref) == 6
    short = registry.store.put([b"short"])
    registry.lease([short.digest], seconds=-1)
    assert [held.digest for held in registry.loose()] == [short.digest]
    assert registry.collect() == 5


def test_folders_of_gone_versions_and_dead_processes_are_swept(registry: Registry, workspace: Workspace) -> None:
    files = [entry(registry, b"a", "model.safetensors"), entry(registry, b"{}", "config.json")]
    version = registry.register("m", files)
    kept = registry.materialise(version)
    cache = workspace.path("cache")
    gone = cache / f"sha256-{'0' * 64}"
    for folder in (gone, cache / f".{version.digest}-419430499-1", cache / f".sha256-{'1' * 64}-1-2"):
        folder.mkdir()
    (cache / "something-else").mkdir()
    assert len(registry.leftovers()) == 3
    registry.collect()
    assert sorted(path.name for path in cache.iterdir()) == [kept.name, "something-else"]


def test_folders_that_nobody_uses_are_swept_where_it_is_known_who_does(
    registry: Registry, workspace: Workspace
) -> None:
    folders = []
    for name in ("deployed", "idle", "fresh"):
        files = [entry(registry, name.encode(), "model.safetensors"), entry(registry, b"{}", "config.json")]
        version = registry.register(name, files)
        folders.append(registry.materialise(version))
        if name != "fresh":
            os.utime(folders[-1], (1.0, 1.0))
    deployed = registry.get("deployed").digest
    assert registry.leftovers() == []
    assert registry.leftovers({deployed}) == [folders[1]]
    assert registry.materialise(registry.get("idle")) == folders[1]
    assert registry.leftovers({deployed}) == []
    os.utime(folders[1], (1.0, 1.0))
    registry.collect(needed={deployed})
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert (registry.materialise(registry.get("idle")) / "model.safetensors").read_bytes() == b"idle"


def test_a_workspace_from_before_goes_on(workspace: Workspace) -> None:
    """The first two steps of the migrations, filled as they were; the others are added without touching them."""
    workspace.database.migrate("registry", tables.MIGRATIONS[:2])
    with workspace.database.begin() as connection:
        connection.execute(tables.names.insert().values(name="m", last_number=1))
        connection.execute(
            tables.versions.insert().values(
                name="m", number=1, digest="sha256-" + "a" * 64, kind="base", source="", created=1.0, metadata={"a": 1}
            )
        )
    registry = Registry(workspace)
    version = registry.get("m")
    assert (version.metadata, version.tags, version.aliases, version.description) == ({"a": 1}, {}, (), "")
    assert registry.annotate("m", tags={"kept": "yes"}).tags == {"kept": "yes"}
    registry.promote("m:1", "production")
    assert registry.get("m:production").number == 1
