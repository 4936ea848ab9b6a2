"""Weights in, the same bytes out, whatever they are made of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pressroom.kernel import DigestMismatchError, NotFoundError, StoreError
from pressroom.store import Blob
from pressroom.store.backends.file import Backend
from pressroom.testing.store_contract import digest
from tests.store.family import models
from tests.store.family.models import as_gguf, as_safetensors, base, noise, pruned, tensors, tuned, write
from tests.store.weights_files import safetensors

Parts = dict[str, tuple[str, tuple[int, ...], bytes]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    store = models.store_at(tmp_path)
    yield store
    store.close()


def check(store: Backend, content: bytes, blob: Blob) -> None:
    """Every way of getting the bytes gives them."""
    assert blob == Blob(digest(content), len(content))
    assert store.size(blob.digest) == len(content)
    with store.open(blob.digest) as file:
        assert file.read() == content
    for fast in (False, True):
        out = bytearray(len(content))
        store.read_into(blob.digest, out, fast=fast)
        assert out == content
    store.verify(blob.digest)
    assert store.path(blob.digest).read_bytes() == content
    assert store.path(blob.digest).stat().st_mode & 0o222 == 0
    with store.open(blob.digest) as file:  # this time from the cache
        assert file.read() == content
    assert blob in list(store.list())


def many_types() -> Parts:
    rng = np.random.default_rng(4)
    floats = rng.standard_normal((128, 256)).astype(np.float32)
    return {
        "bf16": ("BF16", (128, 256), models.bf16(floats).tobytes()),
        "f16": ("F16", (128, 256), floats.astype(np.float16).tobytes()),
        "f32": ("F32", (128, 256), floats.tobytes()),
        "f64": ("F64", (32, 64), floats.astype(np.float64)[:32, :64].tobytes()),
        "f8": ("F8_E4M3", (128, 256), models.bf16(floats).astype(np.uint8).tobytes()),
        "i8": ("I8", (128, 256), (floats * 40).astype(np.int8).tobytes()),
        "u8": ("U8", (128, 256), noise(128 * 256)),
        "i32": ("I32", (1000,), np.arange(1000, dtype=np.int32).tobytes()),
        "i64": ("I64", (1000,), np.arange(1000, dtype=np.int64).tobytes()),
        "bool": ("BOOL", (17,), bytes(17)),
        "f4": ("F4", (64, 16), noise(512)),
        "scalar": ("F32", (), b"\0\0\x80?"),
        "empty": ("BF16", (0, 8), b""),
        "odd": ("U8", (7,), b"seven b"),
        "after": ("BF16", (3, 5), noise(30)),
    }


def test_a_base_and_its_family(store: Backend, tmp_path: Path) -> None:
    first = base()
    second = tuned(first, 1)
    family = [first, second, tuned(second, 2), pruned(second)]
    stored = []
    for number, model in enumerate(family):
        content = as_safetensors(tensors(model), {"step": str(number)})
        before = store.usage().stored
        check(store, content, store.put_file(write(tmp_path / f"{number}.safetensors", content)))
        stored.append((store.usage().stored - before) / len(content))
    assert 0.5 < stored[0] < 0.72
    assert max(stored[1:]) < 0.2
    for blob in store.list():
        store.verify(blob.digest)


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_every_type(store: Backend, tmp_path: Path, kind: str) -> None:
    parts = many_types()
    if kind == "gguf":
        parts = {n: p for n, p in parts.items() if p[0] in models.GGUF_KINDS and p[2]}
        parts |= models.quantised()
    write_as = as_safetensors if kind == "safetensors" else as_gguf
    content = write_as(parts)
    check(store, content, store.put_file(write(tmp_path / "a", content)))
    changed = {n: (d, s, data[:-1] + bytes([data[-1] ^ 1]) if data else data) for n, (d, s, data) in parts.items()}
    content = write_as(changed)
    check(store, content, store.put_file(write(tmp_path / "b", content)))


def test_a_tensor_of_several_blocks(store: Backend, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2500, 1000)).astype(np.float32)  # two blocks and a half
    for number in range(3):
        content = as_safetensors(tensors({"w": values + number * 1e-5, "v": values[:3]}))
        check(store, content, store.put_file(write(tmp_path / str(number), content)))


def test_gguf_with_a_tail_and_padding(store: Backend, tmp_path: Path) -> None:
    content = as_gguf(
        {"a": ("F32", (3, 32), noise(384)), "b": ("BF16", (1, 33), noise(66)), "c": ("F16", (300, 128), noise(76800))},
        tail=b"something behind the last tensor",
    )
    check(store, content, store.put_file(write(tmp_path / "a", content)))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chains", ["fast", "small"])
def test_settings(tmp_path: Path, threads: int, chains: str) -> None:
    store = models.store_at(tmp_path, chains=chains, threads=threads)
    model = base()
    for number in range(7):
        content = as_safetensors(tensors(model))
        check(store, content, store.put_file(write(tmp_path / "m", content)))
        model = tuned(model, number)
    store.close()


@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_weights_that_come_as_a_stream(store: Backend, tmp_path: Path, step: int) -> None:
    content = as_safetensors(tensors(base()))
    blob = store.put(content[i : i + step] for i in range(0, len(content), step))
    check(store, content, blob)
    assert (tmp_path / "store/files").is_dir()
    assert list((tmp_path / "store/spool").iterdir()) == []
    near = as_safetensors(tensors(tuned(base(), 1)))
    before = store.usage().stored
    check(store, near, store.put([near], expected=digest(near), size=len(near)))
    assert store.usage().stored - before < len(near) // 5
    assert store.put([near], expected=digest(near), size=len(near)).size == len(near)


@pytest.mark.parametrize("how", ["file", "stream"])
def test_weights_that_are_not_what_was_declared_keep_nothing(store: Backend, tmp_path: Path, how: str) -> None:
    content = as_safetensors(tensors(base()))
    path = write(tmp_path / "a", content)
    other = digest(b"other")
    with pytest.raises(DigestMismatchError) as caught:
        if how == "file":
            store.put_file(path, expected=other)
        else:
            store.put([content], expected=other)
    assert caught.value.facts["found"] == digest(content)
    assert list(store.list()) == []
    assert [
        p for p in (tmp_path / "store").rglob("*") if p.is_file() and p.parent.name in ("packs", "spool", "tmp")
    ] == []
    held = store.put_file(path)
    with pytest.raises(DigestMismatchError):
        store.put_file(path, expected=other)
    assert list(store.list()) == [held]


@pytest.mark.parametrize("what", ["cut", "not weights after all", "too small"])
def test_what_only_begins_like_weights_is_kept_whole(store: Backend, tmp_path: Path, what: str) -> None:
    content = as_safetensors(tensors(base()))
    content = {"cut": content[:-1], "not weights after all": b"GGUF" + noise(200_000), "too small": safetensors()}[what]
    for blob in (
        store.put_file(write(tmp_path / "a", content)),
        store.put([content]),
        store.put([content[:5], content[5:]]),
    ):
        check(store, content, blob)
    assert not (tmp_path / "store/files").exists()
    assert store.path(blob.digest).is_relative_to(tmp_path / "store/blobs")


def test_putting_again_costs_nothing(store: Backend, tmp_path: Path) -> None:
    path = models.model_file(tmp_path / "m", base())
    blob = store.put_file(path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store/packs").iterdir()}
    told: list[int] = []
    assert store.put_file(path, progress=told.append) == blob
    assert sum(told) == blob.size
    assert store.put_file(path, expected=blob.digest) == blob
    assert store.put([path.read_bytes()]) == blob
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "store/packs").iterdir()} == before


def test_progress_comes_to_the_size(store: Backend, tmp_path: Path) -> None:
    for number, content in enumerate(
        (as_safetensors(tensors(base())), as_gguf(models.quantised()), noise(100_000), b"")
    ):
        told: list[int] = []
        store.put_file(write(tmp_path / str(number), content), progress=told.append)
        assert sum(told) == len(content)


def test_a_file_kept_by_an_earlier_version_moves_over(store: Backend, tmp_path: Path) -> None:
    content = as_safetensors(tensors(base()))
    name = digest(content)
    old = tmp_path / "store/blobs" / name[7:9] / name
    old.parent.mkdir(parents=True)
    old.write_bytes(content)
    old.chmod(0o444)
    check(store, content, Blob(name, len(content)))
    assert np.array_equal(store.tensors(name)["embed.weight"], models.bf16(base()["embed.weight"]))
    check(store, content, store.put_file(write(tmp_path / "m", content)))
    assert not old.exists()
    assert store.delete(name) and store.size(name) is None


@pytest.mark.parametrize("change", ["longer", "shorter", "other bytes", "replaced"])
def test_weights_that_change_while_they_are_read_keep_nothing(store: Backend, tmp_path: Path, change: str) -> None:
    path = models.model_file(tmp_path / "m", base())
    os.utime(path, ns=(0, 0))
    size = path.stat().st_size
    told: list[int] = []

    def meanwhile(count: int) -> None:
        told.append(count)
        if len(told) == 2:
            if change == "longer":
                with path.open("ab") as file:
                    file.write(b"b")
            elif change == "shorter":
                os.truncate(path, size - 40_000)
            elif change == "other bytes":
                with path.open("r+b") as file:
                    file.seek(size - 50)
                    file.write(b"b")
            else:
                path.unlink()
                path.write_bytes(b"another file")

    if change == "replaced":  # the file that was opened is read to its end, whatever has its name by now
        assert store.put_file(path, progress=meanwhile).size == size
        return
    with pytest.raises(StoreError, match="changed while it was read"):
        store.put_file(path, progress=meanwhile)
    assert list(store.list()) == []
    assert list((tmp_path / "store/packs").iterdir()) == [] if (tmp_path / "store/packs").exists() else True
    assert store.usage().stored == 0


def test_reading_into_a_buffer_of_another_size(store: Backend, tmp_path: Path) -> None:
    blob = store.put_file(models.model_file(tmp_path / "m", base()))
    with pytest.raises(ValueError, match=str(blob.size)):
        store.read_into(blob.digest, bytearray(blob.size - 1))
    with pytest.raises(NotFoundError):
        store.read_into(digest(b"nothing"), bytearray(1))


def test_an_order_of_tensors_other_than_that_of_the_header(store: Backend, tmp_path: Path) -> None:
    data = noise(100_000)
    header = {
        "b": {"dtype": "U8", "shape": [60_000], "data_offsets": [40_000, 100_000]},
        "a": {"dtype": "BF16", "shape": [100, 200], "data_offsets": [0, 40_000]},
    }
    content = safetensors(header, data)
    check(store, content, store.put_file(write(tmp_path / "m", content)))
    assert list(store.tensors(digest(content))) == ["a", "b"]


def test_many_small_tensors(store: Backend, tmp_path: Path) -> None:
    parts = {f"t{n}": ("F32", (n % 7 + 1,), noise(4 * (n % 7 + 1), n)) for n in range(3000)}
    content = as_safetensors(parts)
    check(store, content, store.put_file(write(tmp_path / "m", content)))
