"""A tiny model, steps run on it, and whole recipes carried out on it in a workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.compress import Made, compress, parse
from pressroom.compress.calibrate import Calibration, calibrate
from pressroom.compress.steps import Report, step
from pressroom.compress.weights import Weights, open_weights
from pressroom.kernel import Workspace
from pressroom.registry import Registry, Version, pull
from tests.compress.weights.conftest import smollm2
from tests.compress.weights.gguf_files import tiny

__all__ = ["smollm2"]

TEXT = "the press prints what the compositor sets, letter by letter, line by line, page by page. " * 20

Carry = Callable[..., Made]
PathOf = Callable[[Made], Path]
Run = Callable[..., tuple[Report, Path]]


class Job:
    """What a step is given by the one who carries it out."""

    def __init__(self, origin: Path, folder: Path, kept: Path) -> None:
        self.origin, self.folder, self._kept = origin, folder, kept
        self.text, self.tokens, self.seed, self.threads = TEXT, 512, 0, 1
        self.said: list[str] = []

    def calibration(self, source: Weights, *, hessians: bool) -> Calibration:
        return calibrate(source.path, TEXT, tokens=512, folder=self._kept, hessians=hessians, threads=1)

    def progress(self, what: str, done: int, total: int, unit: str) -> None:
        assert 0 <= done <= total

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where calibrations are kept: the tiny model's is made once."""
    return tmp_path_factory.mktemp("calibrations")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny(layers=4).write(tmp_path / "tiny.gguf")


@pytest.fixture
def run(model: Path, tmp_path: Path, kept: Path) -> Run:
    """Run one step on the tiny model, or on `source`: what it reports, and the file."""

    def out(method: str, *, source: Path = model, **options: Any) -> tuple[Report, Path]:
        found = step(method, options)
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        target = tmp_path / f"made-{len(list(tmp_path.iterdir()))}.gguf"
        with open_weights(source) as opened:
            found.check(opened)
            return found.run(opened, target, Job(source, folder, kept)), target

    return out


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "work").mkdir()
    with Workspace.open(tmp_path / "work") as opened:
        yield opened


@pytest.fixture
def version(workspace: Workspace, model: Path) -> Version:
    return pull(workspace, str(model), name="tiny")


@pytest.fixture
def carry(workspace: Workspace, version: Version) -> Carry:
    """Carry out the steps, each a table, on the tiny model."""

    def out(*steps: dict[str, Any], name: str = "small", **more: Any) -> Made:
        recipe = parse({"calibration": {"tokens": 512}, "step": list(steps), **more})
        return compress(workspace, version, recipe, name=name, text=TEXT)

    return out


@pytest.fixture
def path_of(workspace: Workspace) -> PathOf:
    """The file of what was made."""
    return lambda made: Registry(workspace).materialise(made.version)
