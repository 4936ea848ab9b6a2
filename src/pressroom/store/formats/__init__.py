"""Formats of weights: one file each, headers only, every number in them distrusted."""

from __future__ import annotations

from pressroom.store.formats._inspect import inspect
from pressroom.store.formats._pickle import is_pickle_name
from pressroom.store.formats._sniff import sniff
from pressroom.store.formats.base import TensorInfo, WeightsInfo
from pressroom.store.formats.folder import inspect_folder

__all__ = ["TensorInfo", "WeightsInfo", "inspect", "inspect_folder", "is_pickle_name", "sniff"]
