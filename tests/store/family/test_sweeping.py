"""Space comes back, readers read on, and nothing goes that somebody needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import LockedError, NotFoundError, StoreError
from pressroom.store import Swept
from pressroom.store.backends.file import Backend
from pressroom.store.family import _guard as guard
from pressroom.store.family import _sweeping as sweeping
from tests.store.family import models
from tests.store.family.models import as_safetensors, base, noise, tensors, tuned, write


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    store = models.store_at(tmp_path)
    yield store
    store.close()


def on_disk(root: Path) -> int:
    return sum(
        path.stat().st_size
        for path in (root / "store").rglob("*")
        if path.is_file() and path.suffix not in (".db", ".lock") and not path.name.startswith("index.db")
    )


def test_an_empty_store_stays_empty(store: Backend, tmp_path: Path) -> None:
    assert store.sweep() == store.sweep(dry_run=True) == Swept(0, 0)
    assert list(tmp_path.iterdir()) == []


def test_what_was_deleted_comes_back(store: Backend, tmp_path: Path) -> None:
    kept = store.put_file(models.model_file(tmp_path / "a", base(1)))
    before = on_disk(tmp_path)
    gone = store.put_file(models.model_file(tmp_path / "b", base(2)))
    after = on_disk(tmp_path)
    assert store.sweep() == Swept(0, 0)
    assert store.cost(gone.digest) == pytest.approx(after - before, rel=0.05)
    store.delete(gone.digest)
    usage = store.usage()
    told = store.sweep(dry_run=True)
    assert on_disk(tmp_path) > before
    swept = store.sweep()
    assert swept == told and usage.reclaimable == swept.freed
    assert on_disk(tmp_path) == before == store.usage().stored
    store.verify(kept.digest)
    assert store.sweep() == Swept(0, 0)


def test_a_base_stays_while_a_child_needs_it_and_is_named(store: Backend, tmp_path: Path) -> None:
    first = base()
    one = store.put_file(models.model_file(tmp_path / "a", first))
    two = store.put_file(models.model_file(tmp_path / "b", tuned(first, 1)))
    stored = store.usage().stored
    store.delete(one.digest)
    swept = store.sweep()
    (kept,) = swept.kept
    assert kept.digest == one.digest and kept.needed_by == (two.digest,)
    assert kept.size == pytest.approx(stored - store.cost(two.digest) + kept.size, rel=0.2)
    assert swept.freed < stored // 10
    store.verify(two.digest)
    # Coming back, it is found again.
    before = store.usage().stored
    assert store.put_file(tmp_path / "a") == one
    assert store.usage().stored - before < 10_000
    assert store.sweep().kept == ()
    store.delete(one.digest)
    store.delete(two.digest)
    assert store.sweep().kept == ()
    assert store.usage().stored == 0 == on_disk(tmp_path)


def test_a_pack_that_is_mostly_dead_is_written_anew(
    store: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = base(1), base(2)
    both = {f"one.{n}": v for n, v in first.items()} | {f"two.{n}": v for n, v in second.items()}
    large = store.put_file(models.model_file(tmp_path / "both", both))
    part = {n: v for n, v in first.items() if "layers.0" in n}
    small = store.put_file(models.model_file(tmp_path / "small", part))
    (pack,) = (tmp_path / "store/packs").iterdir()
    store.delete(large.digest)
    told = store.sweep(dry_run=True)
    swept = store.sweep()
    assert swept.rewritten > 20_000 and told.rewritten == pytest.approx(swept.rewritten, rel=0.05)
    assert swept.freed == pytest.approx(told.freed, rel=0.05)
    (now,) = (tmp_path / "store/packs").iterdir()
    assert now != pack and now.stat().st_size < 0.3 * large.size
    store.verify(small.digest)
    store.rebuild_index()
    store.verify(small.digest)
    assert store.sweep() == Swept(0, 0)


def test_tensors_over_several_packs_move_one_pack_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pressroom.store.family._packs.PackWriter.__init__.__kwdefaults__", {"largest": 3_000_000})
    store = models.store_at(tmp_path)
    import numpy as np

    values = np.random.default_rng(0).standard_normal((5000, 1000)).astype(np.float32)
    both = store.put_file(models.model_file(tmp_path / "a", {"w": values, "v": values[:2000, :500] * 3, "u": -values}))
    assert len(list((tmp_path / "store/packs").iterdir())) > 3
    one = store.put_file(models.model_file(tmp_path / "b", {"w": values}))
    store.delete(both.digest)
    swept = store.sweep()
    assert swept.freed > 0.5 * values.nbytes / 2
    store.verify(one.digest)
    (tmp_path / "store/index.db").unlink()
    store.close()
    store = models.store_at(tmp_path)
    store.verify(one.digest)
    store.close()


def test_a_reader_that_has_the_file_open_reads_on(store: Backend, tmp_path: Path) -> None:
    content = as_safetensors(tensors(base(1)))
    blob = store.put_file(write(tmp_path / "a", content))
    file, held = store.open(blob.digest), store.tensors(blob.digest)
    assert file.read(1000) == content[:1000]
    store.delete(blob.digest)
    store.sweep()
    assert store.usage().stored == 0
    assert file.read() == content[1000:]
    assert held["embed.weight"].tobytes() == tensors(base(1))["embed.weight"][2]
    with pytest.raises(NotFoundError):
        store.open(blob.digest)


def test_a_reader_whose_pack_was_written_anew_looks_again(
    store: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where more packs are needed than files may be open, or in a bucket: none is held.
    monkeypatch.setattr("pressroom.store.family._pieces.Pieces.hold", lambda self, names: None)
    first = base(1)
    large = store.put_file(models.model_file(tmp_path / "l", first | {f"x.{n}": v for n, v in base(2).items()}))
    content = as_safetensors(tensors({n: v for n, v in first.items() if "layers.0" in n}))
    small = store.put_file(write(tmp_path / "s", content))
    with store.open(small.digest) as file:
        store.delete(large.digest)
        assert store.sweep().rewritten
        assert file.read() == content


def test_reading_while_it_is_swept_again_and_again(store: Backend, tmp_path: Path) -> None:
    first = base()
    content = as_safetensors(tensors(tuned(first, 1)))
    store.put_file(models.model_file(tmp_path / "a", first))
    blob = store.put_file(write(tmp_path / "b", content))
    over = threading.Event()
    failed: list[BaseException] = []

    def read() -> None:
        try:
            while not over.is_set():
                out = bytearray(blob.size)
                store.read_into(blob.digest, out)
                assert out == content
        except BaseException as error:
            failed.append(error)
            raise

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(6):
            # What is put and deleted shares tensors with what stays, so that packs are written anew.
            mixed = {f"x{number}.{n}": v for n, v in base(10 + number).items()}
            gone = store.put_file(models.model_file(tmp_path / "m", mixed))
            store.put_file(models.model_file(tmp_path / "k", {n: v for n, v in mixed.items() if "layers.0" in n}))
            store.delete(gone.digest)
            assert store.sweep().freed > 0
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert not failed
    for held in store.list():
        store.verify(held.digest)


def test_what_killed_writers_left_is_swept(store: Backend, tmp_path: Path) -> None:
    kept = store.put_file(models.model_file(tmp_path / "a", base(1)))
    stored = store.usage().stored
    other = models.store_at(tmp_path / "other")
    other.put_file(models.model_file(tmp_path / "b", base(2)))
    other.put_file(write(tmp_path / "q", models.as_gguf(models.quantised())))
    other.close()
    (pack,) = (tmp_path / "other/store/packs").iterdir()
    pack.rename(tmp_path / "store/packs" / pack.name)
    raw, table = sorted(p for p in (tmp_path / "other/store/raw").rglob("*") if p.is_file())
    folder = tmp_path / "store/raw" / raw.parent.name
    folder.mkdir(parents=True)
    raw.rename(folder / raw.name)
    table.rename(folder / table.name)
    (tmp_path / "store/spool").mkdir()
    (tmp_path / "store/spool/.1234.part").write_bytes(noise(5000))
    size = sum(p.stat().st_size for p in (tmp_path / "store/packs" / pack.name, folder / raw.name))
    assert store.sweep(dry_run=True).freed >= size
    assert store.sweep().freed >= size + 5000
    assert store.usage().stored == stored
    store.verify(kept.digest)


def test_a_writer_is_waited_for(store: Backend, tmp_path: Path) -> None:
    store.put_file(models.model_file(tmp_path / "a", base(1)))
    parts = store._parts
    with guard.putting(parts.home), pytest.raises(LockedError, match="puts files"):
        sweeping.sweep(parts, wait_s=0.2)
    with guard.one_sweep(parts.home), pytest.raises(LockedError, match="sweeps"):
        store.sweep()
    inside = threading.Event()

    def put_slowly() -> None:
        with guard.putting(parts.home):
            inside.set()
            threading.Event().wait(0.3)

    thread = threading.Thread(target=put_slowly)
    thread.start()
    inside.wait()
    store.sweep()
    assert not thread.is_alive() or thread.join() is None


def test_nothing_goes_while_a_manifest_cannot_be_read(store: Backend, tmp_path: Path) -> None:
    blob = store.put_file(models.model_file(tmp_path / "a", base(1)))
    manifest = tmp_path / "store/files" / blob.digest[7:9] / blob.digest
    good = manifest.read_bytes()
    manifest.chmod(0o644)
    manifest.write_bytes(good[:-1])
    store.close()
    (tmp_path / "store/index.db").unlink()
    with pytest.raises(StoreError, match="manifest"):
        store.sweep()
    manifest.write_bytes(good)
    assert store.sweep().freed == 0
    store.verify(blob.digest)


def test_nothing_goes_that_is_still_missing_somewhere(store: Backend, tmp_path: Path) -> None:
    """A pack with a broken table is left alone: what is in it may be all there is."""
    blob = store.put_file(models.model_file(tmp_path / "a", base(1)))
    (pack,) = (tmp_path / "store/packs").iterdir()
    good = pack.read_bytes()
    pack.chmod(0o644)
    pack.write_bytes(good[:-1] + b"?")
    store.close()
    (tmp_path / "store/index.db").unlink()
    assert store.sweep().freed == 0
    assert pack.exists()
    pack.write_bytes(good)
    store.rebuild_index()
    store.verify(blob.digest)


def test_rebuilt_files_of_what_was_deleted_go_too(store: Backend, tmp_path: Path) -> None:
    blob = store.put_file(models.model_file(tmp_path / "a", base(1)))
    path = store.path(blob.digest)
    assert path.exists()
    (tmp_path / "store/files" / blob.digest[7:9] / blob.digest).unlink()  # as another process deletes it
    assert store.sweep().freed >= blob.size
    assert not path.exists()
