"""Train with weights rounded to a number format, so that they learn to bear it, and write them in it.

What the forward pass sees are the format's own blocks with the scales that its search finds; what is written are the
same values in the same bytes, so that no rounding comes after it. Against plain rounding it pays most at 2 and 3 bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pressroom.compress import models
from pressroom.compress.numbers import number_format
from pressroom.compress.steps.base import Outline, Report, Stage
from pressroom.compress.training import TrainingStep, pattern_wrong, told
from pressroom.compress.weights import New, Role
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from pressroom.compress.models import Shape
    from pressroom.compress.steps.base import Job
    from pressroom.compress.weights import Tensor, Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(TrainingStep):
    """Quantisation-aware training."""

    # It writes the format itself: a step that trains or prunes behind it would undo that.
    stage: ClassVar[Stage] = Stage.NUMBERS
    kind: ClassVar[str] = "quantised"
    options: ClassVar[Mapping[str, str]] = {
        **TrainingStep.options,
        "to": "the number format: q4_0, q2_k, tq2_0 and so on",
        "targets": "a regular expression for the whole names of the linear layers that are rounded",
        "refresh": "steps between two searches for the scales",
    }

    to: str
    targets: str = ".*"
    rate: float = 1e-4
    refresh: int = 25

    def wrong(self) -> list[str]:
        """What is wrong with the options."""
        found = TrainingStep.wrong(self) + pattern_wrong("targets", self.targets)
        if self.refresh < 1:
            found.append(f"refresh = {self.refresh!r} is below 1")
        elif self.checkpoint % self.refresh:
            found.append(
                f"checkpoint = {self.checkpoint} is no multiple of refresh = {self.refresh}: a run that is taken up "
                "begins with a search for the scales"
            )
        try:
            form = number_format(self.to)
        except RecipeError as error:
            found.append(f"to: {error.message}. {error.hint}")
        else:
            if form.ggml is None or form.block < 2:
                found.append(f"to = {self.to!r} is not a format of GGUF with blocks, such as q4_0, q2_k or tq2_0")
        return found

    def outline(self, source: Weights) -> Outline | None:
        """The rounded tensors are in their format."""
        like = TrainingStep.outline(self, source)
        assert like is not None
        rounded = {one.name: (self.to.lower(), one.shape) for one in self._rounded(source)}
        return Outline(tensors={**like.tensors, **rounded})

    def _rounded(self, source: Weights) -> list[Tensor]:
        return [one for one in source.of_role(Role.LINEAR) if re.fullmatch(self.targets, one.name)]

    def _problems(self, source: Weights, shape: Shape) -> list[str]:
        form, found = number_format(self.to), self._rounded(source)
        if not found:
            return [f"targets = {self.targets!r} means none of the linear layers"]
        bad = [f"{one.name} {list(one.shape)}" for one in found if not form.fits(one.columns)]
        if not bad:
            return []
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        return [f"rows of {len(bad)} tensors are no whole blocks of {form.block}, as {form.name} has them: {shown}"]

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        """Train and write."""
        from pressroom.compress.training import Grids, measured, settled, train

        form = number_format(self.to)
        names = [one.name for one in self._rounded(source)]
        with settled(job.seed, job.threads):
            bridge = models.load(source, device=self.device)
            parameters = self.chosen(bridge)
            _, windows = self.windows(source, job)
            teacher = self.teacher(job, bridge)
            masks = self.masks(bridge, source)
            grids = Grids({name: bridge.module(name) for name in names}, form)
            grids.attach()
            before = measured(bridge.model, windows.held, teacher=teacher)

            def fresh(step: int) -> None:
                if step % self.refresh == 0:
                    grids.refresh()

            trained = train(
                parameters,
                self.objective(bridge.model, teacher),
                windows,
                self.course(job, bridge),
                folder=job.folder,
                key=self.key(source, job),
                before=fresh,
                after=lambda _: masks.apply(),
                progress=lambda done, total: job.progress("training on the grid", done, total, "steps"),
            )
            packed = {name: bridge.filed(name, grids.packed(name)) for name in names}
            grids.detach()
            rounded = {name: New(form, source.tensor(name).shape, data) for name, data in packed.items()}
            models.save(target, source, {**bridge.store(), **rounded})
            after = self.remeasured(target, windows, teacher)
        figures = told(job, windows, trained, before, after)
        tensors = [{"name": name, "format": form.name, "bytes": data.nbytes} for name, data in packed.items()]
        return Report(figures=figures, tensors=tensors)
