"""Fewer bytes for the same answers: number formats, rounding, and what it costs, measured on the written file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.making import Made, compress, planned
    from pressroom.compress.recipe import CalibrationText, Recipe, Step, canonical, parse, read_recipe
    from pressroom.compress.tensors import TensorReport

__all__ = [
    "CalibrationText",
    "Made",
    "Recipe",
    "Step",
    "TensorReport",
    "canonical",
    "compress",
    "parse",
    "planned",
    "read_recipe",
]

__getattr__ = _lazily(
    __name__,
    {
        "CalibrationText": "recipe",
        "Made": "making",
        "Recipe": "recipe",
        "Step": "recipe",
        "TensorReport": "tensors",
        "canonical": "recipe",
        "compress": "making",
        "parse": "recipe",
        "planned": "making",
        "read_recipe": "recipe",
    },
)
