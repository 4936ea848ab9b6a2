"""Rounding and pruning that know what enters a layer: what is lost in one weight, those after it make up for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pressroom.compress.rounding.base import Order, Pattern, Per, Pruned, Rounded
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.rounding._curvature import Curvature, needs_torch
    from pressroom.compress.rounding._pruning import magnitude, pruned, wanda
    from pressroom.compress.rounding._quantising import rounded
    from pressroom.compress.rounding._refit import least_squares_refit

__all__ = [
    "Curvature",
    "Order",
    "Pattern",
    "Per",
    "Pruned",
    "Rounded",
    "least_squares_refit",
    "magnitude",
    "needs_torch",
    "pruned",
    "rounded",
    "wanda",
]

_MODULES = {
    "Curvature": "_curvature",
    "least_squares_refit": "_refit",
    "magnitude": "_pruning",
    "needs_torch": "_curvature",
    "pruned": "_pruning",
    "rounded": "_quantising",
    "wanda": "_pruning",
}

_find = _lazily(__name__, _MODULES)


def __getattr__(name: str) -> Any:
    return _find(name)
