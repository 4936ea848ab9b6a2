"""Files that were made from others in a way that is known: next to nothing is stored, and every byte comes back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pressroom.kernel import StoreError
from pressroom.store import Recipe
from pressroom.store.backends.file import Backend
from tests.store.family import models
from tests.store.family.models import Model, as_safetensors, base, bf16, tensors, tuned, widened, write

Parts = dict[str, tuple[str, tuple[int, ...], bytes]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    store = models.store_at(tmp_path)
    yield store
    store.close()


def int8(model: Model) -> Parts:
    """Each matrix in whole numbers with a scale a row, from the weights as bf16 has them."""
    parts: Parts = {}
    for name, values in model.items():
        exact = widened(bf16(values))
        if exact.ndim < 2:
            parts[name] = ("BF16", exact.shape, bf16(exact).tobytes())
            continue
        scale = np.abs(exact).max(axis=1, keepdims=True) / np.float32(127)
        parts[name] = ("I8", exact.shape, np.clip(np.rint(exact / scale), -127, 127).astype(np.int8).tobytes())
        parts[f"{name}_scale"] = ("F32", scale.shape, scale.tobytes())
    return parts


def recipes(root: Path) -> list[str]:
    c = sqlite3.connect(root / "store/index.db")
    found = [row for (row,) in c.execute("SELECT recipe FROM tensors WHERE recipe IS NOT NULL")]
    c.close()
    return found


def check(store: Backend, root: Path, content: bytes, digest: str) -> None:
    out = bytearray(len(content))
    for fast in (False, True):
        store.read_into(digest, out, fast=fast)
        assert out == content
    store.verify(digest)
    with store.open(digest) as file:
        assert file.read() == content
    assert store.path(digest).read_bytes() == content


@pytest.mark.parametrize("told", [True, False])
def test_int8_is_stored_by_its_recipe_also_where_nobody_said_so(store: Backend, tmp_path: Path, told: bool) -> None:
    model = base()
    parent = store.put_file(models.model_file(tmp_path / "a", model)).digest
    store.put_file(models.model_file(tmp_path / "b", tuned(model, 3)))
    content = as_safetensors(int8(model))
    recipe = Recipe("absmax_int8_row", (parent,)) if told else None
    blob = store.put_file(write(tmp_path / "q", content), recipe=recipe)
    assert store.cost(blob.digest) < 0.08 * blob.size
    assert len(recipes(tmp_path)) == 14
    check(store, tmp_path, content, blob.digest)
    # The parent may be deleted: what the recipe reads stays.
    store.delete(parent)
    assert store.sweep().kept
    check(store, tmp_path, content, blob.digest)
    store.rebuild_index()
    check(store, tmp_path, content, blob.digest)


def test_a_tensor_that_the_recipe_gets_a_little_wrong(store: Backend, tmp_path: Path) -> None:
    model = base()
    parent = store.put_file(models.model_file(tmp_path / "a", model)).digest
    parts = int8(model)
    kind, shape, data = parts["layers.0.up.weight"]
    parts["layers.0.up.weight"] = (kind, shape, data[:100] + bytes([data[100] ^ 3]) + data[101:])
    content = as_safetensors(parts)
    blob = store.put_file(write(tmp_path / "q", content), recipe=Recipe("absmax_int8_row", (parent,)))
    assert store.cost(blob.digest) < 0.1 * blob.size
    check(store, tmp_path, content, blob.digest)


def test_a_recipe_that_is_not_true_costs_space_only(store: Backend, tmp_path: Path) -> None:
    model = base()
    parent = store.put_file(models.model_file(tmp_path / "a", model)).digest
    content = as_safetensors(int8(base(5)))
    alone = models.store_at(tmp_path / "alone")
    expected = alone.cost(alone.put_file(write(tmp_path / "q", content)).digest)
    alone.close()
    blob = store.put_file(tmp_path / "q", recipe=Recipe("absmax_int8_row", (parent,)))
    assert store.cost(blob.digest) < 1.05 * expected
    check(store, tmp_path, content, blob.digest)
    # A tensor that is nearer to its parent than to what the recipe says is told from the parent.
    near = as_safetensors(tensors(tuned(model, 1)))
    one = store.put_file(write(tmp_path / "n", near), recipe=Recipe("magnitude_prune", (parent,), {"share": 0.9}))
    assert store.cost(one.digest) < 0.2 * one.size
    check(store, tmp_path, near, one.digest)


def test_a_recipe_whose_parent_is_not_held(store: Backend, tmp_path: Path) -> None:
    content = as_safetensors(int8(base()))
    blob = store.put_file(write(tmp_path / "q", content), recipe=Recipe("absmax_int8_row", ("blake3-" + "0" * 64,)))
    check(store, tmp_path, content, blob.digest)


def test_an_operation_that_does_not_exist(store: Backend, tmp_path: Path) -> None:
    path = models.model_file(tmp_path / "a", base())
    with pytest.raises(StoreError, match="alchemy"):
        store.put_file(path, recipe=Recipe("alchemy", ("blake3-" + "0" * 64,)))
    assert list(store.list()) == []


def test_a_merge_of_two(store: Backend, tmp_path: Path) -> None:
    one, two = base(), tuned(base(), 1, 1e-3)
    digests = [store.put_file(models.model_file(tmp_path / n, m)).digest for n, m in (("a", one), ("b", two))]
    merged: Model = {}
    for name in one:
        total = np.zeros(one[name].shape, np.float32)
        for model, weight in ((one, 0.25), (two, 0.75)):
            total += widened(bf16(model[name])) * np.float32(weight)
        merged[name] = total
    rounded = {n: _nearest(values) for n, values in merged.items()}
    parts = {n: ("BF16", values.shape, values.tobytes()) for n, values in rounded.items()}
    content = as_safetensors(parts)
    recipe = Recipe("linear_merge", tuple(digests), {"weights": [0.25, 0.75]})
    blob = store.put_file(write(tmp_path / "m", content), recipe=recipe)
    assert store.cost(blob.digest) < 0.1 * blob.size
    check(store, tmp_path, content, blob.digest)
    for digest in digests:
        store.delete(digest)
    kept = store.sweep().kept
    assert {one.digest for one in kept} == set(digests)
    check(store, tmp_path, content, blob.digest)


def _nearest(values: models.Array) -> models.Array:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def test_nothing_is_foretold_from_an_altered_file(store: Backend, tmp_path: Path) -> None:
    model = base()
    parent = store.put_file(models.model_file(tmp_path / "a", model)).digest
    rebuilt = store.path(parent)
    rebuilt.chmod(0o644)
    data = bytearray(rebuilt.read_bytes())
    data[-100_000] ^= 0x40
    rebuilt.write_bytes(data)
    content = as_safetensors(int8(model))
    blob = store.put_file(write(tmp_path / "q", content))
    assert store.cost(blob.digest) < 0.08 * blob.size
    store.verify(blob.digest)
    rebuilt.unlink()
    check(store, tmp_path, content, blob.digest)


def test_what_a_recipe_reads_is_damaged(store: Backend, tmp_path: Path) -> None:
    model = base()
    store.put_file(models.model_file(tmp_path / "a", model))
    content = as_safetensors(int8(model))
    blob = store.put_file(write(tmp_path / "q", content))
    (pack,) = [p for p in (tmp_path / "store/packs").iterdir() if p.stat().st_size > 100_000]
    data = bytearray(pack.read_bytes())
    data[5000] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    with pytest.raises(StoreError):
        store.path(blob.digest)
    with pytest.raises(StoreError) as caught:
        store.verify(blob.digest)
    assert len(caught.value.facts["files"]) == 2
    store.put_file(tmp_path / "a")
    check(store, tmp_path, content, blob.digest)
