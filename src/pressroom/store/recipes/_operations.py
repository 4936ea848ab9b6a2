"""The operations a recipe can name. Each is closed for ever: stores hold files that are told by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pressroom.kernel.errors import StoreError, did_you_mean
from pressroom.store.recipe import Recipe
from pressroom.store.recipes._rows import int8_rows, row_scales
from pressroom.store.recipes.base import Shape, Source
from pressroom.store.recipes.values import SIZES, Array, narrowed, widened

_FLOATS = ("BF16", "F16", "F32")
Detail = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """`parents`: what its files are called, in order ('…' at the end: any number). `parameters`: names and defaults.

    `shape` says of which type and shape a tensor of the result is (None: the operation says nothing of it), `prepare`
    what is worked out once of the whole tensor (None: as well), `predict` the bytes (uint8) of the elements from
    `start` to `stop`, whole rows.
    """

    parents: tuple[str, ...]
    parameters: Mapping[str, Any]
    shape: Callable[[str, Sequence[Source], Mapping[str, Any]], Shape | None]
    prepare: Callable[[str, Shape, Sequence[Source], Mapping[str, Any]], Detail | None]
    predict: Callable[[str, Shape, Sequence[Source], Detail, int, int], Array]


def operation(op: str) -> Operation:
    """The operation of that name.

    Raises:
        StoreError: there is none.
    """
    found = OPERATIONS.get(op)
    if found is None:
        raise StoreError(
            f"there is no operation {op!r} for a recipe, in this version",
            hint=did_you_mean(op, OPERATIONS, otherwise=f"There are {', '.join(OPERATIONS)}."),
            asked=op,
        )
    return found


def checked(recipe: Recipe) -> Recipe:
    """The recipe with every parameter it has.

    Raises:
        StoreError: there is no such operation, it takes other parents or parameters, or a number is none.
    """
    wanted = operation(recipe.op)
    enough = len(recipe.parents) >= 2 if "…" in wanted.parents else len(recipe.parents) == len(wanted.parents)
    if not enough:
        raise StoreError(
            f"the recipe {recipe.op} takes {', '.join(wanted.parents)}; {len(recipe.parents)} parents are given",
            hint="Name the files it was made from, in this order.",
            asked=list(recipe.parents),
        )
    unknown = sorted(set(recipe.parameters) - set(wanted.parameters))
    if unknown:
        raise StoreError(
            f"the recipe {recipe.op} has no parameter {unknown[0]!r}",
            hint=f"It has {', '.join(wanted.parameters) or 'none'}.",
            asked=unknown,
        )
    parameters = {**wanted.parameters, **recipe.parameters}
    for name, value in parameters.items():
        values = value if isinstance(value, list | tuple) else [value]
        kind = str if isinstance(wanted.parameters[name], str) else int | float
        if not all(isinstance(v, kind) and (isinstance(v, str) or math.isfinite(v)) for v in values):
            raise StoreError(
                f"{name} = {value!r} of the recipe {recipe.op} is not what it takes",
                hint=f"Give one like {wanted.parameters[name]!r}." if not isinstance(value, list) else "Give numbers.",
                asked=name,
            )
    if "weights" in parameters and len(parameters["weights"]) != len(recipe.parents):
        raise StoreError(
            f"the recipe {recipe.op} has {len(recipe.parents)} parents and {len(parameters['weights'])} weights",
            hint="Give one weight a parent.",
        )
    if parameters.get("dtype", "F32") not in _FLOATS:
        raise StoreError(
            f"the recipe {recipe.op} does not make {parameters['dtype']!r}",
            hint=f"It makes {', '.join(_FLOATS)}.",
            asked=parameters["dtype"],
        )
    return Recipe(recipe.op, recipe.parents, parameters)


def _same_shape(name: str, parents: Sequence[Source], _: Mapping[str, Any]) -> Shape | None:
    """Of the first parent's type and shape."""
    return parents[0].shape(name)


def _cast_shape(name: str, parents: Sequence[Source], parameters: Mapping[str, Any]) -> Shape | None:
    found = parents[0].shape(name)
    return None if found is None else Shape(str(parameters["dtype"]), found.shape)


def _int8_shape(name: str, parents: Sequence[Source], parameters: Mapping[str, Any]) -> Shape | None:
    weight = name.removesuffix(str(parameters["suffix"]))
    if weight != name:
        found = parents[0].shape(weight)
        if found is not None and len(found.shape) == 2:
            return Shape("F32", (found.shape[0], 1))
    found = parents[0].shape(name)
    return None if found is None else Shape("I8", found.shape)


def _rows(parent: Source, name: str, shape: Shape, start: int, stop: int) -> Array:
    """Those elements of the parent as float32 rows."""
    found = parent.shape(name)
    assert found is not None  # looked at by `prepare`
    return widened(parent.read(name, start, stop), found.dtype).reshape(-1, shape.row)


def _like(parent: Source, name: str, shape: Shape, dtypes: Sequence[str] = _FLOATS) -> bool:
    found = parent.shape(name)
    return found is not None and found.shape == shape.shape and found.dtype in dtypes


# ---- cast: the parent's values in another type


def _cast_prepare(name: str, shape: Shape, parents: Sequence[Source], _: Mapping[str, Any]) -> Detail | None:
    return {} if shape.dtype in _FLOATS and _like(parents[0], name, shape) else None


def _cast(name: str, shape: Shape, parents: Sequence[Source], _: Detail, start: int, stop: int) -> Array:
    found = parents[0].shape(name)
    assert found is not None
    return narrowed(widened(parents[0].read(name, start, stop), found.dtype), shape.dtype)


# ---- absmax_int8_row: each row over a 127th of its largest magnitude, rounded; the scales are tensors of their own


def _int8_prepare(name: str, shape: Shape, parents: Sequence[Source], parameters: Mapping[str, Any]) -> Detail | None:
    suffix = str(parameters["suffix"])
    if shape.dtype == "I8" and len(shape.shape) == 2 and _like(parents[0], name, shape):
        return {}
    weight = name.removesuffix(suffix)
    found = parents[0].shape(weight) if weight != name else None
    if found is None or len(found.shape) != 2 or found.dtype not in _FLOATS or shape.dtype not in _FLOATS:
        return None
    return {"scale_of": weight} if shape.elements == found.shape[0] else None


def _int8(name: str, shape: Shape, parents: Sequence[Source], detail: Detail, start: int, stop: int) -> Array:
    if "scale_of" in detail:
        weight = str(detail["scale_of"])
        found = parents[0].shape(weight)
        assert found is not None
        scales = np.empty(stop - start, np.float32)
        step = max(1, (1 << 20) // found.row)
        for row in range(start, stop, step):
            end = min(stop, row + step)
            data = parents[0].read(weight, row * found.row, end * found.row)
            scales[row - start : end - start] = row_scales(data, found.dtype, found.row)
        return narrowed(scales, shape.dtype)
    held = parents[0].shape(name)
    assert held is not None  # looked at by `prepare`
    return int8_rows(parents[0].read(name, start, stop), held.dtype, shape.row)


# ---- magnitude_prune: the smallest share of a matrix by magnitude becomes zero


def _prune_prepare(name: str, shape: Shape, parents: Sequence[Source], parameters: Mapping[str, Any]) -> Detail | None:
    if len(shape.shape) != 2 or not _like(parents[0], name, shape, (shape.dtype,)) or shape.dtype not in _FLOATS:
        return None
    count = int(shape.elements * float(parameters["share"]))
    if not 0 < count <= shape.elements:
        return None
    size = np.abs(widened(parents[0].read(name, 0, shape.elements), shape.dtype))
    return {"border": float(np.partition(size, count - 1)[count - 1])}


def _prune(name: str, shape: Shape, parents: Sequence[Source], detail: Detail, start: int, stop: int) -> Array:
    data = parents[0].read(name, start, stop).copy()
    small = np.abs(widened(data, shape.dtype)) <= np.float32(detail["border"])
    data.reshape(-1, SIZES[shape.dtype])[small] = 0
    return data


# ---- lora_merge: base + B A * scale, added up one rank after the other in float32


def _lora_names(name: str) -> tuple[str, str]:
    module = "base_model.model." + name.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _lora_prepare(name: str, shape: Shape, parents: Sequence[Source], parameters: Mapping[str, Any]) -> Detail | None:
    base, adapter = parents
    if shape.dtype not in _FLOATS or len(shape.shape) != 2 or not _like(base, name, shape):
        return None
    a, b = (adapter.shape(part) for part in _lora_names(name))
    if a is None or b is None or len(a.shape) != 2 or a.shape[1] != shape.shape[1]:
        return None
    if b.shape != (shape.shape[0], a.shape[0]) or a.dtype not in _FLOATS or b.dtype not in _FLOATS:
        return None
    return {"scale": float(parameters["alpha"]) / a.shape[0]}


def _lora(name: str, shape: Shape, parents: Sequence[Source], detail: Detail, start: int, stop: int) -> Array:
    base, adapter = parents
    first, second = _lora_names(name)
    a_shape, b_shape = adapter.shape(first), adapter.shape(second)
    assert a_shape is not None and b_shape is not None
    rank = a_shape.shape[0]
    a = _rows(adapter, first, a_shape, 0, a_shape.elements)
    b = _rows(adapter, second, b_shape, start // shape.row * rank, -(-stop // shape.row) * rank)
    total = np.zeros((len(b), shape.row), np.float32)
    for k in range(rank):
        total += b[:, k : k + 1] * a[k]
    total *= np.float32(detail["scale"])
    total += _rows(base, name, shape, start, stop)
    return narrowed(total, shape.dtype)


# ---- linear_merge: the weighted sum of models, added up in their order in float32


def _linear_prepare(name: str, shape: Shape, parents: Sequence[Source], parameters: Mapping[str, Any]) -> Detail | None:
    if shape.dtype not in _FLOATS or not all(_like(parent, name, shape) for parent in parents):
        return None
    return {"weights": [float(weight) for weight in parameters["weights"]]}


def _linear(name: str, shape: Shape, parents: Sequence[Source], detail: Detail, start: int, stop: int) -> Array:
    total = np.zeros((stop - start) // shape.row * shape.row, np.float32).reshape(-1, shape.row)
    for parent, weight in zip(parents, detail["weights"], strict=True):
        total += _rows(parent, name, shape, start, stop) * np.float32(weight)
    return narrowed(total, shape.dtype)


OPERATIONS: dict[str, Operation] = {
    "cast": Operation(("the file cast",), {"dtype": "F32"}, _cast_shape, _cast_prepare, _cast),
    "absmax_int8_row": Operation(("the file quantised",), {"suffix": "_scale"}, _int8_shape, _int8_prepare, _int8),
    "magnitude_prune": Operation(("the file pruned",), {"share": 0.5}, _same_shape, _prune_prepare, _prune),
    "lora_merge": Operation(("the base", "the adapter"), {"alpha": 16}, _same_shape, _lora_prepare, _lora),
    "linear_merge": Operation(("the first file", "…"), {"weights": []}, _same_shape, _linear_prepare, _linear),
}
