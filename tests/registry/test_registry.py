"""Versions: numbers, look-up, figures, removal, and a path an engine can load."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pressroom.kernel import InUseError, NotFoundError, RefError, StoreError, Workspace
from pressroom.registry import Figure, FileEntry, Registry, Version, manifest_digest


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry(workspace)


def entry(registry: Registry, content: bytes, path: str = "model.gguf") -> FileEntry:
    blob = registry.store.put([content])
    return FileEntry(path=path, blob=blob.digest, size=blob.size)


def make(registry: Registry, content: bytes, name: str = "m", *, parent: str | None = None) -> Version:
    return registry.register(name, [entry(registry, content)], parent=parent)


def test_numbers_rise_and_equal_files_are_one_version(registry: Registry) -> None:
    first = make(registry, b"one")
    second = make(registry, b"two")
    assert (first.number, second.number) == (1, 2)
    assert make(registry, b"one") == first
    assert make(registry, b"one", "other").number == 1
    assert first.digest == manifest_digest(first.files)
    assert registry.get("m") == second
    assert [v.ref.version for v in registry.list("m")] == ["1", "2"]


def test_a_number_is_not_used_again(registry: Registry) -> None:
    make(registry, b"one")
    make(registry, b"two")
    registry.delete("m:2")
    assert make(registry, b"three").number == 3
    registry.delete("m:1")
    registry.delete("m:3")
    assert make(registry, b"one").number == 4


def test_everything_said_of_a_version_is_given_back(registry: Registry) -> None:
    files = [entry(registry, b"a", "model.safetensors"), entry(registry, b"{}", "config.json")]
    made = registry.register(
        "org/m", files, kind="fine-tune", parent="sha256-" + "0" * 64, source="hf:org/m@c", metadata={"parameters": 7}
    )
    assert made == registry.get(made.ref) == registry.get("org/m:1") == registry.get(f"org/m@{made.digest}")
    assert {f.path for f in made.files} == {"model.safetensors", "config.json"}
    assert (made.kind, made.parent, made.source, made.metadata) == (
        "fine-tune",
        "sha256-" + "0" * 64,
        "hf:org/m@c",
        {"parameters": 7},
    )
    assert made.size == 3


def test_get_by_the_beginning_of_a_digest(registry: Registry) -> None:
    made = [make(registry, str(n).encode()) for n in range(40)]
    whole = made[7]
    assert registry.get(f"m@{whole.digest[: len('sha256-') + 16]}") == whole
    assert registry.get(f"m:8@{whole.digest[:12]}") == whole
    with pytest.raises(NotFoundError):
        registry.get(f"m:9@{whole.digest}")
    # Of forty digests the beginnings of four digits do not all differ for ever: make two that share one.
    same = {}
    number = 0
    while True:
        digest = manifest_digest(
            [FileEntry(path="model.gguf", blob=registry.store.put([b"x%d" % number]).digest, size=len(b"x%d" % number))]
        )
        start = digest[: len("sha256-") + 4]
        if start in same:
            break
        same[start] = number
        number += 1
    make(registry, b"x%d" % same[start], "twins")
    make(registry, b"x%d" % number, "twins")
    with pytest.raises(RefError, match="ambiguous"):
        registry.get(f"twins@{start}")


def test_what_is_not_there_is_said_with_what_is(registry: Registry) -> None:
    make(registry, b"one", "smollm2")
    with pytest.raises(NotFoundError) as caught:
        registry.get("smolm2")
    assert "smollm2" in caught.value.hint
    with pytest.raises(NotFoundError) as caught:
        registry.get("smollm2:7")
    assert "1" in caught.value.hint
    with pytest.raises(NotFoundError, match="alias") as caught:
        registry.get("smollm2:production")
    assert "No aliases" in caught.value.hint
    with pytest.raises(NotFoundError):
        registry.list("smolm2")
    with pytest.raises(RefError):
        registry.get("../../etc")


_NO_PATHS = ["", "/etc/passwd", "../up", "a/../../b", "a//b", "./a", "a\\b", "a\0b", "c:a", "a\x9b", "a\udcff"]


@pytest.mark.parametrize("path", [*_NO_PATHS, "x" * 256, "x/" * 250 + "x"])
def test_a_path_that_leaves_the_version_is_refused(registry: Registry, path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        registry.register("m", [entry(registry, b"x", path)])
    assert registry.list() == []


def test_files_that_are_not_held_are_refused(registry: Registry) -> None:
    held = entry(registry, b"x")
    with pytest.raises(StoreError):
        registry.register("m", [FileEntry(path="f", blob=held.blob, size=2)])
    with pytest.raises(StoreError):
        registry.register("m", [FileEntry(path="f", blob="blake3-" + "0" * 64, size=1)])
    for files in ([], [held, held]):
        with pytest.raises(ValueError, match="files"):
            registry.register("m", files)
    with pytest.raises(ValueError, match="kind"):
        registry.register("m", [held], kind="best")
    with pytest.raises(RefError):
        registry.register("no name", [held])
    assert registry.list() == []


def test_figures_replace_those_of_their_name(registry: Registry) -> None:
    make(registry, b"one")
    registry.add_figures("m:1", [Figure(name="perplexity", value=9.5, unit="", how="text", where="here", at=1.0)])
    registry.add_figures("m:1", [Figure(name="bytes", value=3), Figure(name="perplexity", value=8)])
    version = registry.get("m:1")
    assert [f.name for f in version.sheet] == ["perplexity", "bytes"]
    found = version.figure("perplexity")
    assert found is not None and found.value == 8 and found.how == "" and found.at > 1.0
    with pytest.raises(NotFoundError):
        registry.add_figures("m:2", [Figure(name="bytes", value=3)])


def test_delete_lets_go_of_what_nobody_else_has(registry: Registry) -> None:
    shared = entry(registry, b"shared", "tokenizer.json")
    only = [entry(registry, b"one"), entry(registry, b"second", "x")]
    registry.register("a", [shared, *only])
    registry.register("b", [shared])
    assert registry.delete("a") == len(b"one") + len(b"second")
    assert registry.store.size(shared.blob) == 6
    assert all(registry.store.size(e.blob) is None for e in only)
    with pytest.raises(NotFoundError):
        registry.get("a")
    assert registry.delete("b") == 6


def test_what_is_held_is_not_removed(registry: Registry) -> None:
    parent = make(registry, b"base")
    make(registry, b"tuned", "tuned", parent=parent.digest)
    with pytest.raises(InUseError, match="tuned:1"):
        registry.delete("m")
    registry.delete("tuned")
    registry.holders.append(lambda version: "somebody reads it" if version.name == "m" else None)
    with pytest.raises(InUseError, match="somebody reads it"):
        registry.delete("m")
    assert registry.get("m") == parent and registry.store.size(parent.files[0].blob) is not None


def test_bytes_left_by_a_cut_run_are_collected(registry: Registry) -> None:
    kept = make(registry, b"kept")
    loose = registry.store.put([b"loose"])
    assert registry.collect() == 5
    assert registry.store.size(loose.digest) is None
    assert registry.store.size(kept.files[0].blob) == 4
    assert registry.collect() == 0


def test_one_file_is_loaded_where_it_lies(registry: Registry) -> None:
    version = make(registry, b"weights")
    assert registry.materialise(version) == registry.store.path(version.files[0].blob)


def test_a_folder_is_laid_out_under_its_own_names(registry: Registry, workspace: Workspace) -> None:
    files = [entry(registry, b"a", "model.safetensors"), entry(registry, b"{}", "sub/config.json")]
    version = registry.register("m", files)
    places: list[Path] = []
    threads = [threading.Thread(target=lambda: places.append(registry.materialise(version))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(places) == 8 and len(set(places)) == 1
    folder = places[0]
    assert (folder / "model.safetensors").read_bytes() == b"a"
    assert (folder / "sub" / "config.json").read_bytes() == b"{}"
    assert [p.name for p in folder.parent.iterdir()] == [version.digest]
    registry.delete("m")
    assert not folder.exists()


def test_materialise_says_what_is_gone(registry: Registry) -> None:
    version = make(registry, b"weights")
    registry.store.delete(version.files[0].blob)
    with pytest.raises(NotFoundError):
        registry.materialise(version)


_REGISTER = """
import sys
from pathlib import Path
from pressroom.kernel import Workspace
from pressroom.registry import FileEntry, Registry

with Workspace.open(Path(sys.argv[1]), environ={}) as workspace:
    registry = Registry(workspace)
    sys.stdin.readline()
    for n in range(10):
        blob = registry.store.put([f"{sys.argv[2]}-{n}".encode()])
        registry.register("m", [FileEntry(path="f", blob=blob.digest, size=blob.size)])
        if n % 3 == 0:
            registry.collect()
"""


def test_processes_register_at_once(workspace: Workspace) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _REGISTER, str(workspace.root), str(who)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who in range(3)
    ]
    failures = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate()
        # A collection between somebody's put and register takes the bytes: register must then refuse, never lie.
        if process.returncode:
            failures.append(errors)
    assert all("is not held" in failure for failure in failures), failures
    registry = Registry(workspace)
    versions = registry.list("m")
    assert [v.number for v in versions] == list(range(1, len(versions) + 1))
    assert all(registry.store.size(e.blob) == e.size for v in versions for e in v.files)
    assert len(failures) == 3 or len(versions) >= 10


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_is_a_number(registry: Registry, value: float) -> None:
    make(registry, b"one")
    with pytest.raises(ValueError, match="perplexity"):
        registry.add_figures("m", [Figure(name="bytes", value=3), Figure(name="perplexity", value=value)])
    assert registry.get("m").sheet == ()


def test_what_a_kill_left_half_laid_out_goes_with_the_version(registry: Registry, workspace: Workspace) -> None:
    """Its hard links would keep the bytes on the disk after they were let go."""
    version = registry.register(
        "m", [entry(registry, b"a", "model.safetensors"), entry(registry, b"{}", "config.json")]
    )
    left = workspace.path("cache", f".{version.digest}-1-2")
    (left / "model.safetensors").hardlink_to(registry.store.path(version.files[1].blob))
    registry.materialise(version)
    registry.delete("m")
    assert list(workspace.path("cache").iterdir()) == []


def test_one_name_of_equal_files_may_go_while_another_uses_them(registry: Registry) -> None:
    files = [entry(registry, b"a", "model.safetensors"), entry(registry, b"{}", "config.json")]
    parent = registry.register("a", files)
    registry.register("b", files)
    make(registry, b"child", "child", parent=parent.digest)
    folder = registry.materialise(parent)
    # The child's parent is still there, as b:1.
    assert registry.delete("a") == 0
    assert (folder / "model.safetensors").read_bytes() == b"a"
    with pytest.raises(InUseError, match="child:1"):
        registry.delete("b")
