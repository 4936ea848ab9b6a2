"""One tensor of a recipe, foretold from the tensors of its parents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pressroom.store.recipe import Parent
from pressroom.store.recipes._operations import operation
from pressroom.store.recipes.base import Shape
from pressroom.store.recipes.values import SIZES, Array

# Elements predicted at a time: what is made on the way is four times as wide as the result.
_STEP = 1 << 20


def predicted(
    op: str, name: str, open_parent: Callable[[int], Parent], parameters: Mapping[str, Any]
) -> memoryview | None:
    """The bytes of the tensor `name`, or None where the operation says nothing of it.

    Raises:
        StoreError: there is no such operation.
    """
    found = operation(op)
    filled = {**found.parameters, **parameters}
    count = len(filled["weights"]) if "…" in found.parents else len(found.parents)
    parents = [_Tensors(open_parent, number) for number in range(count)]
    shape = found.shape(name, parents, filled)
    if shape is None or not shape.elements:
        return None
    detail = found.prepare(name, shape, parents, filled)
    if detail is None:
        return None
    size = SIZES[shape.dtype]
    step = max(1, _STEP // shape.row) * shape.row
    if shape.elements <= step:
        return found.predict(name, shape, parents, detail, 0, shape.elements).data
    out = np.empty(shape.elements * size, np.uint8)
    for start in range(0, shape.elements, step):
        stop = min(shape.elements, start + step)
        out[start * size : stop * size] = found.predict(name, shape, parents, detail, start, stop)
    return out.data


class _Tensors:
    """A parent as the operations see it; each tensor is asked for once."""

    def __init__(self, open_parent: Callable[[int], Parent], number: int) -> None:
        self._open = open_parent
        self._number = number
        self._parent: Parent | None = None
        self._held: dict[str, tuple[Shape, Array] | None] = {}

    def shape(self, name: str) -> Shape | None:
        found = self._tensor(name)
        return None if found is None else found[0]

    def read(self, name: str, start: int, stop: int) -> Array:
        found = self._tensor(name)
        assert found is not None  # its shape was looked at
        size = SIZES[found[0].dtype]
        return found[1][start * size : stop * size]

    def _tensor(self, name: str) -> tuple[Shape, Array] | None:
        if name not in self._held:
            self._parent = self._open(self._number) if self._parent is None else self._parent
            try:
                array = self._parent[name]
            except KeyError:
                self._held[name] = None
            else:
                raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                self._held[name] = (Shape(array.dtype_name, tuple(array.shape)), np.asarray(raw))
        return self._held[name]
