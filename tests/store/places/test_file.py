"""The place in a directory."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pressroom.kernel import PluginError, SettingsError, StoreError, StoreFullError
from pressroom.store.places import open_place
from pressroom.store.places.file import Backend
from pressroom.testing.place_contract import PlaceContract, some_bytes

_PUTTER = """
import sys
from pathlib import Path
from pressroom.store.places import open_place
from pressroom.testing.place_contract import some_bytes

place = open_place("file://pieces", Path(sys.argv[1]))
print("ready", flush=True)
number = int(sys.argv[2])
while True:
    name = f"p/{number % 11:02}"
    with place.write(size=1 << 20) as writer:
        for at in range(0, 1 << 20, 300_000):
            writer.write(some_bytes(name, 1 << 20)[at : at + 300_000])
        writer.commit(name)
    print(name, flush=True)
    number += 1
"""


class TestFilePlace(PlaceContract):
    def url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/pieces"

    def left_over(self, tmp_path: Path) -> list[str]:
        temporary = tmp_path / "pieces/tmp"
        return sorted(os.listdir(temporary)) if temporary.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Backend:
    return Backend("file://pieces", root=tmp_path)


def test_a_relative_path_starts_at_the_root(tmp_path: Path) -> None:
    open_place("file://a/b", tmp_path).put("c", b"x")
    assert (tmp_path / "a/b/c").read_bytes() == b"x"


@pytest.mark.parametrize("url", ["file://", "", "pieces", "file:/pieces", "nothing://pieces", "s4://key:sesame@b/p"])
def test_what_names_no_place(tmp_path: Path, url: str) -> None:
    with pytest.raises((SettingsError, PluginError)) as caught:
        open_place(url, tmp_path)
    assert "sesame" not in f"{caught.value.as_dict()}"
    assert caught.value.hint


def test_opening_and_asking_writes_nothing(tmp_path: Path) -> None:
    place = open_place("file://pieces", tmp_path)
    assert list(place.list("")) == []
    assert place.size("a") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "pieces").write_bytes(b"x")
    with pytest.raises(StoreError, match="not a directory"):
        open_place("file://pieces", tmp_path)


def test_kill_minus_9_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(3)
    announced: set[str] = set()
    for round in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", _PUTTER, str(tmp_path), str(round)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.08))
        process.kill()
        announced.update(line.strip() for line in process.stdout.read().splitlines(keepends=True) if line[-1] == "\n")
        process.wait()
        process.stdout.close()
        place = open_place("file://pieces", tmp_path)
        held = dict(place.list(""))
        assert announced <= set(held)
        for name in held:
            assert place.read(name, 0, 1 << 20) == some_bytes(name, 1 << 20)
        temporary = tmp_path / "pieces/tmp"
        assert not temporary.exists() or os.listdir(temporary) == []
    assert announced, "every process was killed before it could put anything"


def test_the_systems_own_files_are_no_pieces(place: Backend, tmp_path: Path) -> None:
    place.put("packs/one", b"1")
    for name in ("packs/.DS_Store", "packs/.nfs0001", "packs/a b", ".hidden"):
        (tmp_path / "pieces" / name).write_bytes(b"x")
    (tmp_path / "pieces/packs/folder").mkdir()
    os.mkfifo(tmp_path / "pieces/packs/pipe")
    assert list(place.list("")) == list(place.list("packs/")) == [("packs/one", 1)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(place: Backend, tmp_path: Path) -> None:
    place.put("packs/one", b"1")
    (tmp_path / "pieces/packs").chmod(0)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            list(place.list("packs/"))
    finally:
        (tmp_path / "pieces/packs").chmod(0o755)


def test_a_folder_that_fails_is_not_taken_for_empty(place: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    place.put("packs/one", b"1")

    def broken(path: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(StoreError, match="Input/output error"):
        list(place.list("packs/"))


@pytest.mark.parametrize("name", ["tmp", "tmp/x", "tmp/0.part"])
def test_what_is_being_written_cannot_be_reached_by_name(place: Backend, name: str) -> None:
    with place.write() as writer:
        writer.write(b"x")
        for ask in (place.size, place.local, place.delete, writer.commit):
            with pytest.raises(StoreError, match="cannot name a piece"):
                ask(name)


def test_who_has_it_open_reads_on(place: Backend) -> None:
    place.put("a", b"still here")
    path = place.local("a")
    assert path is not None
    with path.open("rb") as file:
        assert place.delete("a")
        place.put("a", b"another one")
        assert file.read() == b"still here"


def test_a_file_system_without_hard_links(place: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such file system can be mounted by everybody, so the system's answer is put in its mouth."""

    def none(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    place.put("a", b"first")
    place.put("a", b"second")
    assert place.read("a", 0, 5) == b"first"
    assert os.listdir(tmp_path / "pieces/tmp") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["os.write", "sync", "os.link"])
def test_a_full_disk(place: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"pressroom.store.places.file.{call}", full)
        with pytest.raises(StoreFullError) as caught:
            place.put("a", b"x" * 100)
    assert caught.value.facts["needed"] == 100
    assert caught.value.facts["free"] > 0
    assert list(place.list("")) == []
    assert os.listdir(tmp_path / "pieces/tmp") == []


def test_no_room_is_said_before_the_first_byte(place: Backend) -> None:
    with pytest.raises(StoreFullError) as caught, place.write(size=1 << 60):
        pytest.fail("it was begun")
    assert caught.value.facts["needed"] == 1 << 60
    assert "free" in caught.value.message
