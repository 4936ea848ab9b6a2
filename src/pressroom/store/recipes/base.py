"""What a recipe is: how a file was made from others, so exactly that the store keeps only where that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pressroom.store.recipes.values import Array


@dataclass(frozen=True, slots=True)
class Recipe:
    """One known operation on held files.

    `op` is a name in `OPERATIONS`, `parents` the digests of the files it took, in the order the operation names them,
    `parameters` its numbers (JSON). A recipe is a hint: what it predicts wrongly is kept as a difference, so a file
    that was made in another way is still given back bit for bit, it only costs more.
    """

    op: str
    parents: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shape:
    """The type and shape of a tensor; `dtype` as the readers of formats name it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def row(self) -> int:
        """Elements of the innermost dimension, 1 of a scalar."""
        return self.shape[-1] if self.shape else 1

    @property
    def elements(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count


class Source(Protocol):
    """The tensors of one parent."""

    def shape(self, name: str) -> Shape | None:
        """What the tensor is, or None where the parent has none of that name."""

    def read(self, name: str, start: int, stop: int) -> Array:
        """The bytes (uint8) of the elements `start` to `stop`, counted over the whole tensor."""
