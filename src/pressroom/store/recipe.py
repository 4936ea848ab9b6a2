"""How a file of weights was made from others, exactly enough to be made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: The tensors of one parent by name, as NumPy arrays.
Parent = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """An operation on files that the store holds: `parents` are their digests, `parameters` are JSON values.

    It says what the tensors of the result should be. What they really are is kept as the difference from that, which
    is nothing where the recipe is right; a wrong recipe costs space and never changes a byte.
    """

    op: str
    parents: tuple[str, ...]
    parameters: dict[str, Any] = field(default_factory=dict)


def prediction(recipe: Recipe, name: str, open_parent: Callable[[int], Parent]) -> memoryview | None:
    """The bytes that the tensor `name` has by the recipe; None where it says nothing of this tensor.

    `open_parent(n)` are the tensors of the nth parent. The same recipe must predict the same bytes on every machine and
    in every later version, or what was stored as the difference from them cannot be read.

    Raises:
        StoreError: this version does not know the operation.
    """
    from pressroom.store.recipes import predicted

    return predicted(recipe.op, name, open_parent, recipe.parameters)
