"""How much the model's predictions hang on each part of it: a part is made worse on purpose, and the file measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.numbers import NumberFormat, number_format
from pressroom.compress.search._errors import Errors, fitting
from pressroom.compress.weights import Changed, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pressroom.compress.weights import Tensor, Weights

# Groups of like tensors in neighbouring layers that are weighed one by one: as many as can be had within this.
_GROUPS = 48
# Bits a weight that a group is rounded to, plainly, to be weighed: enough to be seen, and few enough that what comes
# out still grows with what is done (twice the error, twice the divergence).
_BITS = 4.5
# Rows that are in memory as numbers.
_ROWS = 4_096
_FLOATS = ("f32", "f16", "bf16")


def groups(tensors: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The tensors by what they are for and how deep they lie: "ffn_down 5-9". What is in no layer is alone."""
    parts: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        parts.setdefault(tensor.part if tensor.layer is not None else tensor.name, []).append(tensor)
    alone = sum(found[0].layer is None for found in parts.values())
    each = max(1, (_GROUPS - alone) // max(1, len(parts) - alone))
    result: dict[str, list[Tensor]] = {}
    for part, members_of in parts.items():
        found = sorted(members_of, key=lambda one: one.layer or 0)  # files have 10 before 2
        for some in np.array_split(np.arange(len(found)), min(each, len(found))):
            members = [found[int(at)] for at in some]
            if members[0].layer is None:
                result[part] = members
            else:
                layers = f"{members[0].layer}-{members[-1].layer}" if len(members) > 1 else f"{members[0].layer}"
                result[f"{part} {layers}"] = members
    return result


def probe(path: Path, source: Weights, tensors: Sequence[Tensor], errors: Errors) -> float:
    """Write the source with these tensors rounded plainly, as numbers that are not rounded any further; returns the sum
    of the shares of their outputs that they lose."""
    lost = 0.0
    changed = {}
    for tensor in tensors:
        format = _coarse(tensor)
        if format is None:
            continue
        kept = _kept_as(tensor)
        changed[tensor.name] = Changed(kept, _worse(source, tensor, format, kept, errors))
        lost += _loss(source, tensor, format, errors)
    write(path, source, changed)
    return lost


def weigh(measured: Mapping[str, tuple[float, float]], members: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """For each tensor the divergence that a unit of its loss costs, from (divergence, loss) of each group."""
    found = {}
    for name, tensors in members.items():
        divergence, lost = measured[name]
        each = max(divergence, 0.0) / lost if lost > 0 else 0.0
        found.update({tensor.name: each for tensor in tensors})
    return found


def _coarse(tensor: Tensor) -> NumberFormat | None:
    """What it is rounded to: of those of at least so many bits the smallest, else the largest."""
    found = fitting(tensor)
    enough = [one for one in found if one.bits >= _BITS]
    return enough[-1] if enough else (found[0] if found else None)


def _kept_as(tensor: Tensor) -> NumberFormat:
    same = tensor.type.lower()
    return number_format(same if same in _FLOATS else "f16")


def _worse(
    source: Weights, tensor: Tensor, format: NumberFormat, kept: NumberFormat, errors: Errors
) -> Callable[[], Iterator[NDArray[np.uint8]]]:
    def pieces() -> Iterator[NDArray[np.uint8]]:
        importance = errors.curvature(tensor).diagonal
        for start in range(0, tensor.rows, _ROWS):
            rows = source.rows(tensor.name, start, min(start + _ROWS, tensor.rows))
            yield kept.encode(format.decode(format.encode(rows, importance)))

    return pieces


def _loss(source: Weights, tensor: Tensor, format: NumberFormat, errors: Errors) -> float:
    curvature = errors.curvature(tensor)
    lost = whole = 0.0
    for start in range(0, tensor.rows, _ROWS):
        rows = source.rows(tensor.name, start, min(start + _ROWS, tensor.rows))
        values = format.decode(format.encode(rows, curvature.diagonal))
        lost += float(curvature.losses(rows - values).sum())
        whole += float(curvature.losses(rows).sum())
    return lost / whole if whole > 0 else 0.0
