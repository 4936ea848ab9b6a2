"""Answers that were given before, given again to equal questions and, where a deployment says so, to ones alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway.cache.base import CachePolicy, MeaningPolicy, directives
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway.cache._cache import Cache, Figures
    from pressroom.gateway.cache._hit import Hit
    from pressroom.gateway.cache._keys import Key
    from pressroom.gateway.cache._meaning import Embed

__all__ = ["Cache", "CachePolicy", "Embed", "Figures", "Hit", "Key", "MeaningPolicy", "directives"]

# Loaded when used: NumPy comes with them, and a deployment file is read without.
__getattr__ = _lazily(
    __name__, {"Cache": "_cache", "Embed": "_meaning", "Figures": "_cache", "Hit": "_hit", "Key": "_keys"}
)
