"""What the drawings of the command line share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from xml.sax.saxutils import escape


def said(text: str) -> str:
    """A text as it may stand in a drawing: printable, and nothing that is markup."""
    return escape("".join(letter for letter in text if letter.isprintable()), {'"': "&quot;"})


def ticks(highest: float) -> list[float]:
    """Round numbers from zero to the first that is not below the highest value."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 5
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * nice for nice in (1, 2, 5, 10) if scale * nice >= rough)
    return [number * step for number in range(math.ceil(highest / step) + 1)]


def names(ends: Iterable[tuple[float, float, str, str]], *, near: float, right: float) -> list[str]:
    """The names of lines `right` of their ends (x, y, name, colour), moved apart where they would lie on each other:
    at least `near` between two."""
    drawn = []
    below = math.inf
    for px, py, name, colour in sorted(ends, key=lambda end: -end[1]):
        at = min(py, below - near)
        below = at
        drawn.append(
            f'<text class="name" x="{px + right:.1f}" y="{at + 4:.1f}" style="fill:{colour}">{said(name)}</text>'
        )
    return drawn
