"""Number formats: how weights are kept in fewer bits, as GGUF files have them, and the best rounding to each."""

from __future__ import annotations

from pressroom.compress.numbers.base import Grid, NumberFormat, Piece, formats, number_format

__all__ = ["Grid", "NumberFormat", "Piece", "formats", "number_format"]
