"""Columns made larger before they are rounded, and what feeds them smaller: the same model, and less is lost.

    for pair in pairs(source):                       # a norm and the layers behind it, and so on
        found = best_scales(weights, moments, number_format("q4_0"))
    factors(...)                                     # what each tensor is multiplied with, along rows and columns

The idea is that of AWQ (arXiv 2306.00978): a column that much enters is rounded relatively more finely when it is
multiplied by s before, and its input divided by s; the division is folded into the norm or the layer before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.scaling._pairs import ARCHITECTURES, Pair, check_architecture, factors, pairs
    from pressroom.compress.scaling._searching import Scales, best_scales

__all__ = ["ARCHITECTURES", "Pair", "Scales", "best_scales", "check_architecture", "factors", "pairs"]

__getattr__ = _lazily(
    __name__,
    {
        "ARCHITECTURES": "_pairs",
        "Pair": "_pairs",
        "Scales": "_searching",
        "best_scales": "_searching",
        "check_architecture": "_pairs",
        "factors": "_pairs",
        "pairs": "_pairs",
    },
)
