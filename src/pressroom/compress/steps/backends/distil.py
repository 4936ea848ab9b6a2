"""Teach a student to give the probabilities of its teacher, the file that the recipe began with.

The soft labels are the teacher's at a temperature above 1, the hard ones the text's at 1; `alpha` mixes them (Hinton et
al., arXiv 1503.02531). The student is what the steps before left, or begins with untrained weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pressroom.compress import models
from pressroom.compress.steps.base import Report
from pressroom.compress.training import TeachingStep, told

if TYPE_CHECKING:
    from pressroom.compress.steps.base import Job
    from pressroom.compress.weights import Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(TeachingStep):
    """Distillation from logits."""

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        """Train and write."""
        from pressroom.compress.training import measured, settled, train

        with settled(job.seed, job.threads), self.taught(source, job) as (file, bridge, masks):
            _, windows = self.windows(source, job)
            teacher = self.teacher(job, bridge)
            before = measured(bridge.model, windows.held, teacher=teacher)
            trained = train(
                self.chosen(bridge),
                self.objective(bridge.model, teacher),
                windows,
                self.course(job, bridge),
                folder=job.folder,
                key=self.key(file, job),
                after=lambda _: masks.apply(),
                progress=lambda done, total: job.progress("distilling", done, total, "steps"),
            )
            models.save(target, file, bridge.store(), floats=self.student == "scratch")
            after = self.remeasured(target, windows, teacher)
            figures = told(job, windows, trained, before, after)
        notes = [f"{len(masks.names)} matrices kept their zeros"] if masks.names else []
        return Report(figures=figures, notes=notes)
