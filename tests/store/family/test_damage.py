"""Altered, cut and missing parts: found, named with all who need them, never decoded into something else, mended."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from pressroom.kernel import DigestMismatchError, PressroomError, StoreError
from pressroom.store import Blob
from pressroom.store.backends.file import Backend
from pressroom.store.family import _decoding
from tests.store.family import models
from tests.store.family.models import as_gguf, as_safetensors, base, quantised, tensors, tuned, write

T = TypeVar("T")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    store = models.store_at(tmp_path)
    yield store
    store.close()


@pytest.fixture
def family(store: Backend, tmp_path: Path) -> dict[str, tuple[bytes, Blob]]:
    """A base, a child of it, and a file that shares nothing with them."""
    first = base(1)
    found = {}
    other = {n: 3 * values for n, values in base(2, layers=1).items()}  # also no norm of ones
    for name, model in {"base": first, "child": tuned(first, 3), "other": other}.items():
        content = as_safetensors(tensors(model))
        found[name] = content, store.put_file(write(tmp_path / name, content))
    return found


def pieces(root: Path, folder: str) -> list[Path]:
    found = (p for p in (root / "store" / folder).rglob("*") if p.is_file() and p.suffix != ".table")
    return sorted(found, key=lambda p: p.stat().st_mtime_ns)


def alter(path: Path, change: Callable[[bytearray], bytes | bytearray]) -> None:
    path.chmod(0o644)
    path.write_bytes(change(bytearray(path.read_bytes())))


def flipped(at: int) -> Callable[[bytearray], bytearray]:
    def change(data: bytearray) -> bytearray:
        data[at] ^= 0x10
        return data

    return change


def refused(store: Backend, blob: Blob) -> DigestMismatchError:
    """Every way to the bytes is an error; the one of verifying."""
    out = bytearray(blob.size)
    for ask in (
        lambda: store.open(blob.digest).read(),
        lambda: store.path(blob.digest),
        lambda: store.read_into(blob.digest, out),
        lambda: store.read_into(blob.digest, out, fast=True),
    ):
        with pytest.raises(StoreError):
            ask()
    with pytest.raises(DigestMismatchError) as caught:
        store.verify(blob.digest)
    assert caught.value.hint
    return caught.value


def test_a_byte_of_the_base_is_altered(store: Backend, tmp_path: Path, family: dict[str, tuple[bytes, Blob]]) -> None:
    pack = pieces(tmp_path, "packs")[0]
    alter(pack, flipped(3000))
    error = refused(store, family["child"][1])
    assert error.facts["files"][0] == family["child"][1].digest
    assert set(error.facts["files"]) == {family["child"][1].digest, family["base"][1].digest}
    assert len(error.facts["tensors"]) == 1 and error.facts["pieces"] == [f"packs/{pack.name}"]
    assert error.facts["tensors"][0] in error.message
    refused(store, family["base"][1])
    store.verify(family["other"][1].digest)


@pytest.mark.parametrize("who", ["base", "child"])
def test_putting_either_file_again_mends_what_it_can(
    store: Backend, tmp_path: Path, family: dict[str, tuple[bytes, Blob]], who: str
) -> None:
    alter(pieces(tmp_path, "packs")[0], flipped(3000))
    with pytest.raises(DigestMismatchError):
        store.verify(family[who][1].digest)
    content, blob = family[who]
    assert store.put_file(tmp_path / who) == blob
    store.verify(blob.digest)
    assert store.path(blob.digest).read_bytes() == content
    if who == "base":
        store.verify(family["child"][1].digest)
        assert store.sweep().rewritten > 0, "the pack with the damaged copy is written anew"
    else:
        with pytest.raises(DigestMismatchError):
            store.verify(family["base"][1].digest)
        store.put_file(tmp_path / "base")
        store.sweep()
    for held in store.list():
        store.verify(held.digest)
    store.rebuild_index()
    for held in store.list():
        store.verify(held.digest)


def test_damage_that_nobody_verified_is_mended_as_well(
    store: Backend, tmp_path: Path, family: dict[str, tuple[bytes, Blob]]
) -> None:
    """A child of a damaged base is told from nothing where the damage shows."""
    alter(pieces(tmp_path, "packs")[0], flipped(3000))
    content = as_safetensors(tensors(tuned(base(1), 8)))
    blob = store.put_file(write(tmp_path / "new", content))
    store.verify(blob.digest)
    with pytest.raises(DigestMismatchError):
        store.verify(family["base"][1].digest)


@pytest.mark.parametrize("what", ["gone", "cut", "empty", "other bytes"])
def test_a_pack_is_lost(store: Backend, tmp_path: Path, family: dict[str, tuple[bytes, Blob]], what: str) -> None:
    pack = pieces(tmp_path, "packs")[0]
    if what == "gone":
        pack.unlink()
    else:
        changes = {"cut": lambda d: d[:2000], "empty": lambda d: b"", "other bytes": lambda d: models.noise(len(d))}
        alter(pack, changes[what])
    refused(store, family["base"][1])
    error = refused(store, family["child"][1])
    assert error.facts["tensors"]
    store.verify(family["other"][1].digest)
    again = models.store_at(tmp_path)
    refused(again, family["child"][1])
    assert again.put_file(tmp_path / "base") == family["base"][1]
    for _, blob in family.values():
        again.verify(blob.digest)
    again.close()


def test_the_index_is_lost_together_with_a_pack(
    store: Backend, tmp_path: Path, family: dict[str, tuple[bytes, Blob]]
) -> None:
    store.close()
    pieces(tmp_path, "packs")[0].unlink()
    (tmp_path / "store/index.db").unlink()
    refused(store, family["base"][1])
    refused(store, family["child"][1])
    store.verify(family["other"][1].digest)
    store.put_file(tmp_path / "base")
    for _, blob in family.values():
        store.verify(blob.digest)


@pytest.mark.parametrize("what", ["cut", "flipped", "another file's", "empty"])
def test_a_manifest_is_altered(
    store: Backend, tmp_path: Path, family: dict[str, tuple[bytes, Blob]], what: str
) -> None:
    _, blob = family["base"]
    path = tmp_path / "store/files" / blob.digest[7:9] / blob.digest
    other = family["child"][1].digest
    content = (tmp_path / "store/files" / other[7:9] / other).read_bytes()
    alter(
        path,
        {"cut": lambda d: d[:-5], "flipped": flipped(100), "another file's": lambda d: content, "empty": lambda d: b""}[
            what
        ],
    )
    error = refused(store, blob)
    assert "manifest" in error.message
    assert blob.digest in {held.digest for held in store.list()}
    store.verify(other)
    assert store.put_file(tmp_path / "base") == blob
    store.verify(blob.digest)


def test_a_file_that_is_kept_whole_is_altered(store: Backend, tmp_path: Path) -> None:
    parts = quantised(rows=256)
    content = as_gguf(parts)
    blob = store.put_file(write(tmp_path / "a.gguf", content))
    edited = as_gguf(
        {n: p for n, p in parts.items() if n != "blk.0.weight"} | {"x": ("F32", (4, 32), models.noise(512))}
    )
    second = store.put_file(write(tmp_path / "b.gguf", edited))
    (raw,) = pieces(tmp_path, "raw")
    info_at = content.index(parts["blk.3.weight"][2])
    alter(raw, flipped(info_at + 7))
    for one in (blob, second):
        with pytest.raises(DigestMismatchError) as caught:
            store.verify(one.digest)
        assert caught.value.facts["tensors"] == ["blk.3.weight"]
        assert set(caught.value.facts["files"]) == {blob.digest, second.digest}
    with pytest.raises(StoreError):
        store.open(second.digest).read()
    assert store.put_file(tmp_path / "a.gguf") == blob
    for one in (blob, second):
        store.verify(one.digest)


@pytest.mark.parametrize("what", ["header", "cut", "gone"])
def test_a_file_that_is_kept_whole_is_damaged_elsewhere(store: Backend, tmp_path: Path, what: str) -> None:
    blob = store.put_file(write(tmp_path / "a.gguf", as_gguf(quantised())))
    (raw,) = pieces(tmp_path, "raw")
    if what == "gone":
        raw.unlink()
    else:
        alter(raw, flipped(100) if what == "header" else lambda d: d[:-100])
    with pytest.raises(DigestMismatchError):
        store.verify(blob.digest)
    if what == "gone":
        with pytest.raises(StoreError):
            store.path(blob.digest)
        with pytest.raises(StoreError):
            store.open(blob.digest)
    assert store.put_file(tmp_path / "a.gguf") == blob
    store.verify(blob.digest)
    assert store.path(blob.digest).read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_a_rebuilt_file_is_altered(store: Backend, tmp_path: Path, family: dict[str, tuple[bytes, Blob]]) -> None:
    """The cache is taken for what it should be, but nothing is told from it that is not so."""
    content, blob = family["base"]
    rebuilt = store.path(blob.digest)
    alter(rebuilt, flipped(150_000))
    out = bytearray(family["child"][1].size)
    for fast in (False, True):
        store.read_into(family["child"][1].digest, out, fast=fast)
        assert out == family["child"][0]
    near = as_safetensors(tensors(tuned(base(1), 8)))
    new = store.put_file(write(tmp_path / "near", near))
    store.verify(new.digest)
    alter(rebuilt, lambda data: data[:100])
    out = bytearray(new.size)
    store.read_into(new.digest, out)
    assert out == near
    assert store.path(blob.digest).read_bytes() == content
    alter(rebuilt, flipped(150_000))
    store.verify(blob.digest)
    assert store.path(blob.digest).read_bytes() == content


def spoiled(rng: random.Random) -> Callable[[bytearray], bytes | bytearray]:
    """A bit, some bytes in a row, or the end of a file is not what it was."""

    def change(data: bytearray) -> bytes | bytearray:
        at, kind = rng.randrange(len(data)), rng.choice(["bit", "bytes", "cut"])
        if kind == "cut":
            return data[:at]
        if kind == "bit":
            data[at] ^= 1 << rng.randrange(8)
        else:
            length = min(40, len(data) - at)
            data[at : at + length] = rng.randbytes(length)
        return data

    return change


@pytest.mark.parametrize("folder", ["packs", "files"])
def test_any_one_byte(tmp_path: Path, folder: str) -> None:
    """Whatever byte is altered: what comes back is the file, or an error of ours; and verifying tells."""
    store = models.store_at(tmp_path)
    first = base(1, width=64, layers=2)
    held = {}
    for name, model in {"base": first, "child": tuned(first, 3)}.items():
        content = as_safetensors(tensors(model))
        held[name] = content, store.put_file(write(tmp_path / name, content))
    store.close()
    rng = random.Random(5)
    for _ in range(60):
        path = rng.choice(pieces(tmp_path, folder))
        good = path.read_bytes()
        alter(path, spoiled(rng))
        if rng.random() < 0.5:
            (tmp_path / "store/index.db").unlink(missing_ok=True)
        store = models.store_at(tmp_path)
        for content, blob in held.values():
            try:
                assert store.open(blob.digest).read() == content
                store.verify(blob.digest)
            except PressroomError:
                with pytest.raises(PressroomError):
                    store.verify(blob.digest)
        if folder == "packs":
            store.sweep()
        path.write_bytes(good)
        store.rebuild_index()
        for _, blob in held.values():
            store.verify(blob.digest)
        store.close()


def test_damaged_again_before_a_sweep(tmp_path: Path) -> None:
    """A copy that was found damaged is never taken for the other one when that is damaged, too. Each step in a process
    of its own, as from the command line."""
    content = as_safetensors(tensors(base(1)))
    source = write(tmp_path / "source", content)

    def step(ask: Callable[[Backend], T]) -> T:
        with contextlib.closing(models.store_at(tmp_path)) as store:
            return ask(store)

    blob = step(lambda store: store.put_file(source))
    for round in range(1, 4):
        for pack in pieces(tmp_path, "packs")[:round]:
            alter(pack, lambda data: data[:3000] + bytes(512) + data[3512:])
        for _ in range(2):
            with pytest.raises(DigestMismatchError):
                step(lambda store: store.verify(blob.digest))
        assert step(lambda store: store.put_file(source)) == blob
        step(lambda store: store.verify(blob.digest))
        assert step(lambda store: store.open(blob.digest).read()) == content
        assert len(pieces(tmp_path, "packs")) == round + 1
    step(lambda store: store.sweep())
    step(lambda store: store.verify(blob.digest))


def test_verifying_reads_what_is_stored_and_not_only_what_comes_of_it(
    store: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored byte that decoding passes by: here one that passes by all of them."""
    weights = np.random.default_rng(5).normal(0, 0.02, 60_000).astype(np.float32).view(np.uint16)[1::2].copy()
    content = as_safetensors({"w": ("BF16", (600, 100), weights.tobytes())})
    blob = store.put_file(write(tmp_path / "source", content))
    (pack,) = pieces(tmp_path, "packs")

    def decode(stored: memoryview, out: memoryview, *, parent: memoryview | None = None) -> None:
        out[:] = weights.tobytes()

    monkeypatch.setattr(_decoding.codec, "decode", decode)
    store.verify(blob.digest)
    alter(pack, flipped(3000))
    with store.open(blob.digest) as file:
        assert file.read() == content
    with pytest.raises(DigestMismatchError, match="was altered"):
        store.verify(blob.digest)
