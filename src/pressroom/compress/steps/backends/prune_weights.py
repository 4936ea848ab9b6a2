"""Zeros for weights that matter least: SparseGPT, Wanda, or the smallest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pressroom.compress.steps.base import Job, Outline, Report, Stage, Step
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.rounding import Curvature, Pruned
    from pressroom.compress.weights import New, Tensor, Weights

    Floats = NDArray[np.float32]

_METHODS = ("sparsegpt", "wanda", "magnitude")
_PER = ("row", "layer")
_PATTERN = re.compile(r"([1-9][0-9]?):([1-9][0-9]?)")
_NO_SMALLER = (
    "Zeros take as much room as other weights, and llama.cpp computes with them: by this alone neither the file nor "
    "the time to answer gets smaller."
)
_NO_PATTERN = (
    "No engine that Pressroom starts uses a pattern such as 2:4: only GPUs with sparse tensor cores do, on weights in "
    "a form of their own and not on GGUF."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(Step):
    """Prune single weights of linear layers; the file keeps its shapes."""

    stage: ClassVar[Stage] = Stage.SPARSITY
    kind: ClassVar[str] = "pruned"
    options: ClassVar[Mapping[str, str]] = {
        "by": "sparsegpt: those that stay make up for those that go (arXiv 2301.00774); wanda: the least product of a "
        "weight and what enters it (2306.11695); magnitude: the smallest",
        "ratio": "the share of the weights that goes, above 0 and below 1",
        "pattern": "instead of a ratio: '2:4' keeps 2 of every 4 weights that lie side by side in a row",
        "per": "row: every row loses that share; layer: its rows together do. Default: row for wanda, else layer",
        "targets": "a regular expression for the whole names of the tensors",
        "passes": "in how many groups, first layers first, each calibrated behind those that are pruned already: more "
        "lose less and take longer",
    }

    by: str = "sparsegpt"
    ratio: float = 0.0
    pattern: str = ""
    per: str = ""
    targets: str = r"blk\..*"
    passes: int = 1

    def wrong(self) -> list[str]:
        found = []
        if self.by not in _METHODS:
            found.append(f"by = {self.by!r} is none of {', '.join(_METHODS)}")
        if bool(self.pattern) == bool(self.ratio):
            found.append("ratio or pattern: one of them says how much goes, and only one")
        elif self.pattern and self._kept is None:
            found.append(f"pattern = {self.pattern!r} is not like '2:4', which keeps 2 of 4")
        elif not self.pattern and not 0 < self.ratio < 1:
            found.append(f"ratio = {self.ratio:g} is not above 0 and below 1")
        if self.per and self.per not in _PER:
            found.append(f"per = {self.per!r} is none of {', '.join(_PER)}")
        if not 1 <= self.passes <= 1000:
            found.append(f"passes = {self.passes} is not from 1 to 1000")
        try:
            re.compile(self.targets)
        except re.error as error:
            found.append(f"targets = {self.targets!r} is not a regular expression: {error}")
        return found

    @property
    def _kept(self) -> tuple[int, int] | None:
        """(2, 4) for 2 of 4."""
        found = _PATTERN.fullmatch(self.pattern)
        if found is None or int(found[1]) >= int(found[2]):
            return None
        return int(found[1]), int(found[2])

    def check(self, source: Weights) -> None:
        from pressroom.compress.weights import readable

        needs_torch()
        tensors = self._meant(source)
        if not tensors:
            linears = [tensor.name for tensor in source.linears]
            raise RecipeError(
                f"no linear layer is meant by targets = {self.targets!r}",
                hint=f"There are {', '.join(linears[:4])}, …" if linears else "This model has none.",
                targets=self.targets,
            )
        unread = [tensor.name for tensor in tensors if not readable(tensor)]
        kept = self._kept
        uneven = [tensor.name for tensor in tensors if kept is not None and tensor.columns % kept[1]]
        wrong = []
        if unread:
            wrong.append(f"of a type that cannot be turned into numbers here are {', '.join(unread)}")
        if uneven:
            wrong.append(
                f"rows that cannot be cut into groups of {self.pattern.partition(':')[2]} have {', '.join(uneven)}"
            )
        if wrong:
            raise RecipeError("; ".join(wrong), hint="Leave these out with targets.", tensors=[*unread, *uneven])

    def outline(self, source: Weights) -> Outline:
        meant = {tensor.name for tensor in self._meant(source)}
        return Outline(
            tensors={
                name: (tensor.type.lower() if tensor.type in ("F32", "BF16") else "f16", tensor.shape)
                if name in meant
                else name
                for name, tensor in source.tensors.items()
            }
        )

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        from pressroom.compress.weights import open_weights

        meant = self._meant(source)
        groups = _groups(meant, self.passes)
        lines: list[dict[str, Any]] = []
        before = source.path
        for number, group in enumerate(groups, start=1):
            path = target if number == len(groups) else job.folder / f"pass-{number}.gguf"
            with open_weights(before, called=source.called) as now:
                _Pass(self, now, job, len(lines), len(meant), lines).write(path, group)
            if before != source.path:
                before.unlink()
            before = path
        return _report(self, lines, source)

    def _meant(self, source: Weights) -> tuple[Tensor, ...]:
        from pressroom.compress.weights import Role

        every = source.of_role(Role.LINEAR, Role.EXPERTS)
        return tuple(tensor for tensor in every if re.fullmatch(self.targets, tensor.name))


class _Pass:
    """Prunes some tensors of a file when their turn comes."""

    def __init__(
        self, step: Backend, source: Weights, job: Job, done: int, total: int, lines: list[dict[str, Any]]
    ) -> None:
        self._step, self._source, self._job, self._lines = step, source, job, lines
        self._done, self._total = done, total
        self._calibration: Calibration = job.calibration(source, hessians=True)
        # The last one: layers with the same input lie side by side in the file.
        self._curvature: tuple[Any, Curvature] | None = None

    def write(self, path: Path, group: tuple[Tensor, ...]) -> None:
        from pressroom.compress.weights import New, float_format, rebuild

        tensors: dict[str, str | New] = {name: name for name in self._source.tensors}
        for tensor in group:
            format = float_format(self._source, tensor.name)
            tensors[tensor.name] = New(format, tensor.shape, self._data(tensor, format))
        rebuild(path, self._source, tensors)

    def _data(self, tensor: Tensor, format: Any) -> Any:
        def made() -> Iterator[NDArray[np.uint8]]:
            import numpy as np

            count = tensor.shape[0] if len(tensor.shape) == 3 else 1
            each = tensor.rows // count
            zeros, errors, fallback = 0, [], False
            for matrix in range(count):
                rows = self._source.rows(tensor.name, matrix * each, (matrix + 1) * each)
                found = self._pruned(rows, self._hessian(tensor, matrix, count))
                data = format.encode(found.values)
                zeros += rows.size - int(np.count_nonzero(format.decode(data)))
                errors.append(found.error)
                fallback |= found.fallback
                yield data
            self._done += 1
            self._lines.append(
                {
                    "name": tensor.name,
                    "sparsity": round(zeros / tensor.elements, 6),
                    "error": float(np.mean(errors)),
                    "weights": tensor.elements,
                    "fallback": fallback,
                }
            )
            self._job.progress("pruning", self._done, self._total, "tensors")

        return made

    def _hessian(self, tensor: Tensor, matrix: int, count: int) -> Floats | None:
        found = self._calibration.hessians.get(tensor.name)
        if found is None:
            return None
        return found if count == 1 else found[matrix]

    def _pruned(self, rows: Floats, hessian: Floats | None) -> Pruned:
        import numpy as np

        from pressroom.compress.rounding import Curvature, magnitude, pruned, wanda

        step = self._step
        if hessian is None:  # nothing was seen to enter it: all columns alike
            hessian = np.eye(rows.shape[1], dtype=np.float32)
        if self._curvature is None or self._curvature[0] is not hessian:
            self._curvature = hessian, Curvature(hessian)
        how = {"sparsegpt": pruned, "wanda": wanda, "magnitude": magnitude}[step.by]
        per = step.per or ("row" if step.by == "wanda" else "layer")
        kept = step._kept
        share = {"pattern": kept} if kept else {"ratio": step.ratio}
        # One thread: a pass is thousands of small steps.
        return how(rows, self._curvature[1], per=per, threads=1, **share)  # type: ignore[arg-type]


def needs_torch() -> None:
    """Raises MissingDependencyError."""
    import importlib.util

    from pressroom.kernel import MissingDependencyError

    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(
            "pruning needs PyTorch, which is not installed",
            hint="Install it: pip install 'pressroom[compress]'",
            missing="torch",
        )


def _groups(tensors: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, ...]]:
    """The tensors of as many layers each, in so many groups at most; what is in no layer goes with the first."""
    layers = sorted({tensor.layer or 0 for tensor in tensors})
    count = min(count, len(layers))
    group = {layer: place * count // len(layers) for place, layer in enumerate(layers)}
    return [tuple(one for one in tensors if group[one.layer or 0] == number) for number in range(count)]


def _report(step: Backend, lines: list[dict[str, Any]], source: Weights) -> Report:
    from pressroom.compress.weights import Role

    weights = sum(line["weights"] for line in lines)
    sparsity = sum(line["sparsity"] * line["weights"] for line in lines) / weights
    every = sum(tensor.elements for tensor in source.of_role(Role.LINEAR, Role.EXPERTS))
    error = sum(line["error"] for line in lines) / len(lines)
    notes = [_NO_SMALLER, *([_NO_PATTERN] if step.pattern else [])]
    plain = [str(line["name"]) for line in lines if line["fallback"]]
    if plain:
        notes.append(f"Pruned as wanda does, because what enters them says too little: {', '.join(plain)}.")
    how = f"share of the linear layers' weights that are 0: {len(lines)} tensors were pruned ({step.by})"
    return Report(
        figures={
            "sparsity": (round(sparsity * weights / max(1, every), 6), "", how),
            "pruning_error": (
                round(error, 8),
                "",
                f"mean over {len(lines)} linear layers of the share of their output, squared, that is lost on the "
                f"calibration text by pruning ({step.by})",
            ),
        },
        tensors=lines,
        notes=notes,
    )
