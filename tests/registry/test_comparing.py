"""What differs between two versions: tensors by their numbers, quantised blocks by their bytes, metadata and files."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from safetensors import torch as safetensors

from pressroom.kernel import NotFoundError, Workspace
from pressroom.registry import Comparison, FileEntry, Registry, TensorChange, Version, compare
from pressroom.store import Store

from .weights import gguf_bytes


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry(workspace)


def make(registry: Registry, name: str = "m", /, **files: bytes) -> Version:
    entries = []
    for path, content in files.items():
        blob = registry.store.put([content])
        entries.append(FileEntry(path=path.replace("__", "."), blob=blob.digest, size=blob.size))
    return registry.register(name, entries, metadata={"format": "test", "header": {"files": len(entries)}})


def save(tensors: dict[str, torch.Tensor]) -> bytes:
    """The file; its own writer refuses tensors that share their memory."""
    return safetensors.save({name: tensor.clone() for name, tensor in tensors.items()})


def by_name(found: Comparison) -> dict[str, TensorChange]:
    return {change.name: change for change in found.tensors}


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8),
    ],
)
def test_how_far_tensors_are_apart(registry: Registry, workspace: Workspace, dtype: torch.dtype) -> None:
    """Against PyTorch's own reading of each type."""
    torch.manual_seed(1)
    old = (torch.randn(37, 11) * 20).to(dtype)
    new = old.clone()
    new[3:9] = (torch.randn(6, 11) * 20).to(dtype)
    make(registry, model__safetensors=save({"w": old, "same": old}))
    make(registry, model__safetensors=save({"w": new, "same": old}))
    found = compare(workspace, "m:1", "m:2")
    assert found.tensors_same == 1
    apart = by_name(found)["w"].distance
    assert apart is not None and not apart.by_bytes
    wide_old, wide_new = old.to(torch.float64), new.to(torch.float64)
    assert (apart.changed, apart.of) == (int((wide_old != wide_new).sum()), 37 * 11)
    assert apart.relative_l2 == pytest.approx(float((wide_new - wide_old).norm() / wide_old.norm()))
    assert apart.max_abs == pytest.approx(float((wide_new - wide_old).abs().max()))


def test_tensors_longer_than_a_piece_are_compared_to_their_end(
    registry: Registry, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pressroom.registry._numbers._PIECE", 100)
    old = torch.arange(1001, dtype=torch.float32)
    new = old.clone()
    new[[0, 99, 100, 1000]] += 2
    make(registry, model__safetensors=save({"w": old}))
    make(registry, model__safetensors=save({"w": new}))
    apart = compare(workspace, "m:1", "m:2").tensors[0].distance
    assert apart is not None and apart.changed == 4 and apart.max_abs == 2
    assert apart.relative_l2 == pytest.approx(float((new - old).norm() / old.norm()))


def test_what_is_no_number_is_counted_and_left_out(registry: Registry, workspace: Workspace) -> None:
    nan, inf = float("nan"), float("inf")
    make(registry, model__safetensors=save({"w": torch.tensor([nan, 1.0, 2.0, inf, -0.0]), "z": torch.zeros(2)}))
    make(registry, model__safetensors=save({"w": torch.tensor([nan, inf, 4.0, inf, 0.0]), "z": torch.ones(2)}))
    changes = by_name(compare(workspace, "m:1", "m:2"))
    apart = changes["w"].distance
    assert apart is not None and (apart.changed, apart.not_finite, apart.max_abs) == (3, 3, 2.0)
    assert apart.relative_l2 == pytest.approx(1.0)
    from_nothing = changes["z"].distance
    assert from_nothing is not None and from_nothing.relative_l2 is None and from_nothing.max_abs == 1


def test_shapes_and_types_and_what_is_in_one_only(registry: Registry, workspace: Workspace) -> None:
    old = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    make(
        registry,
        model__safetensors=save(
            {"gone": old, "shape": old, "type": old, "rounded": old + 0.001, "empty": torch.zeros(0)}
        ),
    )
    make(
        registry,
        model__safetensors=save(
            {
                "new": old,
                "shape": old.reshape(4),
                "type": old.to(torch.bfloat16),
                "rounded": (old + 0.001).to(torch.bfloat16),
                "empty": torch.zeros(0),
            }
        ),
    )
    found = compare(workspace, "m:1", "m:2")
    changes = by_name(found)
    assert {name: change.what for name, change in changes.items()} == {
        "gone": "removed",
        "new": "added",
        "shape": "shape",
        "type": "type",
        "rounded": "type",
    }
    assert found.tensors_same == 1
    assert changes["shape"].shapes == ((2, 2), (4,)) and changes["shape"].distance is None
    exact, rounded = changes["type"].distance, changes["rounded"].distance
    assert changes["type"].dtypes == ("F32", "BF16")
    assert exact is not None and (exact.changed, exact.max_abs) == (0, 0.0)
    assert rounded is not None and rounded.changed == 4 and rounded.max_abs == pytest.approx(0.001, rel=0.1)


def test_tensors_are_matched_across_files(registry: Registry, workspace: Workspace) -> None:
    a, b, c = torch.ones(3), torch.zeros(4), torch.full((5,), 2.0)
    make(registry, model__safetensors=save({"a": a, "b": b, "c": c}))
    make(registry, one__safetensors=save({"c": c}), two__safetensors=save({"a": a, "b": b + 1}))
    found = compare(workspace, "m:1", "m:2")
    assert [change.name for change in found.tensors] == ["b"] and found.tensors_same == 2
    assert found.metadata == {"header.files": (1, 2)}


def test_quantised_blocks_are_compared_by_their_bytes(registry: Registry, workspace: Workspace) -> None:
    old, new = gguf_bytes(seed=1, quantised=True), bytearray(gguf_bytes(seed=1, quantised=True))
    new[-3:] = b"\xff\xff\xff"
    make(registry, model__gguf=old)
    make(registry, model__gguf=bytes(new))
    apart = compare(workspace, "m:1", "m:2").tensors[0].distance
    assert apart is not None and apart.by_bytes and (apart.changed, apart.of) == (3, 36)
    assert apart.relative_l2 is None and apart.max_abs is None
    # To a type that has values nothing can be said but that it is another.
    make(registry, model__gguf=gguf_bytes(seed=1))
    other = compare(workspace, "m:1", "m:3").tensors[0]
    assert (other.what, other.dtypes, other.distance) == ("type", ("Q4_0", "F32"), None)


def test_float32_in_gguf_is_compared_by_value(registry: Registry, workspace: Workspace) -> None:
    old = bytearray(gguf_bytes(seed=0))
    old[-256:] = np.arange(64, dtype="<f4").tobytes()
    new = bytearray(old)
    new[-4:] = struct.pack("<f", 66.0)
    make(registry, model__gguf=bytes(old))
    make(registry, model__gguf=bytes(new))
    apart = compare(workspace, "m:1", "m:2").tensors[0].distance
    assert apart is not None and (apart.changed, apart.max_abs) == (1, 3.0)


def test_of_equal_files_nothing_is_read(
    registry: Registry, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = save({"w": torch.ones(3)})
    make(registry, "a", model__safetensors=weights, config__json=b'{"a": 1}')
    make(registry, "b", model__safetensors=weights, config__json=b'{"a": 1}', README__md=b"# b")

    def never(self: Store, digest: str) -> None:
        raise AssertionError(f"{digest} was read")

    monkeypatch.setattr(type(registry.store), "open", never)
    found = compare(workspace, "a", "b")
    assert found.weights_same == ["model.safetensors"] and found.tensors == [] and found.tensors_same == 0
    assert [(change.path, change.what, change.sizes) for change in found.files] == [("README.md", "added", (None, 3))]
    assert compare(workspace, "a", "a").as_dict()["same"] is True


def test_other_files_by_their_keys(registry: Registry, workspace: Workspace) -> None:
    weights = save({"w": torch.ones(3)})
    config = {"layers": 2, "rope": {"theta": 1e4, "kind": "x"}, "gone": None, "list": [1]}
    make(
        registry, model__safetensors=weights, config__json=json.dumps(config).encode(), notes__txt=b"a", x__json=b"[1]"
    )
    changed = {"layers": 3, "rope": {"theta": 1e6, "kind": "x"}, "list": [1, 2], "new": True}
    make(
        registry, model__safetensors=weights, config__json=json.dumps(changed).encode(), notes__txt=b"b", x__json=b"{]"
    )
    found = compare(workspace, "m:1", "m:2")
    files = {change.path: change for change in found.files}
    assert files["config.json"].keys == {
        "layers": (2, 3),
        "list": ([1], [1, 2]),
        "new": (None, True),
        "rope.theta": (1e4, 1e6),
    }
    assert files["notes.txt"].what == "changed" and files["notes.txt"].keys is None
    assert files["x.json"].keys is None
    assert json.loads(json.dumps(found.as_dict()))["files"]


def test_what_is_gone_is_said(registry: Registry, workspace: Workspace) -> None:
    make(registry, model__safetensors=save({"w": torch.ones(3)}))
    version = make(registry, model__safetensors=save({"w": torch.zeros(3)}))
    with pytest.raises(NotFoundError):
        compare(workspace, "m:1", "m:3")
    registry.store.delete(version.files[0].blob)
    with pytest.raises(NotFoundError):
        compare(workspace, "m:1", "m:2")
    assert list(workspace.path("tmp").iterdir()) == []
