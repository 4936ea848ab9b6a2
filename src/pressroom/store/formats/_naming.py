"""A file of weights and the name it is known by, which a file in the store has lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressroom.kernel.errors import MalformedWeightsError

_MOST_TEXT = 2000
_MOST_MESSAGE = 1000
# What a terminal would obey: a header must not be able to move the cursor of whoever looks at it.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


@dataclass(frozen=True, slots=True)
class Named:
    """`name` is what messages call the file."""

    path: Path
    name: str

    def malformed(self, what: str, *, hint: str = "", **facts: Any) -> MalformedWeightsError:
        # A name inside the file may be as long as the file.
        shown = what if len(what) <= _MOST_MESSAGE else what[: _MOST_MESSAGE - 1] + "…"
        return MalformedWeightsError(
            f"{self.name!r} is not usable as weights: {shown}",
            hint=hint or "The file was altered or written by a faulty program: fetch it again from its publisher.",
            file=self.name,
            **facts,
        )


def plain(text: str) -> str:
    """Text of a header as it may be shown: without control characters and halves of characters, which no file and no
    terminal takes, and cut after 2,000 characters."""
    shown = text.translate(_CONTROLS).encode("utf-8", "replace").decode("utf-8")
    return shown if len(shown) <= _MOST_TEXT else shown[: _MOST_TEXT - 1] + "…"


def storable(value: str | float) -> str | int | float | bool:
    """A header's value as JSON and databases take it: numbers they have no room for become text."""
    if isinstance(value, str):
        return plain(value)
    # Whole numbers first: one of a thousand digits has no float to be looked at.
    return value if abs(value) < 1 << 63 and math.isfinite(value) else str(value)


def shares(elements: dict[str, int]) -> str:
    """How the elements spread over the types, most first: `Q4_1 78.9%, Q8_0 21.0%, F32 <0.1%`."""
    total = sum(elements.values()) or 1
    listed = sorted(elements.items(), key=lambda item: (-item[1], item[0]))
    percents = [(kind, 100 * count / total) for kind, count in listed]
    return ", ".join(f"{kind} {part:.1f}%" if part >= 0.05 else f"{kind} <0.1%" for kind, part in percents)


def dominant(elements: dict[str, int]) -> str | None:
    """The type that most elements have."""
    return min(elements, key=lambda kind: (-elements[kind], kind), default=None)
