"""Who a new file is told from, how deep, and by what sign it is known."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from pressroom.store.backends.file import Backend
from pressroom.store.family import _parents as parents
from pressroom.store.family import _sketch as sketches
from pressroom.store.formats import TensorInfo, inspect
from tests.store.family import models
from tests.store.family.models import Model, as_safetensors, base, pruned, tensors, tuned, write


def parent_files(root: Path, store: Backend, blob: str) -> set[str]:
    """The files that the tensors of a file are told from, straight."""
    c = sqlite3.connect(root / "store/index.db")
    found = {
        digest
        for (digest,) in c.execute(
            "SELECT DISTINCT g.digest FROM files f JOIN file_tensors t ON t.file = f.id "
            "JOIN parents p ON p.child = t.tensor "
            "JOIN file_tensors u ON u.tensor = p.parent JOIN files g ON g.id = u.file WHERE f.digest = ?",
            (blob,),
        )
    }
    c.close()
    return found


def depth(root: Path, blob: str) -> int:
    c = sqlite3.connect(root / "store/index.db")
    found: int = c.execute(
        "SELECT max(depth) FROM files f JOIN file_tensors ON file = f.id JOIN tensors t ON t.id = tensor "
        "WHERE f.digest = ?",
        (blob,),
    ).fetchone()[0]
    c.close()
    return found


def run_of_checkpoints() -> dict[str, Model]:
    """A base, four checkpoints of one run, and what is made of the last."""
    found = {"base": base()}
    for number in range(1, 5):
        found[f"step{number}"] = tuned(list(found.values())[-1], number)
    found["pruned"] = pruned(found["step4"])
    found["one"] = dict(found["step4"]) | {"layers.1.up.weight": found["step4"]["layers.1.up.weight"] * 1.01}
    return found


def put_all(store: Backend, root: Path, family: dict[str, Model]) -> dict[str, str]:
    return {n: store.put_file(models.model_file(root / n, model)).digest for n, model in family.items()}


def test_small_chains_follow_the_checkpoints(tmp_path: Path) -> None:
    store = models.store_at(tmp_path, chains="small")
    family = run_of_checkpoints()
    held = put_all(store, tmp_path, family)
    assert depth(tmp_path, held["base"]) == 0
    assert parent_files(tmp_path, store, held["step1"]) == {held["base"]}
    for number in range(2, 5):
        assert held[f"step{number - 1}"] in parent_files(tmp_path, store, held[f"step{number}"])
        assert held["base"] not in parent_files(tmp_path, store, held[f"step{number}"])
    assert depth(tmp_path, held["step4"]) == 4
    assert held["step4"] in parent_files(tmp_path, store, held["pruned"])
    assert depth(tmp_path, held["pruned"]) == 5
    last = tuned(family["pruned"], 9)
    deepest = store.put_file(models.model_file(tmp_path / "last", last)).digest
    assert depth(tmp_path, deepest) <= 5
    for blob in store.list():
        store.verify(blob.digest)
    store.close()


def test_fast_chains_stay_near_the_base(tmp_path: Path) -> None:
    store = models.store_at(tmp_path)
    held = put_all(store, tmp_path, run_of_checkpoints())
    for number in range(1, 5):
        assert parent_files(tmp_path, store, held[f"step{number}"]) == {held["base"]}
        assert depth(tmp_path, held[f"step{number}"]) == 1
    # These save more than half by going one step deeper.
    assert held["step4"] in parent_files(tmp_path, store, held["pruned"])
    assert depth(tmp_path, held["pruned"]) == depth(tmp_path, held["one"]) == 2
    store.close()


def test_a_model_of_another_training_has_no_parent(tmp_path: Path) -> None:
    store = models.store_at(tmp_path)
    held = put_all(store, tmp_path, {"one": base(1), "other": base(2)})
    assert depth(tmp_path, held["other"]) == 0
    assert store.cost(held["other"]) > 0.5 * (store.size(held["other"]) or 0)
    store.close()


def test_a_file_named_as_near_is_a_parent_where_little_is_shared(tmp_path: Path) -> None:
    store = models.store_at(tmp_path)
    first = base(layers=1)
    larger = base(7, layers=6)
    larger |= {name: values for name, values in tuned(first, 3).items() if name.startswith("layers.0")}
    one = store.put_file(models.model_file(tmp_path / "a", first)).digest
    path = models.model_file(tmp_path / "b", larger)
    alone = models.store_at(tmp_path / "alone")
    assert alone.put_file(path).digest
    two = store.put_file(path, near=[one, "blake3-" + "0" * 64]).digest
    assert parent_files(tmp_path, store, two) == {one}
    assert depth(tmp_path, two) == 1
    assert store.cost(two) < alone.cost(two)
    store.close()
    alone.close()


def test_a_tensor_of_another_shape_or_type_is_told_from_nothing(tmp_path: Path) -> None:
    store = models.store_at(tmp_path)
    first = base()
    one = store.put_file(models.model_file(tmp_path / "a", first)).digest
    changed = tuned(first, 1)
    parts = tensors(changed)
    parts["embed.weight"] = ("BF16", (192, 192), parts["embed.weight"][2])
    parts["layers.0.up.weight"] = ("F16", *parts["layers.0.up.weight"][1:])
    content = as_safetensors(parts)
    two = store.put_file(write(tmp_path / "b", content)).digest
    store.verify(two)
    assert parent_files(tmp_path, store, two) == {one}
    c = sqlite3.connect(tmp_path / "store/index.db")
    depths = [
        d
        for (d,) in c.execute(
            "SELECT depth FROM files f JOIN file_tensors ON file = f.id JOIN tensors t ON t.id = tensor "
            "WHERE f.digest = ? ORDER BY position",
            (two,),
        )
    ]
    c.close()
    assert depths[:2] == [0, 0] and 1 in depths[2:]
    store.close()


def _sketch(path: Path) -> tuple[tuple[TensorInfo, ...], bytes]:
    infos = inspect(path).tensors
    with path.open("rb") as file:
        return infos, sketches.take(file.fileno(), infos)


def test_the_true_parent_is_nearest_also_of_a_pruned_model(tmp_path: Path) -> None:
    family = run_of_checkpoints()
    taken = {name: _sketch(models.model_file(tmp_path / name, model)) for name, model in family.items()}

    def cost(child: str, parent: str) -> float:
        infos, sketch = taken[child]
        others, other = taken[parent]
        return sketches.distance(infos, sketch, others, other, {n: n for n in range(len(infos))})

    for child in ("pruned", "one"):
        costs = {parent: cost(child, parent) for parent in family if parent not in ("pruned", "one")}
        assert min(costs, key=costs.__getitem__) == "step4"
        assert costs["step4"] < 0.8 * costs["step3"]
    for number in (2, 3, 4):
        costs = {f"step{n}": cost(f"step{number}", f"step{n}") for n in range(1, number)} | {
            "base": cost(f"step{number}", "base")
        }
        assert min(costs, key=costs.__getitem__) == f"step{number - 1}"
    assert cost("base", "base") == 0
    path = models.model_file(tmp_path / "other", base(5))
    infos, sketch = _sketch(path)
    assert sketches.distance(infos, sketch, *taken["base"], {n: n for n in range(len(infos))}) > 0.6


@pytest.mark.parametrize("dtype", ["F32", "F16", "I8", "F8_E4M3", "I16", "F64", "Q4_0"])
def test_sketches_of_other_types(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    kind = {"F32": "f4", "F16": "f2", "I8": "i1", "F8_E4M3": "u1", "I16": "i2", "F64": "f8", "Q4_0": "u1"}[dtype]
    values = (rng.standard_normal((64, 576)) * 30).astype(kind)
    near = values.copy()
    near[::7, ::5] += 1
    costs = []
    for other in (values, near, (rng.standard_normal((64, 576)) * 30).astype(kind)):
        shape = (64, 576) if dtype != "Q4_0" else (64, 1024)
        parts = {"w": (dtype, shape, values.tobytes()), "v": (dtype, shape, other.tobytes())}
        content = models.as_gguf(parts) if dtype == "Q4_0" else as_safetensors(parts)
        infos, sketch = _sketch(write(tmp_path / "f", content))
        # The two tensors of one file stand for those of two.
        half = len(sketch) // 2
        costs.append(sketches.distance(infos[:1], sketch[:half], infos[1:], sketch[half:], {0: 0}))
    assert costs[0] == 0 < costs[1] < 0.3 < costs[2]


def test_what_is_deeper_has_to_be_worth_it() -> None:
    def relative(name: str, cost: float, depth: int) -> parents.Relative:
        return parents.Relative(name, cost, {0: (name.encode(), depth)})

    near, far = relative("near", 0.05, 1), relative("far", 0.09, 0)
    assert parents.choose([near, far], 0, "fast") == (b"far", 0.09, 0)
    assert parents.choose([near, far], 0, "small") == (b"near", 0.05, 1)
    much = relative("much", 0.01, 1)
    assert parents.choose([much, far], 0, "fast") == (b"much", 0.01, 1)
    assert parents.choose([relative("deep", 0.0, 2)], 0, "fast") is None
    assert parents.choose([relative("deep", 0.0, 4)], 0, "small") == (b"deep", 0.0, 4)
    assert parents.choose([relative("deep", 0.0, 5)], 0, "small") is None
    assert parents.choose([near], 1, "fast") is None
