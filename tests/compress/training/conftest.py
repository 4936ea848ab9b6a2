"""A tiny model that knows a text, and a way to run a step on it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pressroom.compress.calibrate import Calibration
from pressroom.compress.models import load, save
from pressroom.compress.steps import Report, Step, step
from pressroom.compress.training import Course, Measured, cut, measured, settled, tokenised, train
from pressroom.compress.training._measuring import logits_of
from pressroom.compress.training._objective import Mix
from pressroom.compress.weights import Weights, open_weights
from tests.compress.weights.conftest import smollm2
from tests.compress.weights.gguf_files import tiny

__all__ = ["smollm2"]

Run = Callable[..., tuple[Report, Path]]


def sentences(count: int, seed: int = 1) -> str:
    """Text with enough order to be learnt, and too much choice to be learnt by heart."""
    draw = random.Random(seed)
    who = ["the printer", "the compositor", "a reader", "the old press", "my neighbour", "every apprentice"]
    does = ["sets", "reads", "breaks", "carries", "forgets", "prints", "likes"]
    what = ["a page", "the letters", "two lines", "some paper", "an almanac", "the proofs"]
    when = ["in the morning", "at noon", "by hand", "without haste", "every day"]
    return " ".join(
        f"{draw.choice(who)} {draw.choice(does)} {draw.choice(what)} {draw.choice(when)}." for _ in range(count)
    )


TEXT = sentences(400)


class Job:
    """What a step is given by the one who carries it out."""

    def __init__(self, origin: Path, folder: Path, *, stop_at: int = -1) -> None:
        self.origin, self.folder, self.text, self.tokens, self.seed, self.threads = origin, folder, TEXT, 512, 7, 1
        self.said: list[str] = []
        self.done: list[int] = []
        self._stop_at = stop_at

    def calibration(self, source: Weights, *, hessians: bool) -> Calibration:
        raise AssertionError("training does not calibrate")

    def progress(self, what: str, done: int, total: int, unit: str) -> None:
        assert 0 <= done <= total
        self.done.append(done)
        if unit == "steps" and done == self._stop_at:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, 256 wide, that was trained on the text for some seconds."""
    folder = tmp_path_factory.mktemp("teacher")
    path = tiny(hidden=256, feed_forward=256, layers=2, tied=True).write(folder / "untrained.gguf")
    vocabulary, tokens = tokenised(path, TEXT, most=20_000)
    windows = cut(tokens, vocabulary, window=64)
    with open_weights(path) as source, settled(1, 1):
        bridge = load(source)
        for parameter in bridge.model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(0.3)

        def loss(rows: Any) -> Any:
            return Mix(alpha=0).loss(logits_of(bridge.model, rows), None, rows)

        course = Course(steps=60, batch=8, rate=3e-3, together=8, checkpoint=0)
        train(list(bridge.model.parameters()), loss, windows, course)
        save(folder / "teacher.gguf", source, bridge.store())
    return folder / "teacher.gguf"


@pytest.fixture
def run(teacher: Path, tmp_path: Path) -> Run:
    """Run one step on the teacher, or on `source`: what it reports, and the file."""

    def out(method: str, *, source: Path = teacher, job: Job | None = None, **options: Any) -> tuple[Report, Path]:
        found: Step = step(method, {"window": 64, "batch": 4, "precision": "float32", **options})
        target = tmp_path / f"made-{len(list(tmp_path.iterdir()))}.gguf"
        with open_weights(source) as opened:
            found.check(opened)
            return found.run(opened, target, job or Job(teacher, tmp_path)), target

    return out


@pytest.fixture
def narrowed(teacher: Path, tmp_path: Path) -> Path:
    """The teacher with half of its second layer's weights at zero, where they are smallest."""
    import numpy as np

    with open_weights(teacher) as source:
        changed = {}
        for tensor in source.linears:
            values = source.rows(tensor.name).copy()
            values[np.abs(values) < np.quantile(np.abs(values), 0.7)] = 0
            changed[tensor.name] = values
        save(tmp_path / "pruned.gguf", source, changed)
    return tmp_path / "pruned.gguf"


def unread(path: Path, teacher: Path) -> Measured:
    """How a file does on text that nobody was trained on."""
    with open_weights(path) as one, open_weights(teacher) as other:
        vocabulary, tokens = tokenised(teacher, sentences(40, seed=2), most=4000)
        windows = cut(tokens, vocabulary, window=64)
        return measured(load(one).model, windows.train, teacher=load(other).model)


def figure(report: Report, name: str) -> float:
    return float(report.figures[name][0])
