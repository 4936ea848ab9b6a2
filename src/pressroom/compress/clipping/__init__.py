"""Static ranges: what is seen at the inputs of layers, where to cut it off, and int8 layers that are made with it.

with prepare(model) as prepared:            # observers at the inputs of the linear layers
    for tokens in windows:                  # calibrate: run text
        model(tokens)
int8, report = convert(prepared, method="kl")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.clipping._converting import Converted, LayerReport, convert
    from pressroom.compress.clipping._int8 import Int8Linear
    from pressroom.compress.clipping._observer import Observer
    from pressroom.compress.clipping._preparing import Prepared, prepare
    from pressroom.compress.clipping.base import METHODS, Affine, Method, Range

__all__ = [
    "METHODS",
    "Affine",
    "Converted",
    "Int8Linear",
    "LayerReport",
    "Method",
    "Observer",
    "Prepared",
    "Range",
    "convert",
    "prepare",
]

__getattr__ = _lazily(
    __name__,
    {
        "METHODS": "base",
        "Affine": "base",
        "Converted": "_converting",
        "Int8Linear": "_int8",
        "LayerReport": "_converting",
        "Method": "base",
        "Observer": "_observer",
        "Prepared": "_preparing",
        "Range": "base",
        "convert": "_converting",
        "prepare": "_preparing",
    },
)
