"""What an operation sees of the files it is told from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pressroom.store.recipes.values import Array


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
