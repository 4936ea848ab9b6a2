"""What a step of a recipe is: it reads a file of weights and writes another one.

A kind of step is one module in `backends/` with a frozen dataclass called `Backend` below `Step`; the name of the file
is the step's `method` in a recipe (`prune_weights` is written `prune-weights`), and its fields are the step's options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.weights import Weights

    Shape = tuple[int, ...]
    Scalar = str | int | float | bool


class Stage(IntEnum):
    """Where in a recipe a step belongs: one of a later stage destroys what those of an earlier one work on. What is
    taken out of a model comes first, then training, then what training would undo, and number formats last."""

    STRUCTURE = 1
    TRAINING = 2
    LOW_RANK = 3
    SPARSITY = 4
    NUMBERS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a step did: `figures` go to the version's sheet (name: (value, unit, how)), `tensors` says it for each
    tensor, `notes` are sentences for the user."""

    figures: Mapping[str, tuple[float | int | str, str, str]] = field(default_factory=dict)
    tensors: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """What a file will be but for its data: for every tensor, in the order of the file, the name of the source's that
    it will be like, or the name of its number format and its shape; and what `rebuild` will be given as metadata."""

    tensors: Mapping[str, str | tuple[str, Shape]]
    metadata: Mapping[str, Scalar | Sequence[Scalar] | None] = field(default_factory=dict)


class Job(Protocol):
    """What a step may use of the one who carries it out."""

    #: The file that the recipe began with: the teacher of a student.
    origin: Path
    #: The calibration text, and how many of its tokens are looked at.
    text: str
    tokens: int
    seed: int
    threads: int
    #: A directory of the step's own for what it needs meanwhile; what it leaves there is found by a run that takes up a
    #: killed one's work, and is removed when the recipe is done.
    folder: Path

    def calibration(self, source: Weights, *, hessians: bool) -> Calibration:
        """What enters each layer of that file on the calibration text; kept for the next who asks."""

    def progress(self, what: str, done: int, total: int, unit: str) -> None:
        """Say how far it is."""

    def note(self, text: str) -> None:
        """Say something that the user should know."""


class Step(ABC):
    """One step with its options. Subclasses are frozen dataclasses; a field of a type of str, int, float, bool,
    tuple[str, ...], tuple[int, ...] or tuple[float, ...] is an option of that type, required where it has no default.
    """

    __slots__ = ()

    stage: ClassVar[Stage]
    #: The kind of version that comes of it, as the registry names kinds.
    kind: ClassVar[str]
    #: To be raised where the same options would now give another file: what an earlier release left is not taken up.
    schema: ClassVar[int] = 1
    #: The options in a sentence each, for docs and errors: name to text.
    options: ClassVar[Mapping[str, str]] = {}

    @property
    def method(self) -> str:
        """What a recipe calls it: the name of its module, with - for _."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def keeps(self) -> frozenset[Stage]:
        """Stages later than its own whose work it does not destroy: it may come behind steps of these."""
        return frozenset()

    @property
    def calibrates(self) -> bool:
        """Whether it looks at the calibration text."""
        return True

    def outline(self, source: Weights) -> Outline | None:
        """What `run` will make of such a file, but for the data; called after `check`, and as quick. None where that
        cannot be known before the work: then what comes behind it is checked only when its turn comes."""
        return Outline(tensors={name: name for name in source.tensors})

    def wrong(self) -> list[str]:
        """What is wrong with the options themselves, in words that begin with the option's name."""
        return []

    @abstractmethod
    def check(self, source: Weights) -> None:
        """Say before any work what cannot be done with this file, in one error that names all of it.

        Only shapes, metadata and installed libraries may be looked at: it takes no time, and there may be no data yet
        (all zeros). This is called before all work, with what the steps before it will make as far as that is known,
        and again before the step runs.

        Raises:
            RecipeError: it cannot be done. MissingDependencyError: a library is missing that an extra installs.
        """

    @abstractmethod
    def run(self, source: Weights, target: Path, job: Job) -> Report:
        """Write the new file, whole or not at all. The same source, options, text and seed give the same bytes (for
        training: on the same machine with the same number of threads).

        Raises:
            RecipeError, StoreFullError, MissingDependencyError: see `check`; and what is found on the way, such as a
            result that is not a number, naming the layers.
        """
