"""Steps that train, in whole recipes: from the registry to the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.compress import Made, compress, parse
from pressroom.compress.weights import open_weights
from pressroom.kernel import RecipeError, Workspace
from pressroom.registry import Registry, Version, pull
from tests.compress.weights.gguf_files import tiny

from .conftest import TEXT

FEW = {"steps": 4, "batch": 2, "window": 32, "checkpoint": 2, "precision": "float32"}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "work").mkdir()
    with Workspace.open(tmp_path / "work") as opened:
        yield opened


@pytest.fixture
def version(workspace: Workspace, tmp_path: Path) -> Version:
    return pull(workspace, str(tiny().write(tmp_path / "tiny.gguf")), name="tiny")


def made(workspace: Workspace, version: Version, *steps: dict[str, Any]) -> Made:
    recipe = parse({"calibration": {"tokens": 512}, "step": list(steps)})
    return compress(workspace, version, recipe, name="small", text=TEXT)


def test_pruned_healed_and_rounded(workspace: Workspace, version: Version) -> None:
    found = made(
        workspace,
        version,
        {"method": "prune-weights", "ratio": 0.5, "by": "magnitude"},
        {"method": "distil", **FEW},
        {"to": "q8_0", "targets": r"blk\..*"},
    )
    child = found.version
    assert child.kind == "quantised" and child.parent == version.digest
    for name in ("teacher_kl_before", "teacher_kl", "held_loss", "train_tokens"):
        assert child.figure(name) is not None, name
    with open_weights(Registry(workspace).materialise(child)) as written:
        for tensor in written.linears:
            assert tensor.type == "Q8_0" and (written.rows(tensor.name) == 0).mean() >= 0.5


@pytest.mark.slow
def test_a_student_from_scratch_on_a_grid(workspace: Workspace, version: Version) -> None:
    found = made(
        workspace,
        version,
        {"method": "distil", "student": "scratch", "layers": 1, "hidden": 32, "architecture": "qwen2", **FEW},
        {"method": "qat", "to": "q4_0", "refresh": 2, **FEW},
    )
    assert found.version.kind == "quantised"
    with open_weights(Registry(workspace).materialise(found.version)) as written:
        assert written.architecture == "qwen2" and {one.type for one in written.linears} == {"Q4_0"}


def test_what_a_later_step_cannot_do_with_the_student_is_said_first(workspace: Workspace, version: Version) -> None:
    with pytest.raises(RecipeError, match="no whole blocks of 256"):
        made(
            workspace,
            version,
            {"method": "distil", "student": "scratch", "layers": 1, "hidden": 32, **FEW},
            {"method": "qat", "to": "tq2_0", "refresh": 2, **FEW},
        )
    assert [one.name for one in Registry(workspace).list()] == ["tiny"]


def test_training_does_not_come_after_rounding(workspace: Workspace, version: Version) -> None:
    with pytest.raises(RecipeError):
        made(workspace, version, {"to": "q8_0"}, {"method": "distil", **FEW})
