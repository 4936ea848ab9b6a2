"""Let the teacher write a data set, and tune the student on it (Kim and Rush, arXiv 1606.07947).

Prompts are beginnings of the text's windows. What the teacher goes on with is cleaned (too short, control tokens, going
in circles) and kept once; the student learns the answers, not the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pressroom.compress import models
from pressroom.compress.steps.base import Report
from pressroom.compress.training import TeachingStep, told
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pressroom.compress.steps.base import Job
    from pressroom.compress.training import Windows
    from pressroom.compress.weights import Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(TeachingStep):
    """Distillation from the teacher's texts."""

    options: ClassVar[Mapping[str, str]] = {
        **TeachingStep.options,
        "sequences": "answers that the teacher writes",
        "prompt": "tokens that it is given of the text for each",
        "answer": "tokens that an answer may have",
        "sampling": "the temperature at which the teacher writes",
        "top_p": "the share of the probability that it draws from",
    }

    alpha: float = 0.0
    sequences: int = 256
    prompt: int = 32
    answer: int = 96
    sampling: float = 0.8
    top_p: float = 0.95

    def wrong(self) -> list[str]:
        """What is wrong with the options."""
        found = TeachingStep.wrong(self)
        for name, high in (("sequences", 1_000_000), ("prompt", self.window), ("answer", 4096)):
            if not 1 <= getattr(self, name) <= high:
                found.append(f"{name} = {getattr(self, name)!r} is not from 1 to {high:,}")
        if not 0 < self.sampling <= 10:
            found.append(f"sampling = {self.sampling!r} is not above 0 and up to 10")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p = {self.top_p!r} is not above 0 and up to 1")
        return found

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        """Write the data set, train, write the file."""
        from pressroom.compress.training import Sampling, Windows, cleaned, measured, rows_of, settled, train, written

        sampling = Sampling(count=self.sequences, tokens=self.answer, temperature=self.sampling, top_p=self.top_p)
        with settled(job.seed, job.threads), self.taught(source, job) as (file, bridge, masks):
            vocabulary, windows = self.windows(source, job)
            teacher = self.origin(job, bridge)
            key = self.key(file, job)
            found = written(
                teacher,
                self._prompts(windows, vocabulary.bos, job.seed),
                vocabulary,
                sampling,
                seed=job.seed,
                folder=job.folder,
                key=key,
                progress=lambda done, total: job.progress("the teacher writes", done, total, "answers"),
            )
            kept, dropped = cleaned(found, vocabulary, least=sampling.least)
            said = ", ".join(f"{count} {name}" for name, count in sorted(dropped.items())) or "none dropped"
            if not kept:
                raise RecipeError(
                    f"none of the {len(found)} answers of the teacher is fit to learn from: {said}",
                    hint="Ask for longer answers, or another temperature of sampling.",
                    dropped=dropped,
                )
            before = measured(bridge.model, windows.held, teacher=teacher)
            answers = Windows(rows_of(kept), windows.held)
            trained = train(
                self.chosen(bridge),
                self.objective(bridge.model, teacher),
                answers,
                self.course(job, bridge),
                folder=job.folder,
                key=key,
                after=lambda _: masks.apply(),
                progress=lambda done, total: job.progress("distilling", done, total, "steps"),
            )
            models.save(target, file, bridge.store(), floats=self.student == "scratch")
            after = self.remeasured(target, windows, teacher)
            figures = told(job, windows, trained, before, after)
        figures["teacher_answers"] = (len(found), "answers", f"{self.answer} tokens at most")
        figures["teacher_answers_kept"] = (len(kept), "answers", said)
        return Report(figures=figures, notes=[f"{len(kept)} of {len(found)} answers were learnt from ({said})"])

    def _prompts(self, windows: Windows, bos: int | None, seed: int) -> NDArray[np.int64]:
        """Beginnings of windows; where there are fewer windows, also later parts of them."""
        import numpy as np

        random = np.random.default_rng([seed, 1])
        every = windows.train
        body = every if bos is None else every[:, 1:]
        size = min(self.prompt, body.shape[1])
        places = [(row, 0) for row in random.permutation(len(body)).tolist()][: self.sequences]
        while len(places) < self.sequences:
            places.append((int(random.integers(len(body))), int(random.integers(body.shape[1] - size + 1))))
        found = np.stack([body[row, at : at + size] for row, at in places])
        return found if bos is None else np.concatenate([np.full((len(found), 1), bos), found], axis=1)
