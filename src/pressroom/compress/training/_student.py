"""Who is taught: the file as earlier steps left it, or a new one of untrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pressroom.compress import models
from pressroom.compress.models import Sizes
from pressroom.compress.steps.base import Outline
from pressroom.compress.training._step import TrainingStep
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pressroom.compress.models import Bridge, Shape
    from pressroom.compress.steps.base import Job
    from pressroom.compress.training._masks import Masks
    from pressroom.compress.weights import Weights

STUDENTS = ("kept", "scratch")
_SCRATCH = "scratch.gguf"


@dataclass(frozen=True, kw_only=True, slots=True)
class TeachingStep(TrainingStep):
    """A step that teaches a student, which is one of these."""

    kind: ClassVar[str] = "distilled"
    options: ClassVar[Mapping[str, str]] = {
        **TrainingStep.options,
        "student": "kept: the file as the steps before left it; scratch: untrained weights of these sizes",
        "architecture": "of a student from scratch ('': the teacher's)",
        "layers": "of a student from scratch (0: the teacher's; so for all sizes)",
        "hidden": "the width of a student from scratch",
        "ffn": "the width of the feed-forward of a student from scratch",
        "heads": "of a student from scratch",
        "kv_heads": "of a student from scratch",
    }

    student: str = "kept"
    architecture: str = ""
    layers: int = 0
    hidden: int = 0
    ffn: int = 0
    heads: int = 0
    kv_heads: int = 0

    @property
    def sizes(self) -> Sizes:
        """Of a student from scratch."""
        return Sizes(
            architecture=self.architecture,
            layers=self.layers,
            hidden=self.hidden,
            ffn=self.ffn,
            heads=self.heads,
            kv_heads=self.kv_heads,
        )

    def wrong(self) -> list[str]:
        """What is wrong with the options."""
        found = TrainingStep.wrong(self)
        if self.student not in STUDENTS:
            found.append(f"student = {self.student!r} is none of {', '.join(STUDENTS)}")
        given = [name for name in ("layers", "hidden", "ffn", "heads", "kv_heads") if getattr(self, name)]
        found += [f"{name} = {getattr(self, name)!r} is below 0" for name in given if getattr(self, name) < 0]
        if self.student == "kept" and (given or self.architecture):
            found.append(f"{', '.join(given or ['architecture'])}: sizes are those of a student = 'scratch'")
        return found

    def _problems(self, source: Weights, shape: Shape) -> list[str]:
        if self.student == "kept":
            return []
        return self.sizes.problems(source, shape)

    def outline(self, source: Weights) -> Outline | None:
        """What it will write."""
        if self.student == "kept":
            return TrainingStep.outline(self, source)
        shapes, metadata = self.sizes.file(source)
        tensors = {name: ("f32" if len(shape) < 2 else "f16", shape) for name, shape in shapes.items()}
        return Outline(tensors=tensors, metadata=metadata)

    @contextmanager
    def taught(self, source: Weights, job: Job) -> Iterator[tuple[Weights, Bridge, Masks]]:
        """The student's file, the student, and what of it stays zero."""
        from pressroom.compress.training._masks import Masks
        from pressroom.compress.weights import open_weights

        if self.student == "scratch":
            made = job.folder / _SCRATCH
            models.scratch(made, source, self.sizes, seed=job.seed)
            with open_weights(made, called="the student") as student:
                bridge = models.load(student, device=self.device)
                yield student, bridge, Masks({})
            return
        if _same(source.path, job.origin):
            raise RecipeError(
                "the student is the teacher, bit for bit, so there is nothing to learn from it",
                hint="Put a step that takes something out before this one, or ask for student = 'scratch'; to adapt a "
                "model to a text, use method = 'adapt'.",
            )
        bridge = models.load(source, device=self.device)
        yield source, bridge, self.masks(bridge, source)


def _same(one: Path, other: Path) -> bool:
    from blake3 import blake3

    if one.stat().st_size != other.stat().st_size:
        return False
    digests = []
    for path in (one, other):
        hashed = blake3(max_threads=blake3.AUTO)
        hashed.update_mmap(path)
        digests.append(hashed.digest())
    return digests[0] == digests[1]
