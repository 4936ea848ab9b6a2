"""Files as streams, and rebuilt files in the cache."""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import StoreFullError
from pressroom.store import Blob
from pressroom.store.backends.file import Backend
from tests.store.family import models
from tests.store.family.models import as_safetensors, base, tensors, tuned, write


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    store = models.store_at(tmp_path)
    yield store
    store.close()


def put(store: Backend, root: Path, seed: int = 1, width: int = 128) -> tuple[bytes, Blob]:
    content = as_safetensors(tensors(base(seed, width=width)))
    return content, store.put_file(write(root / f"m{seed}", content))


def test_a_stream_reads_as_a_file_does(store: Backend, tmp_path: Path) -> None:
    content, blob = put(store, tmp_path)
    rng = random.Random(1)
    with store.open(blob.digest) as stream:
        assert stream.readable() and stream.seekable() and not stream.writable()
        plain = io.BytesIO(content)
        for _ in range(300):
            whence = rng.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
            if rng.random() < 0.5:
                target = rng.randrange(len(content) + 100)
                start = {io.SEEK_SET: 0, io.SEEK_CUR: plain.tell(), io.SEEK_END: len(content)}[whence]
                assert stream.seek(target - start, whence) == plain.seek(target)
            count = rng.choice([0, 1, 7, 1000, 60_000, 200_000])
            if rng.random() < 0.5:
                assert stream.read(count) == plain.read(count)
            else:
                mine, theirs = bytearray(count), bytearray(count)
                assert stream.readinto(mine) == plain.readinto(theirs)  # type: ignore[attr-defined]
                assert mine == theirs
            assert stream.tell() == plain.tell()
        stream.seek(0)
        assert b"".join(iter(lambda: stream.read(10_001), b"")) == content
        assert stream.read() == b"" and stream.read(5) == b""
        with pytest.raises(ValueError, match="negative"):
            stream.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


def test_several_streams_at_once(store: Backend, tmp_path: Path) -> None:
    content, blob = put(store, tmp_path)
    found: list[bool] = []

    def read() -> None:
        with store.open(blob.digest) as file:
            found.append(b"".join(iter(lambda: file.read(7000), b"")) == content)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6


def cache(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (root / ".pressroom/cache/files").iterdir()}


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_longest_unused_leaves_the_cache(tmp_path: Path) -> None:
    store = models.store_at(tmp_path)
    blobs = [put(store, tmp_path, seed)[1] for seed in range(4)]
    store.close()
    store = models.store_at(tmp_path, cache_bytes=int(2.5 * blobs[0].size))
    first, second = store.path(blobs[0].digest), store.path(blobs[1].digest)
    age(first, 5000)
    age(second, 8000)
    assert store.path(blobs[1].digest) == second, "used now"
    age(second, 3000)
    third = store.path(blobs[2].digest)
    assert set(cache(tmp_path)) == {second.name, third.name}
    # What was asked for a moment ago stays, even above the limit.
    fourth = store.path(blobs[3].digest)
    assert set(cache(tmp_path)) == {third.name, fourth.name}
    store.path(blobs[0].digest)
    assert len(cache(tmp_path)) == 3
    store.close()


def test_a_file_in_use_stays_in_the_cache(tmp_path: Path) -> None:
    store = models.store_at(tmp_path)
    blobs = [put(store, tmp_path, seed)[1] for seed in range(4)]
    paths = [store.path(blob.digest) for blob in blobs[:3]]
    store.close()
    store = models.store_at(tmp_path, cache_bytes=0)
    linked = tmp_path / "linked"
    linked.hardlink_to(paths[0])
    for path in paths:
        age(path, 5000)
    with paths[1].open("rb") as file:
        store.path(blobs[3].digest)
        names = set(cache(tmp_path))
        assert paths[0].name in names and paths[2].name not in names
        if hasattr(__import__("fcntl"), "F_SETLEASE"):
            assert paths[1].name in names
        assert file.read(1)
    store.close()


def test_what_a_killed_builder_left_goes(store: Backend, tmp_path: Path) -> None:
    content, blob = put(store, tmp_path)
    folder = tmp_path / ".pressroom/cache/files"
    folder.mkdir(parents=True)
    left = folder / ".0123.part"
    left.write_bytes(b"half of a mod")
    (folder / "notes.txt").write_text("not ours")
    assert store.path(blob.digest).read_bytes() == content
    assert not left.exists() and (folder / "notes.txt").exists()


def test_a_cached_file_that_was_cut_is_made_again(store: Backend, tmp_path: Path) -> None:
    content, blob = put(store, tmp_path)
    path = store.path(blob.digest)
    path.chmod(0o644)
    os.truncate(path, 10)
    assert store.path(blob.digest).read_bytes() == content


def test_two_who_want_one_path_at_once(store: Backend, tmp_path: Path) -> None:
    content, blob = put(store, tmp_path)
    found: list[bool] = []

    def ask() -> None:
        found.append(store.path(blob.digest).read_bytes() == content)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 5
    assert list(cache(tmp_path)) == [blob.digest]


def test_no_room_for_a_rebuilt_file(store: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, blob = put(store, tmp_path)
    monkeypatch.setattr("pressroom.store.family._cache.Cache._free", lambda self: 1000)
    with pytest.raises(StoreFullError) as caught:
        store.path(blob.digest)
    assert (caught.value.facts["needed"], caught.value.facts["free"]) == (blob.size, 1000)
    assert cache(tmp_path) == {}


def test_a_child_is_told_from_its_parent_in_the_cache(store: Backend, tmp_path: Path) -> None:
    first = base(1)
    one = store.put_file(models.model_file(tmp_path / "a", first))
    content = as_safetensors(tensors(tuned(first, 2)))
    two = store.put_file(write(tmp_path / "b", content))
    store.path(one.digest)
    for pack in (tmp_path / "store/packs").iterdir():
        if pack.stat().st_size > one.size // 2:
            pack.unlink()  # only to see that it is not read
    out = bytearray(two.size)
    store.read_into(two.digest, out)
    assert out == content
