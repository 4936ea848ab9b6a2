"""A recipe from the registry to the registry, on a tiny model that llama.cpp runs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pressroom.compress import Made, Recipe, Step, compress
from pressroom.compress.recipe import CalibrationText
from pressroom.compress.weights import open_weights, same
from pressroom.kernel import PressroomError, RecipeError, RefError, StoreFullError, Workspace
from pressroom.registry import Registry, Version, pull

from .weights.gguf_files import tiny

TEXT = "the press prints what the compositor sets, letter by letter, line by line, page by page. " * 20
LINEARS = r"blk\..*"


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "work").mkdir()
    with Workspace.open(tmp_path / "work") as opened:
        yield opened


@pytest.fixture
def version(workspace: Workspace, tmp_path: Path) -> Version:
    return pull(workspace, str(tiny().write(tmp_path / "tiny.gguf")), name="tiny")


def made(workspace: Workspace, version: Version, *steps: Step, name: str = "small", embedding: str = "") -> Made:
    recipe = Recipe(steps=steps, embedding=embedding, calibration=CalibrationText(tokens=512))
    return compress(workspace, version, recipe, name=name, text=TEXT)


def weights(workspace: Workspace, version: Version) -> dict[str, np.ndarray]:
    with open_weights(Registry(workspace).materialise(version)) as source:
        return {name: source.rows(name) for name in source.tensors}


def left(workspace: Workspace) -> list[str]:
    """What lies in the folder of the part, but for calibrations."""
    return [path.name for path in (workspace.dir / "compress").iterdir() if path.suffix == ".gguf"]


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_what_is_registered_is_what_was_asked_for(workspace: Workspace, version: Version, rounding: str) -> None:
    found = made(workspace, version, Step(to="q4_0", targets=LINEARS, rounding=rounding), embedding="q8_0")
    child = found.version
    assert (child.name, child.kind, child.parent) == ("small", "quantised", version.digest)
    assert child.size == found.plan.size < version.size / 4
    assert child.figure("compressed_share") is not None
    assert (child.figure("layer_error") is not None) == (rounding == "gptq")
    with (
        open_weights(Registry(workspace).materialise(child)) as small,
        open_weights(Registry(workspace).materialise(version)) as large,
    ):
        types = {name: tensor.type for name, tensor in small.tensors.items()}
        assert {types[tensor.name] for tensor in small.linears} == {"Q4_0"}
        assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
        for tensor in large.linears:
            before, after = large.rows(tensor.name), small.rows(tensor.name)
            assert np.square(before - after).sum() < 0.05 * np.square(before).sum()
        for name in ("output_norm.weight", "blk.1.ffn_norm.weight"):
            assert bytes(large.raw(name)) == bytes(small.raw(name))
    assert left(workspace) == []


def test_the_second_order_pass_loses_less(workspace: Workspace, version: Version) -> None:
    reports = made(workspace, version, Step(to="q4_0", targets=LINEARS)).tensors
    assert len(reports) == 14 and not any(one.fallback for one in reports)
    lost, nearest = sum(one.error or 0 for one in reports), sum(one.nearest or 0 for one in reports)
    assert lost < 0.9 * nearest


def test_the_last_step_counts(workspace: Workspace, version: Version) -> None:
    steps = Step(to="q4_0", targets=LINEARS), Step(to="q8_0", targets=r".*attn_v\.weight", rounding="nearest")
    child = made(workspace, version, *steps).version
    with open_weights(Registry(workspace).materialise(child)) as small:
        assert small.tensors["blk.0.attn_v.weight"].type == "Q8_0"
        assert small.tensors["blk.0.attn_q.weight"].type == "Q4_0"


def test_the_same_recipe_gives_the_same_bytes(workspace: Workspace, version: Version) -> None:
    step = Step(to="q4_0", targets=LINEARS)
    first, again = (made(workspace, version, step, name=name).version for name in ("one", "two"))
    assert first.digest == again.digest or first.files[0].blob == again.files[0].blob
    with (
        open_weights(Registry(workspace).materialise(first)) as one,
        open_weights(Registry(workspace).materialise(again)) as two,
    ):
        assert same(one, two) == ()


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((Step(to="q4_k", targets=LINEARS),), "no whole blocks"),
        ((Step(to="q4_0", targets="blk.7.*"),), "no tensor that can be compressed is meant by step 1"),
        ((Step(to="q9_9"),), "there is no number format"),
        ((Step(to="f32"),), "nothing would change"),
    ],
)
def test_what_cannot_be_done_is_said_first(
    workspace: Workspace, version: Version, steps: tuple[Step, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was calibrated before it was known that it cannot be done")

    monkeypatch.setattr("pressroom.compress.calibrate.calibrate", never)
    with pytest.raises(RecipeError, match=says) as raised:
        made(workspace, version, *steps)
    if says in ("no whole blocks", "nothing would change"):
        assert "tiny:1" in raised.value.message
    assert [one.name for one in Registry(workspace).list()] == ["tiny"]


def test_a_name_that_is_none(workspace: Workspace, version: Version) -> None:
    with pytest.raises(RefError, match="cannot name"):
        made(workspace, version, Step(to="q4_0", targets=LINEARS), name="-a")


@pytest.mark.parametrize("text", ["", "too short"])
def test_a_text_that_shows_nothing(workspace: Workspace, version: Version, text: str) -> None:
    recipe = Recipe(steps=(Step(to="q4_0", targets=LINEARS),), calibration=CalibrationText(tokens=512))
    with pytest.raises(RecipeError, match="calibration text"):
        compress(workspace, version, recipe, name="small", text=text)
    assert [one.name for one in Registry(workspace).list()] == ["tiny"]


def test_a_full_disk_leaves_nothing(workspace: Workspace, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite if hasattr(os, "pwrite") else os.write
    assert real is not None

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # What was calibrated is there already: it is the weights that find no room.
    made(workspace, version, Step(to="q8_0", targets=LINEARS), name="before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr(os, "pwrite", full)
        with pytest.raises((StoreFullError, PressroomError)):
            made(workspace, version, Step(to="q4_0", targets=LINEARS))
    assert [one.name for one in Registry(workspace).list()] == ["before", "tiny"]
    assert left(workspace) == []


def test_what_a_killed_one_left_goes(workspace: Workspace, version: Version) -> None:
    (workspace.path("compress") / "other.gguf").write_bytes(b"half")
    made(workspace, version, Step(to="f16", targets=LINEARS))
    assert left(workspace) == []
