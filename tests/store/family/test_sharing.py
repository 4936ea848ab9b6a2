"""A tensor is kept once, whatever file and format it comes in; what cannot be made smaller is kept as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pressroom.kernel import WeightsError
from pressroom.store import Tensors
from pressroom.store.backends.file import Backend
from tests.store.family import models
from tests.store.family.models import as_gguf, as_safetensors, base, noise, quantised, tensors, tuned, write


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    store = models.store_at(tmp_path)
    yield store
    store.close()


def packs(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "store/packs").glob("*"))


def test_the_same_tensors_in_two_formats_and_under_other_names(store: Backend, tmp_path: Path) -> None:
    parts = tensors(base())
    store.put_file(write(tmp_path / "a", as_safetensors(parts)))
    before = packs(tmp_path)
    content = as_gguf({f"renamed.{n}": part for n, part in reversed(parts.items())})
    blob = store.put_file(write(tmp_path / "b", content))
    assert packs(tmp_path) == before
    store.verify(blob.digest)
    assert store.cost(blob.digest) < 6000
    assert store.path(blob.digest).read_bytes() == content


def test_equal_tensors_in_one_file(store: Backend, tmp_path: Path) -> None:
    values = models.bf16(np.random.default_rng(0).standard_normal((1500, 1000))).tobytes()
    blank = bytes(400_000)
    parts = {
        "embed": ("BF16", (1500, 1000), values),
        "z1": ("F32", (100, 1000), blank),
        "head": ("BF16", (1500, 1000), values),
        "z2": ("F32", (100, 1000), blank),
        # The same first block, and another end.
        "other": ("BF16", (1500, 1000), values[:-2] + b"\1\2"),
    }
    content = as_safetensors(parts)
    blob = store.put_file(write(tmp_path / "a", content))
    store.verify(blob.digest)
    assert packs(tmp_path) < 2 * 0.72 * len(values) + 10_000
    again = as_safetensors({"x": parts["other"], "y": parts["embed"]})
    before = packs(tmp_path)
    store.verify(store.put_file(write(tmp_path / "b", again)).digest)
    assert packs(tmp_path) == before


def test_what_does_not_get_smaller_is_kept_whole_and_mapped(store: Backend, tmp_path: Path) -> None:
    content = as_gguf(quantised())
    blob = store.put_file(write(tmp_path / "a.gguf", content))
    path = store.path(blob.digest)
    assert path.is_relative_to(tmp_path / "store/raw")
    assert path.read_bytes() == content and path.stat().st_mode & 0o222 == 0
    assert not (tmp_path / "store/packs").exists()
    assert not (tmp_path / ".pressroom/cache").exists()
    assert store.usage().stored < len(content) + 4000
    held = store.tensors(blob.digest)
    for name, (_, shape, data) in quantised().items():
        tensor = held[name]
        assert tensor.dtype_name == "Q4_0" and tensor.shape == (shape[0], shape[1] // 32 * 18)
        assert tensor.tobytes() == data
        assert not tensor.flags.writeable and not tensor.flags.owndata
    store.verify(blob.digest)
    assert store.put_file(tmp_path / "a.gguf") == blob
    with store.open(blob.digest) as file:
        assert file.read() == content


def test_files_share_with_one_that_is_kept_whole(store: Backend, tmp_path: Path) -> None:
    whole = quantised(rows=256)
    first = store.put_file(write(tmp_path / "a.gguf", as_gguf(whole)))
    # All tensors but one are the same: the metadata of a model was edited.
    second = whole | {"blk.2.weight": ("Q4_0", (256, 512), noise(256 * 288, 77))}
    content = as_gguf(second)
    before = store.usage().stored
    blob = store.put_file(write(tmp_path / "b.gguf", content))
    assert store.usage().stored - before < len(content) // 3
    store.verify(blob.digest)
    assert store.path(blob.digest).read_bytes() == content
    # The file goes, and its piece stays while another one needs its tensors.
    store.delete(first.digest)
    store.rebuild_index()
    assert store.size(first.digest) is None
    swept = store.sweep()
    assert swept.freed < 10_000
    store.verify(blob.digest)
    assert store.path(blob.digest).read_bytes() == content
    assert store.put_file(tmp_path / "a.gguf") == first
    store.verify(first.digest)
    store.delete(first.digest)
    store.delete(blob.digest)
    store.sweep()
    assert store.usage().stored == 0


def test_a_difference_from_a_tensor_that_lies_raw(store: Backend, tmp_path: Path) -> None:
    """Q4 weights of which a few changed: small as a difference, though neither is small alone."""
    whole = quantised(rows=256)
    store.put_file(write(tmp_path / "a.gguf", as_gguf(whole)))
    near = {}
    for name, (dtype, shape, data) in whole.items():
        changed = bytearray(data)
        changed[::97] = noise(len(changed[::97]), 3)
        near[name] = (dtype, shape, bytes(changed))
    content = as_gguf(near)
    before = store.usage().stored
    blob = store.put_file(write(tmp_path / "b.gguf", content))
    assert store.usage().stored - before < len(content) // 4
    store.verify(blob.digest)
    assert store.path(blob.digest).read_bytes() == content


def test_tensors_as_arrays(store: Backend, tmp_path: Path) -> None:
    model = base()
    parts = tensors(model) | {
        "f32": ("F32", (3, 4), np.arange(12, dtype=np.float32).tobytes()),
        "f8": ("F8_E4M3", (5,), b"12345"),
        "scalar": ("I64", (), (-7).to_bytes(8, "little", signed=True)),
        "none": ("F32", (0, 4), b""),
    }
    first = store.put_file(write(tmp_path / "a", as_safetensors(parts)))
    second = store.put_file(models.model_file(tmp_path / "b", tuned(model, 1)))
    held = store.tensors(first.digest)
    assert isinstance(held, Tensors)
    assert list(held) == list(parts) and len(held) == len(parts)
    for name, values in model.items():
        assert held[name].dtype_name == "BF16" and held[name].dtype == np.uint16
        assert np.array_equal(held[name], models.bf16(values))
        assert np.array_equal(store.tensors(second.digest)[name], models.bf16(tuned(model, 1)[name]))
    assert np.array_equal(held["f32"], np.arange(12, dtype=np.float32).reshape(3, 4))
    assert held["f8"].dtype == np.uint8 and held["f8"].dtype_name == "F8_E4M3"
    assert held["scalar"].shape == () and int(held["scalar"]) == -7
    assert held["none"].shape == (0, 4)
    with pytest.raises(KeyError):
        held["other"]
    with pytest.raises(ValueError, match="read-only"):
        held["f32"][0] = 1
    # Once a file has been rebuilt, its tensors are mapped from there, also for others that have them.
    store.path(first.digest)
    third = store.put_file(
        write(tmp_path / "c", as_safetensors({"again": parts["embed.weight"], "n": ("U8", (1,), b"x")}))
    )
    assert not store.tensors(third.digest)["again"].base.flags.owndata
    assert np.array_equal(store.tensors(third.digest)["again"], held["embed.weight"])


def test_tensors_of_what_is_not_weights(store: Backend) -> None:
    blob = store.put([b"To be, or not to be"])
    with pytest.raises(WeightsError):
        store.tensors(blob.digest)


def test_what_a_file_costs(store: Backend, tmp_path: Path) -> None:
    first = base()
    one = store.put_file(models.model_file(tmp_path / "1", first))
    alone = store.cost(one.digest)
    assert alone == pytest.approx(store.usage().stored, rel=0.02)
    two = store.put_file(models.model_file(tmp_path / "2", tuned(first, 1)))
    assert store.cost(two.digest) < 0.15 * two.size
    assert store.cost(one.digest) < 0.1 * alone, "its tensors are needed by the other"
    text = store.put([b"To be, or not to be"])
    assert store.cost(text.digest) == text.size
    before = store.usage().stored
    store.delete(two.digest)
    store.sweep()
    assert before - store.usage().stored == pytest.approx(
        store.cost(one.digest) - alone + (before - alone - text.size), rel=0.1
    )
    assert store.cost(one.digest) == pytest.approx(alone, rel=0.02)
