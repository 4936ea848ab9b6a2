"""Linear layers as products of smaller matrices: what a rank costs, measured. The products are what is written."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pressroom.compress.steps.base import Job, Outline, Report, Stage, Step
from pressroom.kernel import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pressroom.compress.lowrank import Keep
    from pressroom.compress.numbers import NumberFormat
    from pressroom.compress.rounding import Curvature
    from pressroom.compress.weights import New, Tensor, Weights

    Floats = NDArray[np.float32]

_BY = ("svd", "whitened", "tucker", "cp")
# What has the same input in a layer, and so may be decomposed together where the shapes are the same too.
_TOGETHER = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))
_MOST_F16 = 65504.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(Step):
    """Replace matrices by products of two of a lower rank, or by Tucker or CP decompositions of several together.

    No engine that reads GGUF multiplies with factors in place of a matrix, so the file holds their product, as many
    numbers as before: what is saved by the factors is a figure of the report, and neither bytes nor time.
    """

    stage: ClassVar[Stage] = Stage.LOW_RANK
    kind: ClassVar[str] = "pruned"
    options: ClassVar[Mapping[str, str]] = {
        "targets": "a regular expression for the whole names of the linear layers",
        "rank": "singular values that each matrix keeps (tucker: vectors of each side; cp: outer products)",
        "share": "share of its numbers that the factors of each matrix may need",
        "energy": "share of each layer's output, squared, that is kept: the least rank that does",
        "by": "whitened: least loss on what enters the layer; svd: least loss of the weights; tucker, cp: matrices of "
        "one shape together, whitened",
        "stack": "tucker and cp: 1 puts together what has the same input in a layer; 2 and more the same matrix of so "
        "many layers in a row",
    }

    targets: str = ".*"
    rank: int = 0
    share: float = 0.0
    energy: float = 0.0
    by: str = "whitened"
    stack: int = 1

    @property
    def calibrates(self) -> bool:
        """All but plain singular values look at what enters the layers."""
        return self.by != "svd"

    def wrong(self) -> list[str]:
        """What is wrong with the options."""
        from pressroom.compress.lowrank import wrong_keep

        found = wrong_keep(self.rank, self.share, self.energy)
        if self.by not in _BY:
            found.append(f"by = {self.by!r} is none of {', '.join(_BY)}")
        if self.energy and self.by in ("tucker", "cp"):
            found.append(f"energy: by = {self.by!r} takes a rank or a share")
        if self.stack < 1:
            found.append(f"stack = {self.stack} is not a number of layers from 1 on")
        elif self.stack > 1 and self.by not in ("tucker", "cp"):
            found.append(f"stack: by = {self.by!r} takes each matrix alone")
        try:
            re.compile(self.targets)
        except re.error as error:
            found.append(f"targets = {self.targets!r} is not a regular expression: {error}")
        return found

    def outline(self, source: Weights) -> Outline | None:
        """What changes is known but where the rank hangs on the values."""
        from pressroom.compress.weights import float_format

        if self.energy:
            return None
        changed = {tensor.name for group in self._groups(source) for tensor in group if self._gains(group)}
        return Outline(
            tensors={
                name: (float_format(source, name).name, tensor.shape) if name in changed else name
                for name, tensor in source.tensors.items()
            }
        )

    def check(self, source: Weights) -> None:
        """See `Step.check`."""
        from pressroom.compress.lowrank import needs_tensorly, stack_ranks
        from pressroom.compress.weights import readable

        if importlib.util.find_spec("torch") is None:
            raise MissingDependencyError(
                "factoring matrices needs PyTorch, which is not installed",
                hint="Install it: pip install 'pressroom[compress]'",
                missing="torch",
            )
        groups = self._groups(source)
        if not groups:
            names = [tensor.name for tensor in source.linears]
            raise RecipeError(
                f"no linear layer of {source.called} is meant by targets = {self.targets!r}",
                hint=f"There are {', '.join(names[:3])} and so on." if names else "It has none with a usual name.",
            )
        problems = []
        for group in groups:
            name, shape = group[0].name, group[0].shape
            if unknown := [tensor.name for tensor in group if not readable(tensor)]:
                problems.append(f"{', '.join(unknown)}: the type cannot be turned into numbers")
            if len(group) == 1:
                if self.rank > min(shape):
                    problems.append(f"{name} {list(shape)}: its rank is {min(shape)} at most, not {self.rank}")
                elif self.share and not self._keep.most(shape[0], shape[1]):
                    problems.append(f"{name} {list(shape)}: rank 1 needs more than {self.share:.2%} of its numbers")
            else:
                try:
                    stack_ranks((len(group), *shape), self._keep, self._decomposition)
                except RecipeError as error:
                    problems.append(f"{name} {list(shape)}: {error.message}")
        if problems:
            raise RecipeError(
                f"{len(problems)} layers of {source.called} cannot be factored as asked. " + ". ".join(problems[:8]),
                hint="Choose another rank or share for these, or leave them out with targets.",
                problems=problems,
            )
        if not self.energy and not any(self._gains(group) for group in groups):
            raise RecipeError(
                f"rank {self.rank} needs more numbers than the matrices of {source.called} have",
                hint="Ask for a lower rank: m x n numbers are r (m + n) in two factors.",
                rank=self.rank,
            )
        if self.by in ("tucker", "cp"):
            needs_tensorly()

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        """See `Step.run`."""
        from pressroom.compress.weights import New, float_format, rebuild

        work = _Work(self, source, job)
        tensors: dict[str, str | New] = {name: name for name in source.tensors}
        groups = self._groups(source)
        for group in groups:
            if self.energy:
                work.decide(group)
            elif not self._gains(group):
                work.leave(group)
        for group in groups:
            for tensor in group:
                if tensor.name not in work.left:
                    format = float_format(source, tensor.name)
                    tensors[tensor.name] = New(format, tensor.shape, work.of(tensor, group, format))
        work.total = sum(isinstance(one, New) for one in tensors.values())
        rebuild(target, source, tensors)
        return work.report()

    @property
    def _keep(self) -> Keep:
        from pressroom.compress.lowrank import Keep

        return Keep(rank=self.rank, share=self.share, energy=self.energy)

    @property
    def _decomposition(self) -> Literal["tucker", "cp"]:
        assert self.by in ("tucker", "cp")
        return cast(Literal["tucker", "cp"], self.by)

    def _groups(self, source: Weights) -> list[tuple[Tensor, ...]]:
        """What is factored together: each alone but for Tucker and CP."""
        found: dict[tuple[Any, ...], list[Tensor]] = {}
        for tensor in source.linears:
            if re.fullmatch(self.targets, tensor.name) is None:
                continue
            key: tuple[Any, ...] = (tensor.name,)
            if self.by in ("tucker", "cp"):
                assert tensor.layer is not None
                parts = next((parts for parts in _TOGETHER if tensor.part in parts), (tensor.part,))
                place = (tensor.layer, parts) if self.stack == 1 else (tensor.layer // self.stack, tensor.part)
                key = (*place, tensor.shape)
            found.setdefault(key, []).append(tensor)
        return [tuple(group) for group in found.values()]

    def _gains(self, group: Sequence[Tensor]) -> bool:
        """Whether the factors are fewer numbers than the matrices."""
        from pressroom.compress.lowrank import numbers_needed, stack_numbers, stack_ranks

        shape = group[0].shape
        whole = len(group) * shape[0] * shape[1]
        if len(group) == 1:
            return numbers_needed(shape[0], shape[1], self._keep.most(shape[0], shape[1]) or 0) < whole
        stack = (len(group), *shape)
        return stack_numbers(stack, stack_ranks(stack, self._keep, self._decomposition)) < whole


class _Work:
    """The matrices, factored when the file comes to them, and what became of each."""

    def __init__(self, step: Backend, source: Weights, job: Job) -> None:
        self.step, self.source, self.job = step, source, job
        self.total = 0
        self.left: dict[str, dict[str, Any]] = {}
        self._done: dict[str, dict[str, Any]] = {}
        self._calibration = job.calibration(source, hessians=True) if step.calibrates else None
        self._last: tuple[NDArray[np.float32], Curvature] | None = None
        # Of a group that is decomposed together, those that the file has not come to yet.
        self._waiting: dict[str, Floats] = {}
        self._ranks: dict[str, int] = {}

    def decide(self, group: Sequence[Tensor]) -> None:
        """Leave a matrix as it is that keeps too many of its values for factors to be fewer numbers."""
        from pressroom.compress.lowrank import factor

        (tensor,) = group
        self.job.progress("ranking", len(self._ranks), len(self.source.linears), "tensors")
        found = factor(
            self.source.rows(tensor.name), self.step._keep, self._curvature(tensor.name), threads=self.job.threads
        )
        self._ranks[tensor.name] = found.rank
        if found.numbers >= found.whole:
            self.leave(group)

    def leave(self, group: Sequence[Tensor]) -> None:
        """Keep these as they are."""
        for tensor in group:
            self.left[tensor.name] = {"name": tensor.name, "numbers": tensor.elements, "whole": tensor.elements}

    def of(self, tensor: Tensor, group: Sequence[Tensor], format: NumberFormat) -> Callable[[], Iterator[Any]]:
        """What gives the data of this one when its turn comes."""

        def made() -> Iterator[Any]:
            import numpy as np

            values = self._stacked(tensor, group) if len(group) > 1 else self._alone(tensor)
            if format.name == "f16" and np.abs(values).max() > _MOST_F16:
                raise RecipeError(
                    f"the product of the factors of {tensor.name} has numbers beyond f16",
                    hint="Ask for another rank for it, or leave it out with targets.",
                    tensor=tensor.name,
                )
            yield format.encode(values)
            self.job.progress("factoring", len(self._done), self.total, "tensors")

        return made

    def report(self) -> Report:
        """What became of all."""
        tensors = [*self._done.values(), *self.left.values()]
        whole, numbers = (sum(int(one[key]) for one in tensors) for key in ("whole", "numbers"))
        errors = [float(one["error"]) for one in self._done.values()]
        notes = [
            "The file holds the products of the factors, dense: no engine that reads GGUF multiplies with factors in "
            f"place of a matrix. Held as factors the {len(tensors)} layers would be {numbers:,} numbers instead of "
            f"{whole:,}; neither bytes nor time are saved by it here."
        ]
        if self.left:
            notes.append(
                f"{len(self.left)} layers stay as they are, whose factors would be more numbers than the matrix: "
                f"{', '.join(list(self.left)[:4])}{' …' if len(self.left) > 4 else ''}"
            )
        if plain := [one["name"] for one in self._done.values() if one["fallback"]]:
            notes.append(f"Nothing entered {', '.join(plain[:4])} on the calibration text: factored by their weights.")
        how = "mean over layers of the share of their output, squared, that is lost on the calibration text"
        if not self.step.calibrates:
            how = "mean over layers of the share of the squares of their weights that is lost"
        figures: dict[str, tuple[float | int | str, str, str]] = {
            "factor_numbers_share": (
                round(numbers / whole, 6),
                "",
                f"numbers in the factors of {len(tensors)} layers as a share of those of the matrices, which are what "
                "the file holds",
            )
        }
        if errors:
            figures["low_rank_error"] = (round(sum(errors) / len(errors), 8), "", how)
        return Report(figures=figures, tensors=tensors, notes=notes)

    def _alone(self, tensor: Tensor) -> Floats:
        from pressroom.compress.lowrank import Keep, factor

        rank = self._ranks.get(tensor.name)
        keep = self.step._keep if rank is None else Keep(rank=rank)
        weights = self.source.rows(tensor.name)
        found = factor(weights, keep, self._curvature(tensor.name), threads=self.job.threads)
        self._done[tensor.name] = {
            "name": tensor.name,
            "rank": found.rank,
            "numbers": found.numbers,
            "whole": found.whole,
            "error": found.error,
            "fallback": found.fallback,
        }
        return found.values

    def _stacked(self, tensor: Tensor, group: Sequence[Tensor]) -> Floats:
        from pressroom.compress.lowrank import stacked

        if tensor.name not in self._waiting:
            matrices = [self.source.rows(one.name) for one in group]
            curvatures = [self._curvature(one.name) for one in group]
            known = [one for one in curvatures if one is not None]
            found = stacked(
                matrices,
                self.step._keep,
                self.step._decomposition,
                known if len(known) == len(group) else (),
                seed=self.job.seed,
                threads=self.job.threads,
            )
            for one, values, error in zip(group, found.values, found.errors, strict=True):
                self._waiting[one.name] = values
                self._done[one.name] = {
                    "name": one.name,
                    "rank": "x".join(map(str, found.ranks)),
                    "together": [other.name for other in group],
                    "numbers": found.numbers / len(group),
                    "whole": one.elements,
                    "error": error,
                    "fallback": len(known) < len(group),
                }
        return self._waiting.pop(tensor.name)

    def _curvature(self, name: str) -> Curvature | None:
        from pressroom.compress.rounding import Curvature

        if self._calibration is None:
            return None
        hessian = self._calibration.hessians.get(name)
        if hessian is None or not hessian.any():
            return None
        if self._last is None or self._last[0] is not hessian:
            self._last = hessian, Curvature(hessian)
        return self._last[1]
