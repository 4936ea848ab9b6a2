"""Train low-rank adapters beside the frozen weights (LoRA), and merge them into these.

To adapt a model to a text, or to recover from pruning with little memory: with `alpha` above 0 it learns from the file
that the recipe began with. With `base` the frozen weights are held in a number format of few bits meanwhile (QLoRA).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pressroom.compress import models
from pressroom.compress.numbers import number_format
from pressroom.compress.steps.base import Report
from pressroom.compress.training import TrainingStep, told
from pressroom.compress.weights import Role
from pressroom.kernel import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    from pressroom.compress.models import Shape
    from pressroom.compress.steps.base import Job
    from pressroom.compress.weights import Tensor, Weights

_LIBRARIES = ("peft", "accelerate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(TrainingStep):
    """LoRA and QLoRA."""

    kind: ClassVar[str] = "fine-tune"
    options: ClassVar[Mapping[str, str]] = {
        **TrainingStep.options,
        "train": "a regular expression for the whole names of the linear layers that get adapters",
        "rank": "of the adapters",
        "scale": "what the adapters are multiplied by, times the rank (0: twice the rank)",
        "base": "the number format that these layers' frozen weights are held in: nf4, q4_0 ('': float32)",
        "adapter": "a directory that is not there yet, for the adapter itself as PEFT reads it ('': none)",
    }

    alpha: float = 0.0
    rate: float = 2e-4
    rank: int = 16
    scale: float = 0.0
    base: str = ""
    adapter: str = ""

    def wrong(self) -> list[str]:
        """What is wrong with the options."""
        found = TrainingStep.wrong(self)
        if not 1 <= self.rank <= 4096:
            found.append(f"rank = {self.rank!r} is not from 1 to 4,096")
        if not 0 <= self.scale < 1e6:
            found.append(f"scale = {self.scale!r} is not 0 or more")
        if self.base:
            try:
                number_format(self.base)
            except RecipeError as error:
                found.append(f"base: {error.message}. {error.hint}")
        return found

    def check(self, source: Weights) -> None:
        """Raises RecipeError and MissingDependencyError."""
        for library in _LIBRARIES:
            if importlib.util.find_spec(library) is None:
                raise MissingDependencyError(
                    f"adapters need the library {library!r}, which is not installed",
                    hint="Install it: pip install 'pressroom[compress]'",
                    missing=library,
                )
        TrainingStep.check(self, source)

    def _adapted(self, source: Weights) -> list[Tensor]:
        return [one for one in source.of_role(Role.LINEAR) if re.fullmatch(self.train, one.name)]

    def _problems(self, source: Weights, shape: Shape) -> list[str]:
        adapted = self._adapted(source)
        problems = [] if adapted else [f"train = {self.train!r} means none of the linear layers"]
        small = [one.name for one in adapted if self.rank >= min(one.rows, one.columns)]
        if small:
            problems.append(f"rank = {self.rank} is not low for {len(small)} matrices, such as {small[0]}")
        if self.base:
            form = number_format(self.base)
            bad = [one.name for one in adapted if not form.fits(one.columns)]
            if bad:
                problems.append(
                    f"base = {self.base!r}: the rows of {len(bad)} matrices are no whole blocks of {form.block}, such "
                    f"as {bad[0]}"
                )
        if self.adapter and Path(self.adapter).exists():
            problems.append(f"adapter: {self.adapter} is there already")
        return problems

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        """Train, merge and write."""
        from pressroom.compress.training import Adapters, measured, pack, settled, train

        names = tuple(one.name for one in self._adapted(source))
        with settled(job.seed, job.threads):
            bridge = models.load(source, device=self.device)
            _, windows = self.windows(source, job)
            teacher = self.teacher(job, bridge)
            before = measured(bridge.model, windows.held, teacher=teacher)
            masks = self.masks(bridge, source)
            bridge.model.requires_grad_(False)
            if self.base:
                pack(bridge, dict.fromkeys(names, number_format(self.base)))
            adapters = Adapters(bridge, names, rank=self.rank, scale=self.scale or 2.0 * self.rank)
            trained = train(
                adapters.parameters,
                self.objective(adapters.model, teacher),
                windows,
                self.course(job, bridge),
                folder=job.folder,
                key=self.key(source, job),
                progress=lambda done, total: job.progress("adapting", done, total, "steps"),
            )
            count = sum(one.numel() for one in adapters.parameters)
            if self.adapter:
                adapters.save(Path(self.adapter))
            adapters.merge()
            masks.on({path: bridge.model.get_parameter(path) for path in masks.names}).apply()
            models.save(target, source, bridge.store())
            after = self.remeasured(target, windows, teacher)
            figures = told(job, windows, trained, before, after)
        figures["adapter_weights"] = (count, "weights", f"of rank {self.rank} on {len(names)} matrices")
        notes = []
        if self.base:
            notes.append(f"the adapters were trained on weights rounded to {self.base}, and are merged into these")
        if masks.names:
            notes.append(f"{len(masks.names)} matrices had zeros, which were put back after merging")
        return Report(figures=figures, notes=notes)
