"""`give_files` writes what was registered, bit for bit, and all of it or nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pressroom.kernel import DigestMismatchError, NotFoundError, Progress, StoreError, StoreFullError, Workspace
from pressroom.registry import FileEntry, Registry, Version, give_files

from .weights import model_folder

CONTENT = {"config.json": b"{}", "sub/deep/notes.txt": b"notes", "empty.txt": b""}


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry(workspace)


def make(registry: Registry, content: dict[str, bytes], name: str = "m") -> Version:
    entries = []
    for path, data in content.items():
        blob = registry.store.put([data])
        entries.append(FileEntry(path=path, blob=blob.digest, size=blob.size))
    return registry.register(name, entries)


def lying(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_is_what_it_was(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    made = make(registry, CONTENT, "org/model")
    seen: list[Progress] = []
    workspace.events.subscribe(Progress, seen.append)
    target = tmp_path / "new" / "folder"
    given = give_files(workspace, "org/model", target)
    assert lying(target) == CONTENT and given.version == made
    assert (given.written, given.kept) == (tuple(entry.path for entry in made.files), ())
    assert seen[-1].done == seen[-1].total == 7
    (target / "config.json").chmod(0o600)  # a copy, and nobody else's bytes
    (target / "config.json").write_bytes(b"[]")
    assert registry.store.verify(made.files[0].blob) is None


def test_weights_that_the_store_keeps_in_parts(workspace: Workspace, tmp_path: Path) -> None:
    from pressroom.registry import pull

    source = model_folder(tmp_path / "source")
    version = pull(workspace, str(source), name="m")
    give_files(workspace, version.ref, tmp_path / "out")
    found = lying(tmp_path / "out")
    assert found == {entry.path: (source / entry.path).read_bytes() for entry in version.files}


def test_a_file_where_a_folder_should_be_changes_nothing(
    workspace: Workspace, registry: Registry, tmp_path: Path
) -> None:
    make(registry, CONTENT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_bytes(b"mine")
    for force in (False, True):
        with pytest.raises(StoreError, match="is a file, and m:1 has a folder of that name"):
            give_files(workspace, "m", tmp_path / "out", force=force)
        assert lying(tmp_path / "out") == {"sub": b"mine"}


@pytest.mark.parametrize("paths", [("A.json", "a.json"), ("b", "b/c"), ("é", "e\u0301"), ("x/y/z", "X/Y")])
def test_files_that_cannot_lie_side_by_side_are_no_version(registry: Registry, paths: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="side by side"):
        make(registry, dict.fromkeys(paths, b"x"))


def test_what_is_there_is_not_overwritten_unasked(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    make(registry, CONTENT)
    give_files(workspace, "m", tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_bytes(b"mine")
    (tmp_path / "out" / "config.json").write_bytes(b"[]")
    (tmp_path / "out" / "empty.txt").unlink()
    with pytest.raises(StoreError, match=r"other files of these names: config\.json") as caught:
        give_files(workspace, "m", tmp_path / "out")
    assert "--force" in caught.value.hint and caught.value.facts["files"] == ["config.json"]
    assert not (tmp_path / "out" / "empty.txt").exists()
    given = give_files(workspace, "m", tmp_path / "out", force=True)
    assert (given.written, given.kept) == (("config.json", "empty.txt"), ("sub/deep/notes.txt",))
    assert lying(tmp_path / "out") == CONTENT | {"mine.txt": b"mine"}


def test_links_and_folders_in_the_way(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    make(registry, CONTENT)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "sub").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="is a link that leaves"):
        give_files(workspace, "m", out, force=True)
    assert list(elsewhere.iterdir()) == []
    (out / "sub").unlink()
    (elsewhere / "victim").write_bytes(b"victim")
    (out / "config.json").symlink_to(elsewhere / "victim")
    with pytest.raises(StoreError, match="other files"):
        give_files(workspace, "m", out)
    give_files(workspace, "m", out, force=True)  # the link is replaced, and not what it leads to
    assert (elsewhere / "victim").read_bytes() == b"victim" and (out / "config.json").read_bytes() == b"{}"
    (out / "empty.txt").unlink()
    (out / "empty.txt").mkdir()
    with pytest.raises(StoreError, match="is a folder"):
        give_files(workspace, "m", out, force=True)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written into"):
        give_files(workspace, "m", tmp_path / "file" / "out")
    with pytest.raises(NotFoundError):
        give_files(workspace, "nothing", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_damaged_bytes_are_not_given(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    made = make(registry, CONTENT)
    notes = next(entry for entry in made.files if entry.path.endswith("notes.txt"))
    place = registry.store.path(notes.blob)
    place.chmod(0o600)
    place.write_bytes(b"nodes")
    with pytest.raises(DigestMismatchError, match=r"sub/deep/notes\.txt is damaged"):
        give_files(workspace, "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_room_is_said_before_a_byte_is_written(
    workspace: Workspace, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(registry, CONTENT)
    real = os.statvfs(tmp_path)
    usage = type("Usage", (), {"total": real.f_blocks, "used": 0, "free": 6})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(StoreFullError, match="7 bytes and 6 are free") as caught:
        give_files(workspace, "m", tmp_path / "out")
    assert "another disk" in caught.value.hint and not (tmp_path / "out").exists()


def test_killed_it_leaves_nothing_behind_in_the_end(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    content = {"large.bin": random.Random(1).randbytes(20_000_000), "small.txt": b"small"}
    make(registry, content)
    program = (
        "import json, sys, time; from pathlib import Path; from pressroom.kernel import Progress, Workspace\n"
        "from pressroom.registry import give_files\n"
        "with Workspace.open(Path(sys.argv[1]), environ={}) as workspace:\n"
        "    def wait(event):\n"
        "        print('going', flush=True)\n"
        "        time.sleep(60)\n"
        "    workspace.events.subscribe(Progress, wait)\n"
        "    give_files(workspace, 'm', Path(sys.argv[2]))\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(workspace.root), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [path.suffix for path in out.iterdir()] == [".getting"]
    assert not (out / "large.bin").exists()
    give_files(workspace, "m", out)
    assert lying(out) == content
