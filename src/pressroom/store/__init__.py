"""Bytes by digest: kept whole or not at all, checked when asked, weights understood and alike ones kept once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily
from pressroom.store._open import open_store
from pressroom.store.base import Blob, Kept, Store, Swept, Usage, checked_digest, is_digest
from pressroom.store.formats import (
    TensorInfo,
    WeightsInfo,
    inspect,
    inspect_folder,
    is_pickle_name,
    sniff,
)
from pressroom.store.recipe import Recipe

if TYPE_CHECKING:
    from pressroom.store._tensors import Tensor, Tensors

__all__ = [
    "Blob",
    "Kept",
    "Recipe",
    "Store",
    "Swept",
    "Tensor",
    "TensorInfo",
    "Tensors",
    "Usage",
    "WeightsInfo",
    "checked_digest",
    "inspect",
    "inspect_folder",
    "is_digest",
    "is_pickle_name",
    "open_store",
    "sniff",
]

__getattr__ = _lazily(__name__, {"Tensor": "_tensors", "Tensors": "_tensors"})
