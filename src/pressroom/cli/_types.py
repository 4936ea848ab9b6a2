"""Kinds of values that options of several commands have."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.FloatRange):
    """A number from `least` to `most`. NaN is none: it is neither below nor above anything, and passes as every one."""

    def __init__(self, least: float, most: float = 1e9) -> None:
        super().__init__(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return found


#: What fits into 32 bits, in engines and in databases.
MOST = 2**31 - 1
