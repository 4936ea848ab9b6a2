"""BF16: the upper half of a float32: the same range, 7 bits of fraction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.numbers._floats import FloatFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST = np.uint16(0x7F7F)


class Format(FloatFormat):
    name = "bf16"
    ggml = 30
    nbytes = 2
    stored = "<u2"

    def _to_stored(self, rows: NDArray[np.float32]) -> NDArray[np.generic]:
        bits = rows.view(np.uint32)
        # To the nearest, and of two that are as near, to the even one. Finite numbers: the sum does not overflow.
        upper = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
            np.uint16
        )
        sign = upper & np.uint16(0x8000)
        rounded: NDArray[np.uint16] = np.minimum(upper ^ sign, _LARGEST) | sign
        return rounded

    def _from_stored(self, stored: NDArray[np.generic]) -> NDArray[np.float32]:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
