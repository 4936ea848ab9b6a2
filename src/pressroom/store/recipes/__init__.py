"""Exact recipes: a tensor predicted from its parents, so that only what was predicted wrongly is stored.

Only IEEE 754 operations on single elements in a fixed order: no matrix product of a library, no fused multiply-add, so
every machine predicts the same bits. Two steps, so that big tensors are predicted block by block:

- `prepare` looks at the parents once, when a file is put, and says what to remember of this tensor (or that the recipe
  says nothing about it);
- `predict` gives the bytes of a range of elements, when the file is put and whenever it is restored.
"""

from __future__ import annotations

from pressroom.store.recipes._operations import OPERATIONS, checked, predict, prepare
from pressroom.store.recipes.base import Recipe, Shape, Source

__all__ = ["OPERATIONS", "Recipe", "Shape", "Source", "checked", "predict", "prepare"]
