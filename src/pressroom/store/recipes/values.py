"""Numbers out of a tensor's bytes and back, rounded the one way that IEEE 754 and the frameworks agree on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Bytes of an element of the types that recipes know.
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I8": 1}


def widened(data: Array, dtype: str) -> Array:
    """The values as float32, exactly. `data` is bytes (uint8), `dtype` BF16, F16, F32 or I8."""
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    kinds: dict[str, type[np.generic]] = {"F16": np.float16, "F32": np.float32, "I8": np.int8}
    return data.view(kinds[dtype]).astype(np.float32)


def narrowed(values: Array, dtype: str) -> Array:
    """float32 as the bytes of BF16, F16 or F32, to nearest, ties to even; NaN stays NaN."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "F32":
        return values.reshape(-1).view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).reshape(-1).view(np.uint8)
    bits = values.reshape(-1).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(values.reshape(-1)), quiet, rounded).astype(np.uint16).view(np.uint8)
