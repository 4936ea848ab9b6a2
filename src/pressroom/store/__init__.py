"""Bytes by digest: kept whole or not at all, checked when asked, weights understood from their headers."""

from __future__ import annotations

from pressroom.store._open import open_store
from pressroom.store.base import Blob, Store, checked_digest, is_digest
from pressroom.store.formats import (
    TensorInfo,
    WeightsInfo,
    inspect,
    inspect_folder,
    is_pickle_name,
    sniff,
)

__all__ = [
    "Blob",
    "Store",
    "TensorInfo",
    "WeightsInfo",
    "checked_digest",
    "inspect",
    "inspect_folder",
    "is_digest",
    "is_pickle_name",
    "open_store",
    "sniff",
]
