"""What all steps that train have in common: their options, their text, their figures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pressroom.compress import models
from pressroom.compress.steps.base import Outline, Stage, Step
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from pressroom.compress.models import Bridge, Shape
    from pressroom.compress.steps.base import Job
    from pressroom.compress.training._loop import Course, Trained
    from pressroom.compress.training._masks import Masks
    from pressroom.compress.training._measuring import Measured
    from pressroom.compress.training._text import Vocabulary, Windows
    from pressroom.compress.weights import Tensor, Weights

    Figures = dict[str, tuple[float | int | str, str, str]]

PRECISIONS = ("auto", "float32", "bfloat16")
FLOATS = ("F32", "F16", "BF16")
_MOST_TEXT = 1 << 30
# As many as `cut` holds back at most.
_HELD = 8
# Logits that are computed at once: about ten arrays of so many float32 are held meanwhile.
_LOGITS = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStep(Step):
    """A step that trains. Subclasses say what they make small, and what they write."""

    stage: ClassVar[Stage] = Stage.TRAINING
    options: ClassVar[Mapping[str, str]] = {
        "steps": "steps of the optimiser",
        "batch": "windows of text a step",
        "window": "tokens of a window",
        "rate": "the highest learning rate",
        "warmup": "the share of the steps in which the rate rises",
        "decay": "AdamW's weight decay of matrices",
        "clip": "what the norm of the gradients is cut to",
        "alpha": "the share of the soft loss (the teacher's probabilities); the rest is the text's",
        "temperature": "what the logits of teacher and student are divided by for the soft loss",
        "train": "a regular expression for the whole names of the tensors that are trained",
        "text": "a file of plain text to train on ('': the calibration text)",
        "precision": "float32, bfloat16 for products of matrices, or auto: bfloat16 where the processor has it",
        "device": "where it is computed, as PyTorch names it: cpu, cuda",
        "keep_zeros": "a matrix in floating point of 1 % zeros or more was pruned, and keeps them",
        "checkpoint": "steps between two checkpoints, which a run after a kill goes on from (0: none)",
    }

    steps: int = 100
    batch: int = 4
    window: int = 256
    rate: float = 5e-5
    warmup: float = 0.1
    decay: float = 0.01
    clip: float = 1.0
    alpha: float = 0.9
    temperature: float = 2.0
    train: str = ".*"
    text: str = ""
    precision: str = "auto"
    device: str = "cpu"
    keep_zeros: bool = True
    checkpoint: int = 25

    @property
    def keeps(self) -> frozenset[Stage]:
        """The later stages whose work it does not destroy."""
        return frozenset({Stage.SPARSITY}) if self.keep_zeros else frozenset()

    @property
    def calibrates(self) -> bool:
        """Whether it looks at the calibration text."""
        return not self.text

    def wrong(self) -> list[str]:
        """What is wrong with the options."""
        found = []
        for name, low, high in (
            ("steps", 1, 10_000_000),
            ("batch", 1, 4096),
            ("window", 8, 1 << 15),
            ("checkpoint", 0, 1 << 30),
            ("warmup", 0.0, 1.0),
            ("decay", 0.0, 10.0),
            ("alpha", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                found.append(f"{name} = {value!r} is not from {low:,} to {high:,}")
        for name in ("rate", "clip", "temperature"):
            value = getattr(self, name)
            if not 0 < value < 1e6:
                found.append(f"{name} = {value!r} is not above 0")
        found += pattern_wrong("train", self.train)
        if self.precision not in PRECISIONS:
            found.append(f"precision = {self.precision!r} is none of {', '.join(PRECISIONS)}")
        if not re.fullmatch(r"cpu|cuda(:\d+)?|mps|xpu(:\d+)?", self.device):
            found.append(f"device = {self.device!r} is none of cpu, cuda, cuda:1, mps, xpu")
        return found

    def check(self, source: Weights) -> None:
        """Raises RecipeError and MissingDependencyError."""
        shape = models.check(source)
        problems = self._problems(source, shape)
        if self.text and not Path(self.text).is_file():
            problems.append(f"there is no text {self.text}")
        elif self.text and Path(self.text).stat().st_size > _MOST_TEXT:
            problems.append(f"{self.text} is over {_MOST_TEXT:,} bytes")
        if self.window > shape.context:
            problems.append(f"window = {self.window} is more than the {shape.context} tokens the model was made for")
        if not any(re.fullmatch(self.train, name) for name in shape.places):
            problems.append(f"train = {self.train!r} means none of the tensors")
        problems += device_problems(self.device)
        if problems:
            raise RecipeError(
                f"{source.called} cannot be trained like that: {'; '.join(problems)}",
                hint="docs/distil.md shows recipes that train.",
                problems=problems,
            )

    def outline(self, source: Weights) -> Outline | None:
        """What is trained will be in floating point."""
        return Outline(
            tensors={
                name: (floating(tensor), tensor.shape) if re.fullmatch(self.train, name) else name
                for name, tensor in source.tensors.items()
            }
        )

    def _problems(self, source: Weights, shape: Shape) -> list[str]:
        """What a kind of step has to say beyond that."""
        return []

    def course(self, job: Job, bridge: Bridge) -> Course:
        """How it is trained."""
        from pressroom.compress.training._loop import Course, pays_half

        half = self.precision == "bfloat16" or (self.precision == "auto" and pays_half(self.device))
        return Course(
            steps=self.steps,
            batch=self.batch,
            rate=self.rate,
            warmup=self.warmup,
            decay=self.decay,
            clip=self.clip,
            seed=job.seed,
            checkpoint=self.checkpoint,
            half=half,
            together=max(1, _LOGITS // (self.window * bridge.shape.vocabulary)),
        )

    def windows(self, source: Weights, job: Job) -> tuple[Vocabulary, Windows]:
        """The text in windows. Raises RecipeError where it is too short."""
        from pressroom.compress.training._text import cut, tokenised

        # What is held back is a tenth, and eight windows where the text has them.
        most = max(self.steps * self.batch + 2 * _HELD, 11 * _HELD) * self.window
        vocabulary, tokens = tokenised(source.path, self.words(job), most=most)
        found = cut(tokens[:most], vocabulary, window=self.window)
        if len(found.train) < self.batch:
            job.note(
                f"the text has {len(found.train)} windows of {self.window} tokens to train on, fewer than the "
                f"{self.batch} of one step: name a longer one"
            )
        return vocabulary, found

    def words(self, job: Job) -> str:
        """The text to train on."""
        if not self.text:
            return job.text
        try:
            return Path(self.text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"the text {self.text} cannot be read: {error}", hint="Name a file of plain text in UTF-8."
            ) from error

    def key(self, source: Weights, job: Job, *more: str) -> str:
        """What a checkpoint must have been made from to be taken up."""
        from blake3 import blake3

        with source.path.open("rb") as file:
            weights = blake3(max_threads=blake3.AUTO).update_mmap(file.name).hexdigest()
        text = hashlib.sha256(self.words(job).encode("utf-8", "surrogateescape")).hexdigest()
        what = [type(self).__module__, asdict(self), weights, text, job.seed, job.threads, *more]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def chosen(self, bridge: Bridge) -> list[nn.Parameter]:
        """The parameters that are trained, each once; the others are frozen."""
        found: dict[int, nn.Parameter] = {}
        for parameter in bridge.model.parameters():
            parameter.requires_grad_(False)
        for name in bridge.places:
            if re.fullmatch(self.train, name):
                parameter = bridge.parameter(name)
                parameter.requires_grad_(True)
                found[id(parameter)] = parameter
        return list(found.values())

    def teacher(self, job: Job, student: Bridge) -> PreTrainedModel | None:
        """The file that the recipe began with, frozen; None where nothing is learnt from it."""
        return None if self.alpha == 0 else self.origin(job, student)

    def origin(self, job: Job, student: Bridge) -> PreTrainedModel:
        """The file that the recipe began with, frozen."""
        from pressroom.compress.weights import open_weights

        with open_weights(job.origin, called="the teacher") as origin:
            found = models.load(origin, device=self.device)
        if found.shape.vocabulary != student.shape.vocabulary:
            raise RecipeError(
                f"the teacher has {found.shape.vocabulary} tokens, and the student {student.shape.vocabulary}",
                hint="Both must have one vocabulary.",
            )
        found.model.requires_grad_(False)
        return found.model

    def masks(self, bridge: Bridge, source: Weights) -> Masks:
        """What was pruned, which stays zero. Matrices in formats of few bits have zeros without having been pruned, so
        only those in floating point are looked at."""
        from pressroom.compress.training._masks import Masks

        types = {name: tensor.type for name, tensor in source.tensors.items()}
        found = Masks(bridge.matrices(types, *FLOATS) if self.keep_zeros else {})
        found.keep_zeros()
        return found

    def objective(self, student: nn.Module, teacher: nn.Module | None) -> Callable[[torch.Tensor], torch.Tensor]:
        """The loss of windows of text. A token below 0 stands for its complement, which is read and is no answer."""
        import torch

        from pressroom.compress.training._measuring import logits_of
        from pressroom.compress.training._objective import Mix

        mix = Mix(alpha=self.alpha, temperature=self.temperature)

        def loss(windows: torch.Tensor) -> torch.Tensor:
            tokens = torch.where(windows < 0, ~windows, windows)
            with torch.no_grad():
                soft = logits_of(teacher, tokens) if teacher is not None and self.alpha > 0 else None
            return mix.loss(logits_of(student, tokens), soft, windows)

        return loss

    def remeasured(self, target: Path, windows: Windows, teacher: nn.Module | None) -> Measured:
        """The file that was written, read again, on the windows that were held back."""
        from pressroom.compress.training._measuring import measured
        from pressroom.compress.weights import open_weights

        with open_weights(target) as written:
            found = models.load(written, device=self.device)
        return measured(found.model, windows.held, teacher=teacher)


def told(job: Job, windows: Windows, trained: Trained, before: Measured, after: Measured) -> Figures:
    """The figures of a step that trained; a note where it made things worse."""
    how = f"on {len(windows.held)} windows of {windows.size} tokens that were not trained on, the file read again"
    found: Figures = {
        "train_tokens": (trained.tokens, "tokens", f"{len(trained.losses)} steps"),
        "train_loss": (trained.losses[-1], "nats", "the objective at the last step"),
        "held_loss_before": (before.loss, "nats", how),
        "held_loss": (after.loss, "nats", how),
    }
    if before.divergence is not None and after.divergence is not None:
        found["teacher_kl_before"] = (before.divergence, "nats", how)
        found["teacher_kl"] = (after.divergence, "nats", how)
        if after.divergence > before.divergence and after.loss > before.loss:
            job.note(
                f"training made it worse: the divergence from the teacher went from {before.divergence:.4g} to "
                f"{after.divergence:.4g}. Try a lower rate, or more steps"
            )
    elif after.loss > before.loss:
        job.note(f"training made it worse: the loss went from {before.loss:.4g} to {after.loss:.4g}")
    if trained.resumed:
        job.note(f"the training was taken up at step {trained.resumed} of {len(trained.losses)}")
    return found


def floating(tensor: Tensor) -> str:
    """The format of a tensor once it was trained, as `New.of` chooses it."""
    if len(tensor.shape) < 2:
        return "f32"
    return tensor.type.lower() if tensor.type in ("F32", "BF16") else "f16"


def pattern_wrong(name: str, pattern: str) -> list[str]:
    """What is wrong with a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        return [f"{name} = {pattern!r} is not a regular expression: {error}"]
    return []


def device_problems(device: str) -> list[str]:
    """Why nothing can be computed there."""
    if device == "cpu":
        return []
    import torch

    kind, _, number = device.partition(":")
    there = getattr(torch, kind, None)
    if there is None or not there.is_available():
        return [f"device = {device!r}: this machine has none"]
    if number and int(number) >= there.device_count():
        return [f"device = {device!r}: there are {there.device_count()}"]
    return []
