"""Prune weights while the model trains, a few more every few steps, so that those that stay make up for them.

The smallest weights of each matrix go, on a schedule that takes most of them early and the last ones slowly (Zhu and
Gupta, arXiv 1710.01878). No engine is faster for such zeros: what they earn is a file that compresses better.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pressroom.compress import models
from pressroom.compress.steps.base import Outline, Report, Stage
from pressroom.compress.training import TrainingStep, floating, pattern_wrong, told
from pressroom.compress.weights import Role

if TYPE_CHECKING:
    from pressroom.compress.models import Shape
    from pressroom.compress.steps.base import Job
    from pressroom.compress.weights import Tensor, Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(TrainingStep):
    """Magnitude pruning on a schedule."""

    stage: ClassVar[Stage] = Stage.SPARSITY
    kind: ClassVar[str] = "pruned"
    options: ClassVar[Mapping[str, str]] = {
        **TrainingStep.options,
        "ratio": "the share of the weights of every matrix that is zero in the end, above 0 and below 1",
        "targets": "a regular expression for the whole names of the linear layers that are pruned",
        "start": "the share of the steps after which pruning begins",
        "end": "the share of the steps after which all are gone that are to go; the rest of the steps heals",
        "every": "steps between two rounds of pruning",
    }

    ratio: float
    targets: str = ".*"
    start: float = 0.0
    end: float = 0.6
    every: int = 5

    def wrong(self) -> list[str]:
        """What is wrong with the options."""
        found = TrainingStep.wrong(self) + pattern_wrong("targets", self.targets)
        if not 0 < self.ratio < 1:
            found.append(f"ratio = {self.ratio:g} is not above 0 and below 1")
        if not 0 <= self.start < self.end <= 1:
            found.append(f"start = {self.start!r} and end = {self.end!r} are not 0 <= start < end <= 1")
        if self.every < 1:
            found.append(f"every = {self.every!r} is below 1")
        elif self.steps <= self._last:
            found.append(f"steps = {self.steps} leave no round of pruning every {self.every}: take more steps")
        elif self.checkpoint % self.every:
            found.append(
                f"checkpoint = {self.checkpoint} is no multiple of every = {self.every}: a run that is taken up begins "
                "with a round of pruning"
            )
        return found

    @property
    def _last(self) -> int:
        """The step before which the last weights go."""
        return max(self.every, int(self.end * (self.steps - 1)) // self.every * self.every)

    def outline(self, source: Weights) -> Outline | None:
        """What is pruned will be in floating point, as what is trained."""
        like = TrainingStep.outline(self, source)
        assert like is not None
        pruned = {one.name: (floating(one), one.shape) for one in self._pruned(source)}
        return Outline(tensors={**like.tensors, **pruned})

    def _pruned(self, source: Weights) -> list[Tensor]:
        return [one for one in source.of_role(Role.LINEAR) if re.fullmatch(self.targets, one.name)]

    def _problems(self, source: Weights, shape: Shape) -> list[str]:
        return [] if self._pruned(source) else [f"targets = {self.targets!r} means none of the linear layers"]

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        """Train and write."""
        from pressroom.compress.training import Masks, measured, settled, shares, train, zeros

        names = [one.name for one in self._pruned(source)]
        with settled(job.seed, job.threads):
            bridge = models.load(source, device=self.device)
            parameters = self.chosen(bridge)
            _, windows = self.windows(source, job)
            teacher = self.teacher(job, bridge)
            before = measured(bridge.model, windows.held, teacher=teacher)
            kept = self.masks(bridge, source)
            pruned = {name: bridge.parameter(name) for name in names}
            masks = Masks(pruned)
            first = int(self.start * self._last)

            def prune(step: int) -> None:
                if step % self.every == 0:
                    masks.prune(shares(step, start=first, end=self._last, share=self.ratio))

            def hold(step: int) -> None:
                kept.apply()
                masks.apply()

            trained = train(
                parameters,
                self.objective(bridge.model, teacher),
                windows,
                self.course(job, bridge),
                folder=job.folder,
                key=self.key(source, job),
                before=prune,
                after=hold,
                progress=lambda done, total: job.progress("pruning and training", done, total, "steps"),
            )
            models.save(target, source, bridge.store())
            after = self.remeasured(target, windows, teacher)
            figures = told(job, windows, trained, before, after)
            figures["zeros"] = (zeros(pruned), "share", f"of the weights of {len(names)} matrices")
            tensors = [{"name": name, "zeros": zeros({name: one})} for name, one in pruned.items()]
        return Report(figures=figures, tensors=tensors)
