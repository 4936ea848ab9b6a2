"""Number formats: how weights are kept in fewer bits, in GGUF files and elsewhere, and the best rounding to each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.compress.numbers.base import Grid, NumberFormat, Piece, formats, number_format
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.numbers._double import DoubleQuantised, double_quantised
    from pressroom.compress.numbers._uniform import Coded, Uniform

__all__ = [
    "Coded",
    "DoubleQuantised",
    "Grid",
    "NumberFormat",
    "Piece",
    "Uniform",
    "double_quantised",
    "formats",
    "number_format",
]

__getattr__ = _lazily(
    __name__,
    {
        "Coded": "_uniform",
        "DoubleQuantised": "_double",
        "Uniform": "_uniform",
        "double_quantised": "_double",
    },
)
