"""The search for the best file within a budget of bytes, milliseconds a token, or perplexity lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.compress.search.base import Clock, Goal, Measure, Score, Tried, budget, most_loss
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.search.running import Outcome, searched
    from pressroom.compress.search.searching import Search, Tools, must_be_possible

__all__ = [
    "Clock",
    "Goal",
    "Measure",
    "Outcome",
    "Score",
    "Search",
    "Tools",
    "Tried",
    "budget",
    "most_loss",
    "must_be_possible",
    "searched",
]

__getattr__ = _lazily(
    __name__,
    {
        **dict.fromkeys(("Outcome", "searched"), "running"),
        **dict.fromkeys(("Search", "Tools", "must_be_possible"), "searching"),
    },
)
