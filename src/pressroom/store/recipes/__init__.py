"""Exact recipes: a tensor predicted from its parents, so that only what was predicted wrongly is stored.

Only IEEE 754 operations on single elements in a fixed order: no matrix product of a library, no fused multiply-add, so
every machine predicts the same bits. `pressroom.store.Recipe` names an operation; what it says of a tensor is asked
when the file is put and whenever it is restored.
"""

from __future__ import annotations

from pressroom.store.recipes._guessing import guesses
from pressroom.store.recipes._operations import OPERATIONS, checked
from pressroom.store.recipes._predicting import predicted

__all__ = ["OPERATIONS", "checked", "guesses", "predicted"]
