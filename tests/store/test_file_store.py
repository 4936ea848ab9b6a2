"""The store in a directory: the contract, and what only a directory can show."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import DigestMismatchError, SettingsError, StoreError
from pressroom.store import Store
from pressroom.store.backends.file import Backend
from pressroom.testing.store_contract import StoreContract, digest


class TestFileStore(StoreContract):
    def url(self, tmp_path: Path) -> str:
        return "file://some/store"

    def test_where_the_bytes_are(self, store: Store, tmp_path: Path) -> None:
        blob = store.put([b"hello"])
        path = tmp_path / "some/store/blobs" / blob.digest[7:9] / blob.digest
        assert store.path(blob.digest) == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        assert list((tmp_path / "some/store/tmp").iterdir()) == []


@pytest.fixture
def store(tmp_path: Path) -> Backend:
    return Backend("file://store", root=tmp_path)


def _temporary(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "store/tmp").iterdir())


def test_an_absolute_path(tmp_path: Path) -> None:
    store = Backend(f"file://{tmp_path}/elsewhere", root=Path("/nonexistent"))
    assert store.path(store.put([b"x"]).digest).is_relative_to(tmp_path / "elsewhere")


@pytest.mark.parametrize("url", ["file://", "s3://bucket", "file://a\0b", "store"])
def test_a_url_that_names_no_directory(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Backend(url, root=tmp_path)
    assert repr(url) in str(caught.value)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("mine")
    with pytest.raises(StoreError, match="not a directory"):
        Backend("file://store", root=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/blobs").write_text("mine")
    store = Backend("file://other", root=tmp_path)
    with pytest.raises(StoreError) as caught:
        store.put([b"x"])
    assert caught.value.hint
    assert list(store.list()) == []


def test_opening_and_asking_makes_no_directories(store: Backend, tmp_path: Path) -> None:
    assert list(store.list()) == []
    assert store.size(digest(b"")) is None
    assert list(tmp_path.iterdir()) == []


def test_foreign_files_are_not_listed(store: Backend, tmp_path: Path) -> None:
    blob = store.put([b"x"])
    folder = store.path(blob.digest).parent
    (folder / "notes.txt").write_text("mine")
    (folder / ("blake3-" + "f" * 64)).mkdir()
    (tmp_path / "store/blobs/.DS_Store").write_text("")
    assert list(store.list()) == [blob]


def test_a_digest_in_the_wrong_folder_is_not_listed(store: Backend) -> None:
    blob = store.put([b"x"])
    (store.path(blob.digest).parent / ("blake3-" + "0" * 64)).write_bytes(b"")
    assert list(store.list()) == [blob]


def test_what_was_cut_short_says_its_own_size(store: Backend) -> None:
    blob = store.put([b"0123456789"])
    os.truncate(store.path(blob.digest), 4)
    assert store.size(blob.digest) == 4
    with store.open(blob.digest) as file:
        assert file.read() == b"0123"
    with pytest.raises(DigestMismatchError):
        store.verify(blob.digest)


def test_putting_what_is_held_keeps_the_file_that_is_there(store: Backend) -> None:
    blob = store.put([b"x" * 1000])
    inode = store.path(blob.digest).stat().st_ino
    store.put([b"x" * 1000])
    store.put([b"x" * 1000], expected=blob.digest)
    assert store.path(blob.digest).stat().st_ino == inode


def test_a_failed_put_leaves_no_temporary_file(store: Backend, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 5_000_000
        assert len(_temporary(tmp_path)) == 1
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.put(broken())
    with pytest.raises(DigestMismatchError):
        store.put([b"x"], size=2)
    assert _temporary(tmp_path) == []


def test_opening_the_store_leaves_a_living_writer_alone(store: Backend, tmp_path: Path) -> None:
    content = random.Random(3).randbytes(3_000_000)

    def slowly() -> Iterator[bytes]:
        yield content[:2_000_000]
        Backend("file://store", root=tmp_path)
        assert len(_temporary(tmp_path)) == 1
        yield content[2_000_000:]

    assert store.put(slowly()).digest == digest(content)
    store.verify(digest(content))


def test_opening_the_store_removes_what_a_dead_writer_left(store: Backend, tmp_path: Path) -> None:
    kept = store.put([b"kept"])
    left = tmp_path / "store/tmp/0123.part"
    left.write_bytes(b"half of someth")
    left.chmod(0o444)
    other = tmp_path / "store/tmp/notes.txt"
    other.write_text("not ours")
    (tmp_path / "store/tmp/link.part").symlink_to(store.path(kept.digest))
    Backend("file://store", root=tmp_path)
    assert not left.exists()
    assert other.exists()
    assert list(store.list()) == [kept]
    store.verify(kept.digest)


def test_a_sweep_between_making_and_locking_the_temporary_file(
    store: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, swept = fcntl.flock, []

    def sweep_first(fd: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.append(True)
            Backend("file://store", root=tmp_path)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    blob = store.put([b"kept all the same"])
    assert swept
    store.verify(blob.digest)


def test_a_leftover_that_cannot_be_removed_is_said_and_does_no_harm(
    store: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.put([b"x"])
    (tmp_path / "store/tmp/0.part").symlink_to("nowhere")
    with caplog.at_level(logging.WARNING):
        again = Backend("file://store", root=tmp_path)
    assert "0.part" in caplog.text
    assert again.size(digest(b"x")) == 1
