"""What every store must keep to, as tests: subclass `StoreContract`, say where the store is, and run pytest.

class TestMyStore(StoreContract):
    def url(self, tmp_path: Path) -> str:
        return f"mine://{tmp_path}/store"
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from pressroom.kernel import (
    DigestMismatchError,
    NotFoundError,
    Settings,
    StoreError,
    WeightsError,
    Workspace,
)
from pressroom.store import Blob, Store, Usage, open_store

_MISSING = "blake3-" + "0" * 64
# What a caller could hand on from a stranger: none of it may become part of a path or a URL.
_NOT_DIGESTS = [
    "",
    "blake3-",
    "../../etc/passwd",
    "blake3-" + "0" * 63,
    "blake3-" + "0" * 65,
    "blake3-" + "A" * 64,
    "blake3-" + "0" * 64 + "\n",
    "blake3-../" + "0" * 61,
    "sha256-" + "0" * 64,
    "blake3-" + "０" * 64,
    "blake3-" + "0" * 63 + "\0",
]
# Puts what the seeds in argv make, and prints the digests: another process that uses the same store.
_PUTTER = """
import sys
from pathlib import Path
from pressroom.kernel import Settings, Workspace
from pressroom.store import open_store
from pressroom.testing.store_contract import some_bytes

workspace = Workspace(Path(sys.argv[1]), Settings(store=sys.argv[2]))
store = open_store(workspace)
sys.stdin.readline()
for seed in sys.argv[3:]:
    print(store.put([some_bytes(seed, 300_000)]).digest, flush=True)
store.close()
"""


def digest(content: bytes) -> str:
    """The digest that the store must give these bytes."""
    return f"blake3-{blake3(content).hexdigest()}"


def some_bytes(seed: object, size: int) -> bytes:
    """As many bytes without a pattern, always the same ones for a seed."""
    return blake3(str(seed).encode()).digest(length=size)


def weights_file(path: Path) -> Path:
    """A safetensors file of two tensors, written to `path`."""
    a, b = some_bytes("a", 120_000), bytes(40_000)
    header = {
        "a": {"dtype": "BF16", "shape": [300, 200], "data_offsets": [0, 120_000]},
        "b": {"dtype": "F32", "shape": [10_000], "data_offsets": [120_000, 160_000]},
    }
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + a + b)
    return path


class StoreContract(ABC):
    """Every test gets an empty store at `url`. Tests open it more than once, also in other processes."""

    @abstractmethod
    def url(self, tmp_path: Path) -> str:
        """The setting that names an empty store; the same for the same `tmp_path`."""

    def alter(self, store: Store, blob: Blob, content: bytes) -> None:
        """Put other bytes where the store keeps `blob`, behind its back. To be replaced where `path` is a copy."""
        path = store.path(blob.digest)
        path.chmod(0o644)
        path.write_bytes(content)

    def open(self, tmp_path: Path) -> Store:
        return open_store(Workspace(tmp_path, Settings(store=self.url(tmp_path))))

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = self.open(tmp_path)
        yield store
        store.close()

    @pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20, (5 << 20) + 7])
    def test_gives_back_what_was_put(self, store: Store, size: int) -> None:
        content = some_bytes(size, size)
        blob = store.put([content], size=size)
        assert blob == Blob(digest(content), size)
        with store.open(blob.digest) as file:
            assert file.read() == content
            file.seek(size // 2)
            assert file.read() == content[size // 2 :]
        assert store.path(blob.digest).read_bytes() == content
        assert store.size(blob.digest) == size
        store.verify(blob.digest)

    @pytest.mark.parametrize("step", [1, 999, (1 << 20) - 1, 1 << 20, 3 << 20])
    def test_the_cut_into_chunks_does_not_matter(self, store: Store, step: int) -> None:
        content = some_bytes(step, 3000 if step == 1 else (3 << 20) + 5)
        chunks = (content[i : i + step] for i in range(0, len(content), step))
        assert store.put(chunks) == Blob(digest(content), len(content))
        assert list(store.list()) == [Blob(digest(content), len(content))]
        store.verify(digest(content))

    def test_no_chunks_are_no_bytes(self, store: Store) -> None:
        assert store.put([]) == store.put([b"", b""]) == Blob(digest(b""), 0)

    def test_equal_bytes_are_kept_once(self, store: Store) -> None:
        first = store.put([b"the same"])
        assert store.put([b"the ", b"same"]) == first
        assert store.put([b"the same"], expected=first.digest, size=8) == first
        assert list(store.list()) == [first]

    def test_a_store_opened_again_holds_the_same(self, store: Store, tmp_path: Path) -> None:
        blob = store.put([b"kept"])
        store.close()
        again = self.open(tmp_path)
        assert list(again.list()) == [blob]
        with again.open(blob.digest) as file:
            assert file.read() == b"kept"
        again.close()

    def test_declared_bytes_are_taken(self, store: Store) -> None:
        assert store.put([b"abc"], expected=digest(b"abc"), size=3).digest == digest(b"abc")

    @pytest.mark.parametrize("held", [False, True])
    def test_a_wrong_digest_keeps_nothing(self, store: Store, held: bool) -> None:
        before = [store.put([b"abc"])] if held else []
        with pytest.raises(DigestMismatchError):
            store.put([b"abd"], expected=digest(b"abc"))
        assert list(store.list()) == before
        assert store.size(digest(b"abd")) is None

    @pytest.mark.parametrize("held", [False, True])
    @pytest.mark.parametrize("declared", [0, 2, 4])
    def test_a_wrong_size_keeps_nothing(self, store: Store, declared: int, held: bool) -> None:
        before = [store.put([b"abc"])] if held else []
        with pytest.raises(DigestMismatchError):
            store.put([b"abc"], size=declared)
        with pytest.raises(DigestMismatchError):
            store.put([b"abc"], size=declared, expected=digest(b"abc"))
        assert list(store.list()) == before

    def test_more_bytes_than_declared_are_not_waited_for(self, store: Store) -> None:
        def endless() -> Iterator[bytes]:
            while True:
                yield b"x" * 65_536

        with pytest.raises(DigestMismatchError):
            store.put(endless(), size=1_000_000)
        assert list(store.list()) == []

    @pytest.mark.parametrize("error", [ConnectionResetError("gone"), ValueError("odd"), KeyboardInterrupt()])
    def test_a_source_that_fails_keeps_nothing_and_its_error_comes_through(
        self, store: Store, error: BaseException
    ) -> None:
        def broken() -> Iterator[bytes]:
            yield b"x" * (2 << 20)
            raise error

        with pytest.raises(type(error)):
            store.put(broken())
        assert list(store.list()) == []

    def test_a_file_is_put(self, store: Store, tmp_path: Path) -> None:
        content = some_bytes(1, 9_000_000)
        (tmp_path / "weights").write_bytes(content)
        assert store.put_file(tmp_path / "weights", expected=digest(content)) == Blob(digest(content), len(content))
        (tmp_path / "empty").write_bytes(b"")
        assert store.put_file(tmp_path / "empty") == Blob(digest(b""), 0)

    def test_what_is_not_a_file_is_not_put(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            store.put_file(tmp_path / "nothing")
        with pytest.raises(StoreError, match="not a regular file"):
            store.put_file(tmp_path)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(StoreError, match="not a regular file"):
            store.put_file(tmp_path / "pipe")
        assert list(store.list()) == []

    @pytest.mark.parametrize("change", ["longer", "shorter", "other bytes"])
    def test_a_file_that_changes_while_it_is_read_keeps_nothing(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        path = tmp_path / "weights"
        path.write_bytes(b"a" * 9_000_000)
        os.utime(path, ns=(0, 0))
        put = store.put

        def put_and_change(chunks: Iterable[bytes], *, expected: str | None = None, size: int | None = None) -> Blob:
            def changing() -> Iterator[bytes]:
                for number, chunk in enumerate(chunks):
                    yield chunk
                    if number == 0:
                        with path.open("r+b") as file:
                            if change == "longer":
                                file.seek(0, os.SEEK_END)
                                file.write(b"b")
                            elif change == "shorter":
                                file.truncate(8_999_999)
                            else:
                                file.write(b"b")

            return put(changing(), expected=expected, size=size)

        monkeypatch.setattr(store, "put", put_and_change)
        with pytest.raises(StoreError, match="changed while it was read"):
            store.put_file(path)
        assert list(store.list()) == []

    def test_what_is_not_held(self, store: Store) -> None:
        store.put([b"something else"])
        assert store.size(_MISSING) is None
        assert store.delete(_MISSING) is False
        for ask in (store.open, store.path, store.verify):
            with pytest.raises(NotFoundError) as caught:
                ask(_MISSING)
            assert _MISSING in str(caught.value)

    @pytest.mark.parametrize("text", _NOT_DIGESTS)
    def test_what_is_not_a_digest_is_refused(self, store: Store, text: str) -> None:
        for ask in (store.open, store.path, store.size, store.verify, store.delete):
            with pytest.raises(StoreError) as caught:
                ask(text)
            assert repr(text) in str(caught.value)
        with pytest.raises(StoreError):
            store.put([b"x"], expected=text)
        assert list(store.list()) == []

    def test_delete(self, store: Store) -> None:
        kept, gone = store.put([b"kept"]), store.put([b"gone"])
        assert store.delete(gone.digest) is True
        assert store.delete(gone.digest) is False
        assert list(store.list()) == [kept]
        with pytest.raises(NotFoundError):
            store.open(gone.digest)
        assert store.put([b"gone"]) == gone
        store.verify(gone.digest)

    def test_list_names_everything(self, store: Store) -> None:
        assert list(store.list()) == []
        put = {store.put([bytes([n]) * n]) for n in range(40)}
        assert set(store.list()) == put

    @pytest.mark.parametrize("damaged", [b"b" * 1000, b"a" * 999, b"a" * 1001, b""])
    def test_altered_bytes_are_found_and_mended_by_putting_them_again(self, store: Store, damaged: bytes) -> None:
        blob = store.put([b"a" * 1000])
        self.alter(store, blob, damaged)
        with pytest.raises(DigestMismatchError) as caught:
            store.verify(blob.digest)
        assert caught.value.facts["found"] == digest(damaged)
        assert store.put([b"a" * 1000]) == blob
        store.verify(blob.digest)
        self.alter(store, blob, damaged)
        assert store.put([b"a" * 1000], expected=blob.digest, size=1000) == blob
        store.verify(blob.digest)

    def test_what_files_cost_and_take(self, store: Store) -> None:
        assert store.usage() == Usage(0, 0, 0, 0)
        one, two = store.put([some_bytes(1, 1000)]), store.put([some_bytes(2, 3000)])
        usage = store.usage()
        assert (usage.files, usage.logical, usage.reclaimable) == (2, 4000, 0)
        assert usage.stored >= 4000
        assert (store.cost(one.digest), store.cost(two.digest)) == (1000, 3000)
        with pytest.raises(NotFoundError):
            store.cost(_MISSING)

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_sweeping_takes_nothing_that_is_held(self, store: Store, dry_run: bool, tmp_path: Path) -> None:
        store.sweep(dry_run=dry_run)
        blobs = [store.put([b"kept"]), store.put_file(weights_file(tmp_path / "weights"))]
        store.sweep(dry_run=dry_run)
        assert sorted(store.list(), key=lambda blob: blob.size) == blobs
        for blob in blobs:
            store.verify(blob.digest)

    def test_weights_are_given_back_bit_for_bit_and_by_tensor(self, store: Store, tmp_path: Path) -> None:
        path = weights_file(tmp_path / "weights")
        told: list[int] = []
        blob = store.put_file(path, near=[_MISSING], progress=told.append)
        content = path.read_bytes()
        assert blob == Blob(digest(content), len(content)) == store.put([content[:9], content[9:]])
        assert sum(told) == len(content) == store.size(blob.digest)
        with store.open(blob.digest) as file:
            assert file.read() == content
            file.seek(-100, os.SEEK_END)
            assert file.read(50) == content[-100:-50]
        assert store.path(blob.digest).read_bytes() == content
        tensors = store.tensors(blob.digest)
        assert list(tensors) == ["a", "b"]
        assert (tensors["a"].shape, tensors["a"].dtype_name, tensors["a"].dtype.name) == ((300, 200), "BF16", "uint16")
        assert tensors["a"].tobytes() + tensors["b"].tobytes() == content[-160_000:]
        with pytest.raises(WeightsError):
            store.tensors(store.put([b"no weights"]).digest)
        with pytest.raises(NotFoundError):
            store.tensors(_MISSING)
        store.verify(blob.digest)
        assert store.delete(blob.digest)
        assert store.size(blob.digest) is None
        store.sweep()
        assert store.usage().files == 1
        assert store.put_file(path, expected=blob.digest) == blob
        store.verify(blob.digest)

    def test_threads_that_put_and_read_at_once(self, store: Store) -> None:
        shared = some_bytes("shared", 400_000)

        def work(number: int) -> None:
            for turn in range(4):
                for content in (some_bytes((number, turn), 100_000), shared):
                    blob = store.put([content[:70_000], content[70_000:]])
                    with store.open(blob.digest) as file:
                        assert file.read() == content

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(8))) == [None] * 8
        assert len(list(store.list())) == 8 * 4 + 1
        for blob in store.list():
            store.verify(blob.digest)

    def test_processes_that_put_at_once(self, store: Store, tmp_path: Path) -> None:
        seeds = [[str(seed) for seed in (1, 2, 3, 100 + number)] for number in range(3)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _PUTTER, str(tmp_path), self.url(tmp_path), *own],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for own in seeds
        ]
        said = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            out, _ = process.communicate()
            assert process.returncode == 0
            said.append(out.split())
        expected = [[digest(some_bytes(seed, 300_000)) for seed in own] for own in seeds]
        assert said == expected
        assert {blob.digest for blob in store.list()} == {one for own in expected for one in own}
        for blob in store.list():
            store.verify(blob.digest)
