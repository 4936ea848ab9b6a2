"""The index is a cache: lost, damaged, old or unwritable, it comes back from what lies in the store."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pressroom.kernel import NotFoundError, StoreError
from pressroom.store.backends.file import Backend
from pressroom.store.family._manifests import BadManifestError, pack_manifest, unpack_manifest
from pressroom.store.family._objects import Block, pack_blocks, unpack_blocks
from pressroom.store.family._packs import BadPackError, read_footer
from tests.store.family import models
from tests.store.family.models import as_gguf, as_safetensors, base, pruned, quantised, tensors, tuned, write


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    store = models.store_at(tmp_path)
    yield store
    store.close()


@pytest.fixture
def held(store: Backend, tmp_path: Path) -> dict[str, bytes]:
    """A base, a child, a child of that, a file kept whole and one that shares with it: digest to content."""
    first = base()
    contents = [as_safetensors(tensors(model)) for model in (first, tuned(first, 1), pruned(tuned(first, 1)))]
    whole = quantised(rows=128)
    contents.append(as_gguf(whole))
    contents.append(as_gguf(whole | {"blk.1.weight": ("Q4_0", (128, 512), models.noise(128 * 288, 50))}))
    found = {}
    for content in contents:
        found[store.put_file(write(tmp_path / "m", content)).digest] = content
    return found


def check(store: Backend, held: dict[str, bytes]) -> None:
    assert {blob.digest: blob.size for blob in store.list()} == {name: len(content) for name, content in held.items()}
    for name, content in held.items():
        out = bytearray(len(content))
        store.read_into(name, out)
        assert out == content
        store.verify(name)


def contents_of(root: Path) -> dict[str, list[tuple[object, ...]]]:
    """What the index says, without the numbers of rows."""
    c = sqlite3.connect(root / "store/index.db")
    asked = {
        "tensors": "SELECT digest, dtype, row, nbytes, block, depth, recipe, first, copy, damaged FROM tensors",
        "parents": "SELECT a.digest, position, b.digest FROM parents JOIN tensors a ON child = a.id "
        "JOIN tensors b ON parent = b.id",
        "segments": "SELECT t.digest, s.first, name, offset, length, plain, blocks FROM segments s "
        "JOIN tensors t ON tensor = t.id "
        "JOIN pieces p ON piece = p.id",
        "pieces": "SELECT name, size, tainted FROM pieces",
        "files": "SELECT f.digest, size, l.body, whole, probe, sketch FROM files f "
        "JOIN layouts l ON l.id = layout WHERE NOT gone",
        "file_tensors": "SELECT f.digest, position, t.digest FROM file_tensors JOIN files f ON f.id = file "
        "JOIN tensors t ON t.id = tensor WHERE NOT gone",
    }
    found = {name: sorted(c.execute(query).fetchall(), key=repr) for name, query in asked.items()}
    c.close()
    return found


def test_rebuilt_it_is_what_it_was(store: Backend, tmp_path: Path, held: dict[str, bytes]) -> None:
    before = contents_of(tmp_path)
    assert {row[5] for row in before["tensors"]} == {0, 1, 2}
    store.rebuild_index()
    assert contents_of(tmp_path) == before
    check(store, held)


def test_it_is_lost(store: Backend, tmp_path: Path, held: dict[str, bytes]) -> None:
    before = contents_of(tmp_path)
    store.close()
    for path in (tmp_path / "store").glob("index.db*"):
        path.unlink()
    check(store, held)
    assert contents_of(tmp_path) == before


@pytest.mark.parametrize("what", ["not a database", "zeros inside", "cut", "empty", "another version"])
def test_it_is_damaged(
    store: Backend, tmp_path: Path, held: dict[str, bytes], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.close()
    path = tmp_path / "store/index.db"
    data = path.read_bytes()
    if what == "another version":
        c = sqlite3.connect(path)
        c.execute("PRAGMA user_version = 999")
        c.execute("DROP TABLE segments")
        c.close()
    else:
        half = len(data) // 2
        path.write_bytes(
            {
                "not a database": b"x" * len(data),
                "zeros inside": data[:4096] + bytes(len(data) - 4096),
                "cut": data[:half],
                "empty": b"",
            }[what]
        )
    check(store, held)
    content = as_safetensors(tensors(tuned(base(), 7)))
    before = store.usage().stored
    blob = store.put_file(write(tmp_path / "n", content))
    assert store.usage().stored - before < len(content) // 5
    check(store, held | {blob.digest: content})


def test_it_is_an_old_one(store: Backend, tmp_path: Path, held: dict[str, bytes]) -> None:
    """Restored from a backup: what came since is found, what went since is not believed."""
    store.close()
    old = (tmp_path / "store/index.db").read_bytes()
    new = base(9)
    content = as_safetensors(tensors(new))
    added = store.put_file(write(tmp_path / "n", content)).digest
    gone = next(iter(held))
    store.delete(gone)
    mixed = {f"x.{n}": v for n, v in base(20).items()}
    most = store.put_file(models.model_file(tmp_path / "x", mixed))
    some = as_safetensors(tensors({n: v for n, v in mixed.items() if "layers.0" in n}))
    kept = store.put_file(write(tmp_path / "y", some)).digest
    store.delete(most.digest)
    assert store.sweep().rewritten
    store.close()
    for path in (tmp_path / "store").glob("index.db*"):
        path.unlink()
    (tmp_path / "store/index.db").write_bytes(old)
    now = {name: data for name, data in held.items() if name != gone} | {added: content, kept: some}
    check(store, now)
    store.sweep()
    check(store, now)


def test_two_stores_in_one_process_and_a_child_after_a_fork(
    store: Backend, tmp_path: Path, held: dict[str, bytes]
) -> None:
    other = models.store_at(tmp_path)
    check(other, held)
    pid = os.fork()
    if pid == 0:
        try:
            check(store, held)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    check(store, held)
    other.close()


def test_a_store_that_may_only_be_read(store: Backend, tmp_path: Path, held: dict[str, bytes]) -> None:
    """Where not even root may write: the index is made in memory."""
    store.close()
    for path in (tmp_path / "store").glob("index.db*"):
        path.unlink()
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.store.family import models\n"
        "store = models.store_at(Path(sys.argv[1]))\n"
        "for blob in list(store.list()):\n    store.verify(blob.digest)\n    out = bytearray(blob.size)\n"
        "    store.read_into(blob.digest, out)\n    print(blob.digest)\n"
    )
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if sys.platform != "linux" or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a user mount")
    command = 'mount --bind "$0" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1"'
    ran = subprocess.run(
        [*unshare, "sh", "-c", command, str(tmp_path), str(disk), sys.executable, script],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) == set(held)


def test_opening_and_asking_makes_nothing(tmp_path: Path) -> None:
    store = models.store_at(tmp_path)
    assert list(store.list()) == [] and store.usage().files == 0
    assert not store.delete("blake3-" + "0" * 64)
    assert store.size("blake3-" + "0" * 64) is None
    with pytest.raises(NotFoundError):
        store.cost("blake3-" + "0" * 64)
    store.put([b"no weights"])
    assert not (tmp_path / "store/index.db").exists()
    store.close()


def test_blocks_as_bytes() -> None:
    blocks = (Block(1, b"c" * 16, b"r" * 32), Block(1 << 31, b"d" * 16, b"s" * 32))
    assert unpack_blocks(pack_blocks(blocks)) == blocks
    with pytest.raises(ValueError, match="cut"):
        unpack_blocks(pack_blocks(blocks)[:-1])


def test_any_altered_footer_or_manifest_is_refused(store: Backend, tmp_path: Path, held: dict[str, bytes]) -> None:
    rng = np.random.default_rng(0)
    for path in (tmp_path / "store/packs").iterdir():
        data = path.read_bytes()
        footer = int.from_bytes(data[-56:-48], "little")
        assert read_footer(store._place, f"packs/{path.name}", len(data))
        path.chmod(0o644)
        for _ in range(40):
            at = int(rng.integers(footer, len(data)))
            bad = data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]
            bad = bad[: int(rng.integers(footer, len(data)))] if rng.random() < 0.3 else bad
            path.write_bytes(bad)
            with pytest.raises(BadPackError):
                read_footer(store._place, f"packs/{path.name}", len(bad))
        path.write_bytes(data)
    for name in held:
        data = (tmp_path / "store/files" / name[7:9] / name).read_bytes()
        assert pack_manifest(unpack_manifest(data, name)) == data
        for _ in range(40):
            at = int(rng.integers(len(data)))
            bad = data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]
            bad = bad[:at] if rng.random() < 0.3 else bad
            with pytest.raises(BadManifestError):
                unpack_manifest(bad, name)
        with pytest.raises(BadManifestError):
            unpack_manifest(data, "blake3-" + "1" * 64)


def test_a_full_disk_says_so(store: Backend, tmp_path: Path) -> None:
    store.put_file(models.model_file(tmp_path / "a", base()))
    with pytest.raises(StoreError, match="index"):
        store._parts.index.write(lambda c: c.execute("INSERT INTO nowhere VALUES (1)"))
    check(store, {blob.digest: (tmp_path / "a").read_bytes() for blob in store.list()})
