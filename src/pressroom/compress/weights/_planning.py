"""What a file will come to, before anything is worked on: what cannot be done is said at once, all of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pressroom.compress.numbers import NumberFormat, formats, number_format
from pressroom.compress.weights._layout import Layout, Scalar, lay_out
from pressroom.compress.weights._reading import Weights, by_number
from pressroom.compress.weights._roles import Role, Tensor
from pressroom.kernel import RecipeError

_LAYER = re.compile(r"^blk\.(\d+)\.")
_WHY = {
    Role.NORM: "is a norm, which is a few numbers that every other one hangs on",
    Role.BIAS: "is a bias, which is added and not multiplied",
    Role.OTHER: "is not the weight of a linear layer, the embedding or the head",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A tensor of the file to be: `wanted` is the name of the format that was asked for, None where it stays as it is
    because nobody asked; `format` is what it will be in (None: a type that is no number format of ours)."""

    tensor: Tensor
    wanted: str | None
    type: str
    format: NumberFormat | None
    nbytes: int

    @property
    def changes(self) -> bool:
        """Whether it will be in another type than it is in."""
        return self.format is not None and self.format.ggml != self.tensor.number


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a file will be: `size` in bytes, exactly, with the same metadata; `before` is that of the source.

    `tied`: the embedding is the output head as well, so that its format is that of both.
    """

    tensors: tuple[Planned, ...]
    size: int
    before: int
    tied: bool

    @property
    def wanted(self) -> tuple[Planned, ...]:
        """The tensors that a format was asked for, in the order of the file."""
        return tuple(one for one in self.tensors if one.wanted is not None)

    @property
    def changed(self) -> tuple[Planned, ...]:
        """The tensors whose type changes, in the order of the file."""
        return tuple(one for one in self.tensors if one.changes)

    @property
    def weights(self) -> int:
        """The number of weights in the file."""
        return sum(one.tensor.elements for one in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors, those that stay as they are too; the header is not counted."""
        return 8 * sum(one.nbytes for one in self.tensors) / self.weights

    @property
    def covered(self) -> float:
        """Of the bytes of the source's tensors the share that a format was asked for."""
        return sum(one.tensor.nbytes for one in self.wanted) / sum(one.tensor.nbytes for one in self.tensors)

    @property
    def types(self) -> dict[str, tuple[int, int, int]]:
        """For every type in the file its tensors, weights and bytes, most bytes first."""
        found: dict[str, list[int]] = {}
        for one in self.tensors:
            entry = found.setdefault(one.type, [0, 0, 0])
            for place, more in enumerate((1, one.tensor.elements, one.nbytes)):
                entry[place] += more
        ordered = sorted(found.items(), key=lambda item: (-item[1][2], item[0]))
        return {name: (tensors, weights, size) for name, (tensors, weights, size) in ordered}


def check(source: Weights, wanted: Mapping[str, str], *, metadata: Mapping[str, Scalar] | None = None) -> Plan:
    """What the file with the wanted formats (tensor's name to format's name) will be.

    `metadata` as it will be given to `write`: its length is part of the size.

    Raises:
        RecipeError: a tensor is not there, must stay as it is, or its rows are no whole blocks of its format; or there
            is no such format. One error names all of them.
    """
    asked = {name: number_format(format) for name, format in wanted.items()}
    refuse(source, asked)
    layout = lay_out(source, differing(source, asked), metadata or {})
    return _plan(source, asked, layout)


def differing(source: Weights, asked: Mapping[str, NumberFormat]) -> dict[str, NumberFormat]:
    """Without those tensors that are in their format already."""
    return {name: format for name, format in asked.items() if format.ggml != source.tensors[name].number}


def refuse(source: Weights, asked: Mapping[str, NumberFormat]) -> None:
    """Raises one RecipeError with everything in it that cannot be written."""
    unknown = [name for name in asked if name not in source.tensors]
    if unknown:
        raise source.unknown(unknown)
    problems: list[str] = []
    tensors: list[dict[str, Any]] = []

    def add(found: list[Tensor], what: str, **facts: Any) -> None:
        problems.append(f"{_listed(found)}: {what}")
        tensors.extend({"name": one.name, "shape": list(one.shape), **facts} for one in found)

    cases: dict[tuple[NumberFormat, int], list[Tensor]] = {}
    fixed: dict[tuple[Role, str], list[Tensor]] = {}
    for name, format in asked.items():
        tensor = source.tensors[name]
        if format.ggml == tensor.number:
            continue
        if not tensor.role.compressible:
            fixed.setdefault((tensor.role, format.name), []).append(tensor)
        elif format.ggml is None or not format.fits(tensor.columns):
            cases.setdefault((format, tensor.columns), []).append(tensor)
    for (role, name), found in fixed.items():
        kept = "each " if len(found) > 1 else ""
        add(found, f"{kept}{_WHY[role]}, and stays as it is instead of {name}", format=name)
    for (format, columns), found in cases.items():
        if format.ggml is None:
            add(found, f"GGUF has no type for {format.name}", format=format.name)
            continue
        fitting = [one.name for one in formats() if one.ggml is not None and one.fits(columns)]
        what = (
            f"{format.name} comes in blocks of {format.block}, and rows of {columns} are no whole blocks; "
            f"{', '.join(fitting)} can be had"
        )
        add(found, what, format=format.name, block=format.block, columns=columns, fitting=fitting)
    if problems:
        count = len(tensors)
        raise RecipeError(
            f"{count} tensor{'' if count == 1 else 's'} of {source.called} cannot be written as asked. "
            + ". ".join(problems),
            hint="Ask for another format for these, or leave them out; none is changed to another one silently.",
            tensors=tensors,
        )


def _plan(source: Weights, asked: Mapping[str, NumberFormat], layout: Layout) -> Plan:
    known = by_number()
    planned = []
    for place in layout.places:
        tensor, format = place.tensor, known.get(place.number)
        name = asked[tensor.name].name if tensor.name in asked else None
        type = tensor.type if format is None else format.name.upper()
        planned.append(Planned(tensor=tensor, wanted=name, type=type, format=format, nbytes=place.nbytes))
    return Plan(tensors=tuple(planned), size=layout.size, before=source.size, tied=source.tied)


def _listed(tensors: Iterable[Tensor]) -> str:
    """Names with shapes, those of one kind in several layers as one: blk.{0-29}.attn_q.weight [576, 576]."""
    kinds: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for tensor in tensors:
        pattern = tensor.name if tensor.layer is None else _LAYER.sub("blk.{}.", tensor.name)
        kinds.setdefault((pattern, tensor.shape), []).extend([] if tensor.layer is None else [tensor.layer])
    shown = []
    for (pattern, shape), layers in kinds.items():
        numbers = _ranges(sorted(layers))
        where = "{" + numbers + "}" if len(layers) > 1 else numbers
        shown.append(f"{pattern.replace('{}', where)} {list(shape)}")
    return ", ".join(shown)


def _ranges(numbers: list[int]) -> str:
    """0-3,7 for 0, 1, 2, 3, 7."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in found)
