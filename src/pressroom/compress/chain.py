"""The parts of a recipe one after the other, each from the file that the one before it wrote."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.compress.foreseeing import naming, rounding_plan
from pressroom.compress.intermediates import Done, Intermediates, linked, must_be_numbers
from pressroom.compress.recipe import Recipe
from pressroom.compress.steps.base import Report, Step
from pressroom.kernel import Note, Progress, Workspace, this_machine
from pressroom.registry.base import KINDS, Figure, Version

if TYPE_CHECKING:
    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.tensors import Kept, TensorReport
    from pressroom.compress.weights import Plan, Planned, Weights

#: The figure that is measured again on the last file: a format may have no zero, or make more.
_SPARSITY = "sparsity"


class Chain:
    """Carries out a recipe; afterwards says what was done."""

    def __init__(
        self,
        workspace: Workspace,
        version: Version,
        origin: Path,
        recipe: Recipe,
        between: Intermediates,
        *,
        text: str,
        folder: Path,
        kept: Kept | None = None,
    ) -> None:
        self.workspace, self.version, self.recipe = workspace, version, recipe
        self.origin, self.text, self.folder = origin, text, folder
        self._between = between
        self._kept = kept
        #: The steps that were carried out, rounding left out where it is the last.
        self.done: list[Done] = []
        #: What the last pass of rounding did to each tensor.
        self.reports: list[TensorReport] = []
        self.calibration_digest = ""
        self._sparsity: Figure | None = None
        self._calibrated: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """What the registry calls what comes of it."""
        last = self.recipe.parts[-1]
        kind = "quantised" if isinstance(last, Recipe) else last.kind
        assert kind in KINDS, f"the registry knows no {kind!r}"
        return kind

    def carry_out(self, sizes: tuple[int, ...], target: Path) -> Plan:
        """Write the file that the recipe makes to `target`; what it is. Raises as `compress`."""
        parts = self.recipe.parts
        if len(parts) > 1 or not isinstance(parts[0], Recipe):
            finished, self.done = self._between.found()
            self._between.must_have_room(sizes, finished)
        else:
            finished = 0
        plan: Plan | None = None
        for number, part in enumerate(parts):
            if number < finished:
                continue
            with self._opened(number) as source:
                if isinstance(part, Recipe):
                    last = number == len(parts) - 1
                    plan = self._round(source, part, number, target if last else self._between.weights(number))
                    if last:
                        continue
                    report = Report(tensors=[dataclasses.asdict(one) for one in self.reports])
                    self.done.append(Done(method="quantise", report=report, seconds=0.0))
                else:
                    self.done.append(self._step(source, part, number))
            self._between.finish(number, self.done)
        return self._last(plan, target)

    def figures(self) -> list[Figure]:
        """What the steps reported, the last word of each."""
        now = time.time()
        found = {
            name: Figure(name=name, value=value, unit=unit, how=how, at=now)
            for one in self.done
            for name, (value, unit, how) in one.report.figures.items()
        }
        if self._sparsity is not None:
            found[_SPARSITY] = self._sparsity
        return list(found.values())

    @contextmanager
    def _opened(self, number: int) -> Iterator[Weights]:
        """The file that part `number` begins with."""
        from pressroom.compress.weights import open_weights

        path = self.origin if number == 0 else self._between.weights(number - 1)
        called = f"{self.version.name}:{self.version.number}"
        if number:
            called += f" behind {self._method(number - 1)}"
        with open_weights(path, called=called) as source:
            yield source

    def _method(self, number: int) -> str:
        part = self.recipe.parts[number]
        return "quantise" if isinstance(part, Recipe) else part.method

    def _step(self, source: Weights, step: Step, number: int) -> Done:
        from pressroom.compress.weights import open_weights

        began = time.monotonic()
        target = self._between.weights(number)
        job = _Job(self, number)
        self.workspace.events.emit(Progress(step.method, 0, 1, "steps"))
        with naming(step):
            step.check(source)
            report = step.run(source, target, job)
            with open_weights(target, called=f"the file of {step.method}") as written:
                try:
                    must_be_numbers(written, step.method)
                except BaseException:
                    target.unlink(missing_ok=True)
                    raise
        for note in report.notes:
            job.note(note)
        self.workspace.events.emit(Progress(step.method, 1, 1, "steps"))
        return Done(method=step.method, report=report, seconds=time.monotonic() - began)

    def _round(self, source: Weights, recipe: Recipe, number: int, target: Path) -> Plan:
        from pressroom.compress.tensors import Rounding
        from pressroom.compress.weights import Changed, write

        plan = rounding_plan(source, recipe, must_change=len(self.recipe.parts) == 1)
        calibration = None
        if recipe.calibrates and plan.changed:
            second_order = any(recipe.rounding_of(one.tensor.name) == "gptq" for one in plan.changed)
            calibration = self.calibrated(source, number, hessians=second_order)
            self.calibration_digest = calibration.text_digest
        work = Rounding(self.workspace, source, plan, recipe, calibration, None if number else self._kept)
        changed = {one.tensor.name: Changed(_format(one), work.of(one)) for one in plan.changed}
        if len(self.recipe.parts) > 1:
            self._between.work(number)
        write(target, source, changed)
        work.compare(target)
        self.reports = work.reports
        return plan

    def calibrated(self, source: Weights, number: int, *, hessians: bool) -> Calibration:
        """What enters each layer of a file; that of the origin stays in the workspace, others as long as the file."""
        from pressroom.compress.calibrate import calibrate

        events = self.workspace.events
        own = source.path != self.origin
        if own and self._calibrated != source.identity:
            for old in self._between.work(number).glob("*.safetensors"):  # hundreds of MB, of a file that is done with
                old.unlink(missing_ok=True)
            self._calibrated = source.identity
        return calibrate(
            source.path,
            self.text,
            tokens=self.recipe.calibration.tokens,
            folder=self._between.work(number) if own else self.folder,
            hessians=hessians,
            threads=self.workspace.settings.engines.threads,
            model_digest="" if own else self.version.digest,
            on_progress=lambda done, total: events.emit(Progress("calibrating", done, total, "windows")),
            on_warning=lambda warning: events.emit(Note(warning)),
        )

    def _last(self, plan: Plan | None, target: Path) -> Plan:
        from pressroom.compress.weights import check, open_weights

        if not isinstance(self.recipe.parts[-1], Recipe):
            linked(self._between.weights(len(self.recipe.parts) - 1), target)
        with open_weights(target) as written:
            if plan is None:
                plan = check(written, {})
            if any(_SPARSITY in one.report.figures for one in self.done):
                self._sparsity = _measured(written)
        return dataclasses.replace(plan, before=self.origin.stat().st_size)


class _Job:
    """What a step may use; see `steps.base.Job`."""

    def __init__(self, chain: Chain, number: int) -> None:
        self._chain, self._number = chain, number
        self.origin = chain.origin
        self.text = chain.text
        self.tokens = chain.recipe.calibration.tokens
        self.seed = chain.recipe.seed
        self.threads = chain.workspace.settings.engines.threads or this_machine().physical_cores
        self.folder = chain._between.work(number)

    def calibration(self, source: Weights, *, hessians: bool) -> Calibration:
        return self._chain.calibrated(source, self._number, hessians=hessians)

    def progress(self, what: str, done: int, total: int, unit: str) -> None:
        self._chain.workspace.events.emit(Progress(what, done, total, unit))

    def note(self, text: str) -> None:
        self._chain.workspace.events.emit(Note(text))


def _format(one: Planned) -> Any:
    assert one.format is not None
    return one.format


def _measured(written: Weights) -> Figure:
    """The share of zeros among the weights of the linear layers of a file."""
    import numpy as np

    from pressroom.compress.weights import Role

    zeros = weights = 0
    for tensor in written.of_role(Role.LINEAR, Role.EXPERTS):
        rows = written.rows(tensor.name)
        zeros += rows.size - int(np.count_nonzero(rows))
        weights += rows.size
    return Figure(
        name=_SPARSITY,
        value=round(zeros / max(1, weights), 6),
        how="share of the linear layers' weights that are 0, counted in the file that was written",
        at=time.time(),
    )
