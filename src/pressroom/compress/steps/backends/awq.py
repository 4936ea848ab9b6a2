"""Scales moved between layers so that rounding, which comes after, loses less (AWQ, arXiv 2306.00978)."""

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
    from pressroom.compress.numbers import NumberFormat
    from pressroom.compress.scaling import Pair, Scales
    from pressroom.compress.weights import New, Weights

    Floats = NDArray[np.float32]

_ROWS = 4096
_MOST_F16 = 65504.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(Step):
    """Scale columns that much enters, and divide what feeds them: the model computes the same as before."""

    stage: ClassVar[Stage] = Stage.SPARSITY
    kind: ClassVar[str] = "quantised"
    options: ClassVar[Mapping[str, str]] = {
        "to": "the number format that a later step rounds to: the scales are those that it loses least with",
        "targets": "a regular expression for the whole names of the linear layers whose columns may be scaled",
        "steps": "how many powers of the input's size are tried, besides none",
        "hessians": "whether errors that cancel each other count as they do: slower, and hardly another choice",
    }

    to: str = "q4_0"
    targets: str = r"blk\..*"
    steps: int = 10
    hessians: bool = False

    def wrong(self) -> list[str]:
        from pressroom.compress.numbers import number_format
        from pressroom.compress.recipe import bits_below_16, canonical

        found = []
        try:
            number_format(canonical(self.to))
        except RecipeError as error:
            found.append(f"to: {error.message}. {error.hint}")
        else:
            if not bits_below_16(canonical(self.to)):
                found.append(f"to = {self.to!r} keeps every weight alone: there is nothing that scales could save")
        if not 1 <= self.steps <= 100:
            found.append(f"steps = {self.steps} is not from 1 to 100")
        try:
            re.compile(self.targets)
        except re.error as error:
            found.append(f"targets = {self.targets!r} is not a regular expression: {error}")
        return found

    def check(self, source: Weights) -> None:
        from pressroom.compress.weights import readable

        found = self._pairs(source)
        if not found:
            raise RecipeError(
                f"no layer of {source.called} whose inputs can be scaled is meant by targets = {self.targets!r}",
                hint="Scaled are dense layers behind a norm, behind the values of attention, and ffn_down.",
                targets=self.targets,
            )
        format = self._format
        touched = [source.tensors[name] for pair in found for name in (*pair.before, *pair.after)]
        unread = sorted({tensor.name for tensor in touched if not readable(tensor)})
        odd = sorted({one for pair in found for one in pair.after if not format.fits(source.tensors[one].columns)})
        if unread or odd:
            wrong = []
            if unread:
                wrong.append(f"of a type that cannot be turned into numbers here are {', '.join(unread)}")
            if odd:
                wrong.append(f"rows that {format.name} does not take have {', '.join(odd)}")
            raise RecipeError("; ".join(wrong), hint="Leave these out with targets.", tensors=[*unread, *odd])

    def outline(self, source: Weights) -> Outline:
        touched = {name for pair in self._pairs(source) for name in (*pair.before, *pair.after)}
        return Outline(
            tensors={
                name: (_type(tensor.type, len(tensor.shape)), tensor.shape) if name in touched else name
                for name, tensor in source.tensors.items()
            }
        )

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        import numpy as np

        from pressroom.compress.scaling import factors
        from pressroom.compress.weights import New, float_format, rebuild

        found = self._pairs(source)
        calibration = job.calibration(source, hessians=self.hessians)
        lines: list[dict[str, Any]] = []
        chosen: list[tuple[Pair, Floats]] = []
        skipped = []
        for number, pair in enumerate(found, start=1):
            scales = self._searched(source, pair, calibration)
            if scales is None:
                skipped.append(pair.name)
            else:
                line = {"name": pair.name, "power": scales.power, "error": scales.error, "before": scales.before}
                lines.append(line)
                if scales.power > 0:
                    chosen.append((pair, scales.scales))
            job.progress("scaling", number, len(found), "pairs")
        tensors: dict[str, str | New] = {name: name for name in source.tensors}
        for name, (rows, columns) in factors(chosen).items():
            tensor = source.tensors[name]
            if len(tensor.shape) == 1:
                assert rows is not None
                tensors[name] = New.of((source.rows(name).reshape(-1) * rows).astype(np.float32), tensor)
                continue
            format = float_format(source, name)
            if format.name == "f16" and _largest(source, name, rows, columns) > _MOST_F16:
                from pressroom.compress.numbers import number_format

                format = number_format("f32")
            tensors[name] = New(format, tensor.shape, _data(source, name, rows, columns, format))
        rebuild(target, source, tensors)
        return _report(lines, skipped, self._format.name)

    @property
    def _format(self) -> NumberFormat:
        from pressroom.compress.numbers import number_format
        from pressroom.compress.recipe import canonical

        return number_format(canonical(self.to))

    def _pairs(self, source: Weights) -> list[Pair]:
        """Those of whose layers all are meant: a scale cannot be moved to some only."""
        from pressroom.compress.scaling import pairs

        return [pair for pair in pairs(source) if all(re.fullmatch(self.targets, name) for name in pair.after)]

    def _searched(self, source: Weights, pair: Pair, calibration: Calibration) -> Scales | None:
        """The scales, one for each row of what is before; None where nothing was seen to enter."""
        import dataclasses

        import numpy as np

        from pressroom.compress.scaling import best_scales
        from pressroom.compress.scaling._searching import ROWS

        moments = calibration.moments.get(pair.after[0])
        if moments is None or not moments.any():
            return None
        moments = np.asarray(moments, np.float32)
        weights = []
        for name in pair.after:
            count = source.tensors[name].rows
            step = max(1, count // ROWS)
            weights.append(np.concatenate([source.rows(name, at, at + 1) for at in range(0, count, step)]))
        shared = None if pair.heads is None else pair.spread(pair.shared(moments))
        hessian = calibration.hessians.get(pair.after[0]) if self.hessians else None
        found = best_scales(weights, moments, self._format, hessian=hessian, shared=shared, steps=self.steps)
        if pair.heads is None:
            return found
        return dataclasses.replace(found, scales=pair.shared(found.scales))


def _type(type: str, dimensions: int) -> str:
    if dimensions == 1:
        return "f32"
    return type.lower() if type in ("F32", "BF16") else "f16"


def _scaled(part: Floats, at: int, rows: Floats | None, columns: Floats | None) -> Floats:
    if columns is not None:
        part = part * columns
    if rows is not None:
        part = part * rows[at : at + len(part), None]
    return part


def _largest(source: Weights, name: str, rows: Floats | None, columns: Floats | None) -> float:
    import numpy as np

    count = source.tensors[name].rows
    return max(
        float(np.abs(_scaled(source.rows(name, at, at + _ROWS), at, rows, columns)).max())
        for at in range(0, count, _ROWS)
    )


def _data(source: Weights, name: str, rows: Floats | None, columns: Floats | None, format: NumberFormat) -> Any:
    def made() -> Iterator[NDArray[np.uint8]]:
        for at in range(0, source.tensors[name].rows, _ROWS):
            yield format.encode(_scaled(source.rows(name, at, at + _ROWS), at, rows, columns))

    return made


def _report(lines: list[dict[str, Any]], skipped: list[str], format: str) -> Report:
    count = max(1, len(lines))
    how = f"mean over {len(lines)} pairs of layers of the share of their output, squared, that rounding to {format} "
    notes = []
    if skipped:
        notes.append(f"Not scaled, because nothing was seen to enter them: {', '.join(skipped)}.")
    same = sum(line["power"] == 0 for line in lines)
    if same:
        notes.append(f"{same} of {len(lines)} pairs of layers stay as they are: no scaling loses less with {format}.")
    return Report(
        figures={
            "scaled_error": (round(sum(line["error"] for line in lines) / count, 8), "", how + "will lose with scales"),
            "unscaled_error": (round(sum(line["before"] for line in lines) / count, 8), "", how + "would lose without"),
        },
        tensors=lines,
        notes=notes,
    )
