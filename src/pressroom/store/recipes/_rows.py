"""Rows quantised to int8: by the codec's kernel where there is one, else by NumPy, the same bytes."""

from __future__ import annotations

import numpy as np

from pressroom.store import codec
from pressroom.store.recipes.values import Array, widened

_MOST = np.float32(127)


def row_scales(data: Array, dtype: str, row: int) -> Array:
    """The 127th part of the largest magnitude of each row, float32. `data`: bytes of BF16, F16 or F32 values."""
    kernel = codec.kernel()
    if kernel is not None:
        values = _values(data, dtype)
        scales = np.empty(len(values) // row, np.float32)
        if kernel.int8_rows(values, row, None, scales):
            return scales
    made: Array = np.abs(widened(data, dtype).reshape(-1, row)).max(axis=1) / _MOST
    return made


def int8_rows(data: Array, dtype: str, row: int) -> Array:
    """Each row over its scale, rounded to the nearest, as the bytes of int8. What is no number becomes 0."""
    kernel = codec.kernel()
    if kernel is not None:
        values = _values(data, dtype)
        out = np.empty(len(values), np.int8)
        kernel.int8_rows(values, row, out, None)
        return out.view(np.uint8)
    values = widened(data, dtype).reshape(-1, row)
    scale = np.abs(values).max(axis=1, keepdims=True) / _MOST
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.rint(np.divide(values, scale, out=values), out=values)
    # Rows of zeros, and those with a value that is none, have no scale to divide by.
    if not (np.isfinite(scale).all() and scale.all()):
        quotient = np.nan_to_num(quotient, nan=0.0)
    made: Array = np.clip(quotient, -127, 127).astype(np.int8).reshape(-1).view(np.uint8)
    return made


def _values(data: Array, dtype: str) -> Array:
    """As the kernel takes them: float32, or bfloat16 as uint16; aligned."""
    if dtype == "F16":
        return widened(data, dtype)
    size = 2 if dtype == "BF16" else 4
    if data.ctypes.data % size:
        data = data.copy()
    return data.view(np.uint16 if size == 2 else np.float32)
