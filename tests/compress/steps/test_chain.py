"""Several steps one after the other: what is kept between them, and what happens on bad days."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from pressroom.compress import compress, parse, planned
from pressroom.compress.steps import Job, Outline, Report, Stage, Step
from pressroom.compress.steps.backends import drop_layers, prune_weights
from pressroom.compress.weights import New, Weights, open_weights, rebuild, same
from pressroom.kernel import Note, RecipeError, StoreFullError, Workspace
from pressroom.registry import Registry, Version

from .conftest import TEXT, Carry, PathOf
from .running import log_probabilities

STEPS: tuple[dict[str, Any], ...] = (
    {"method": "drop-layers", "layers": [1]},
    {"method": "prune-width", "feed_forward": 0.75},
    {"to": "q8_0", "targets": r"blk\..*", "rounding": "nearest"},
)


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a step among the others, under the name `breaks`."""

    def put(step: type[Step]) -> None:
        module = ModuleType("pressroom.compress.steps.backends.breaks")
        module.Backend = step  # type: ignore[attr-defined]
        step.__module__ = module.__name__
        monkeypatch.setitem(sys.modules, module.__name__, module)
        real = __import__("pressroom.kernel.plugins", fromlist=["x"])._own
        monkeypatch.setattr(
            "pressroom.kernel.plugins._own", lambda package: {**real(package), "breaks": module.__name__}
        )

    return put


def between(workspace: Workspace) -> list[Path]:
    folder = workspace.dir / "compress" / "steps"
    return list(folder.iterdir()) if folder.is_dir() else []


def test_all_parts_and_the_plan_to_the_byte(
    carry: Carry, path_of: PathOf, workspace: Workspace, version: Version, model: Path
) -> None:
    notes: list[str] = []
    workspace.events.subscribe(Note, lambda note: notes.append(note.text))
    with open_weights(model) as source:
        plan = planned(source, parse({"step": list(STEPS)}))
    made = carry(*STEPS)
    path = path_of(made)
    assert made.plan.size == plan.size == path.stat().st_size and made.plan.before == model.stat().st_size
    assert (made.version.kind, made.version.parent) == ("quantised", version.digest)
    assert [one.method for one in made.steps] == ["drop-layers", "prune-width"]
    values = {figure.name: figure.value for figure in made.version.sheet}
    assert (values["layers_dropped"], values["feed_forward_length"]) == ("1", 96)
    assert 0 < float(values["compressed_share"]) < 1 and '"prune-width"' in made.version.tags["recipe.json"]
    assert log_probabilities(path).shape == (512, 288)
    with open_weights(path) as found:
        assert {tensor.type for tensor in found.linears} == {"Q8_0"} and len(found.linears) == 21
    assert between(workspace) == [] and "Layers 1 were taken out." in notes
    again = carry(*STEPS, name="again")
    with open_weights(path) as one, open_weights(path_of(again)) as two:
        assert same(one, two) == ()


def test_without_rounding_the_last_file_is_registered(carry: Carry, path_of: PathOf, workspace: Workspace) -> None:
    made = carry(STEPS[0], name="three")
    assert (made.version.kind, made.version.tags["recipe"]) == ("pruned", "drop-layers")
    assert made.version.figure("compressed_share") is None and made.tensors == ()
    assert made.plan.size == made.version.size < made.plan.before and made.as_dict()["steps"][0]["found"] is False
    assert between(workspace) == []
    assert [path.name for path in (workspace.dir / "compress").iterdir() if path.suffix == ".gguf"] == []


def test_only_the_embedding_is_rounded_behind_a_step(carry: Carry, path_of: PathOf) -> None:
    made = carry(STEPS[0], embedding="q8_0")
    with open_weights(path_of(made)) as found:
        assert found.tensors["token_embd.weight"].type == "Q8_0" and found.linears[0].type == "F32"


KILLED = """
import os, signal, sys
from pathlib import Path
from pressroom.compress import compress, parse
from pressroom.compress.steps.backends import prune_weights
from pressroom.kernel import Workspace
from pressroom.registry import Registry
root, text = Path(sys.argv[1]), sys.argv[2]
def run(*_):
    os.kill(os.getpid(), signal.SIGKILL)
prune_weights.Backend.run = run
with Workspace.open(root) as workspace:
    recipe = parse({"calibration": {"tokens": 512}, "step": [
        {"method": "drop-layers", "layers": [1]}, {"method": "prune-weights", "ratio": 0.5, "by": "wanda"}]})
    compress(workspace, Registry(workspace).get("tiny"), recipe, name="small", text=text)
"""


def test_what_a_killed_run_did_is_not_done_again(
    carry: Carry, path_of: PathOf, workspace: Workspace, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = STEPS[0], {"method": "prune-weights", "ratio": 0.5, "by": "wanda"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(workspace.root), TEXT], check=False)
    assert done.returncode == -signal.SIGKILL
    assert {path.name for folder in between(workspace) for path in folder.iterdir()} >= {"weights.gguf", "done.json"}

    def never(*_: Any) -> None:
        raise AssertionError("it is done already")

    with monkeypatch.context() as patch:
        patch.setattr(drop_layers.Backend, "run", never)
        made = carry(*steps)
    assert [(one.method, one.found) for one in made.steps] == [("drop-layers", True), ("prune-weights", False)]
    assert made.version.figure("layers_dropped") is not None and between(workspace) == []
    whole = carry(*steps, name="whole")
    assert not whole.steps[0].found
    with open_weights(path_of(made)) as one, open_weights(path_of(whole)) as two:
        assert same(one, two) == ()


def test_what_was_kept_is_not_trusted_when_altered_and_goes_when_old(
    carry: Carry, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = STEPS[0], {"method": "prune-weights", "ratio": 0.5, "by": "wanda"}

    def fails(*_: Any) -> Report:
        raise RecipeError("enough")

    with monkeypatch.context() as patch:
        patch.setattr(prune_weights.Backend, "run", fails)
        with pytest.raises(RecipeError, match="prune-weights: enough"):
            carry(*steps)
    (kept,) = [path for path in between(workspace) if (path / "done.json").exists()]
    with (kept / "weights.gguf").open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"\x01")
    old, young = (kept.parent / name for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir()
        (folder / "weights.gguf").write_bytes(b"x")
    for path in (old / "weights.gguf", old):
        os.utime(path, (time.time() - 8 * 24 * 3600,) * 2)
    made = carry(*steps)
    assert not made.steps[0].found and between(workspace) == [young]


def test_a_full_disk(carry: Carry, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, version: Version) -> None:
    real = os.write

    def full(fd: int, data: Any) -> int:
        if ".weights-" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreFullError):
            carry(*STEPS)
    assert [one.name for one in Registry(workspace).list()] == ["tiny"]
    assert not list((workspace.dir / "compress").rglob("*.gguf")) and not list(
        (workspace.dir / "compress").rglob("*.part")
    )

    class Little:
        free = 1000

    with monkeypatch.context() as patch:
        patch.setattr("pressroom.compress.intermediates.shutil.disk_usage", lambda _: Little)
        with pytest.raises(StoreFullError, match="the files of the recipe's steps take"):
            carry(*STEPS)


def test_a_step_that_makes_what_is_no_number(carry: Carry, workspace: Workspace, plug: Any) -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Breaks(Step):
        stage: ClassVar[Stage] = Stage.TRAINING
        kind: ClassVar[str] = "fine-tune"

        def check(self, source: Weights) -> None:
            assert source.tensors

        def run(self, source: Weights, target: Path, job: Job) -> Report:
            rows = source.rows("blk.0.attn_q.weight").copy()
            rows[3, 3] = np.nan
            tensor = source.tensor("blk.0.attn_q.weight")
            tensors: dict[str, str | New] = {name: name for name in source.tensors}
            tensors[tensor.name] = New(New.of(rows[:1] * 0, tensor).format, tensor.shape, rows.tobytes())
            rebuild(target, source, tensors)
            return Report()

    plug(Breaks)
    with pytest.raises(RecipeError, match=r"breaks made numbers that are infinite or none, in blk\.0\.attn_q\.weight$"):
        carry({"method": "breaks"}, {"to": "q8_0"})
    assert [one.name for one in Registry(workspace).list()] == ["tiny"]
    assert not list((workspace.dir / "compress").rglob("*.gguf"))


def test_what_cannot_work_is_said_before_the_work(
    workspace: Workspace, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done before it was known that it cannot be done")

    monkeypatch.setattr(drop_layers.Backend, "run", never)
    monkeypatch.setattr("pressroom.compress.calibrate.calibrate", never)

    def says(*steps: dict[str, Any]) -> str:
        with pytest.raises(RecipeError) as raised:
            compress(workspace, version, parse({"step": list(steps)}), name="small", text=TEXT)
        return raised.value.message

    assert "no layers 9" in says({"method": "drop-layers", "layers": [9]}, STEPS[2])
    # The third layer is there, but not behind the first step.
    last = {"method": "prune-weights", "ratio": 0.5, "targets": r"blk\.3\..*"}
    assert "no linear layer is meant" in says(STEPS[0], last)
    assert "blocks of 256" in says(STEPS[0], {"to": "q4_k", "targets": r"blk\..*"})
    narrow = {"method": "prune-width", "feed_forward": 0.8, "multiple": 1}
    assert "rows of 102" in says(narrow, {"to": "q4_0", "targets": r"blk\..*ffn_down.*"})
    assert "step 3 (nothing)" in says(STEPS[0], STEPS[1], {"to": "q8_0", "targets": "nothing"})


def test_a_step_that_cannot_say_what_comes_of_it(carry: Carry, path_of: PathOf, plug: Any) -> None:
    """What is behind it is checked when its turn comes."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Adds(Step):
        stage: ClassVar[Stage] = Stage.STRUCTURE
        kind: ClassVar[str] = "pruned"

        @property
        def calibrates(self) -> bool:
            return False

        def outline(self, source: Weights) -> Outline | None:
            return None

        def check(self, source: Weights) -> None:
            assert source.tensors

        def run(self, source: Weights, target: Path, job: Job) -> Report:
            added = New.of(np.ones((64, 64), np.float32))
            rebuild(target, source, {**{name: name for name in source.tensors}, "blk.0.attn_qkv.weight": added})
            return Report(figures={"added": (1, "", "tensors")})

    plug(Adds)
    made = carry({"method": "breaks"}, {"to": "bf16", "targets": ".*attn_qkv.*"})
    with open_weights(path_of(made)) as found:
        assert found.tensors["blk.0.attn_qkv.weight"].type == "BF16"
    with pytest.raises(RecipeError, match="no whole blocks"):
        carry({"method": "breaks"}, {"to": "q4_k", "targets": ".*attn_qkv.*", "rounding": "nearest"})
