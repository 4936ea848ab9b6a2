"""What a search is given and gives back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pressroom.kernel import RecipeError

Unit = Literal["bytes", "ms", "loss"]

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_BUDGET = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%]*)\s*")


@dataclass(frozen=True, slots=True)
class Goal:
    """What the file must keep to: at most `limit` bytes, or milliseconds a token when one client is served, and of
    those the one that loses least; or ("loss") at most this share of perplexity lost, and of those the smallest."""

    unit: Unit
    limit: float

    @property
    def name(self) -> str:
        """For the name of a version: 105.5MB, 12ms, 2percent."""
        if self.unit == "bytes":
            return f"{self.limit / 1e6:g}MB"
        return f"{self.limit:g}ms" if self.unit == "ms" else f"{100 * self.limit:g}percent"

    def __str__(self) -> str:
        if self.unit == "bytes":
            return f"{self.limit / 1e6:.3f} MB"
        return f"{self.limit:g} ms a token" if self.unit == "ms" else f"{self.limit:.3%} more perplexity"


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How far a file is from the one that it was made of, on the search's own text: the divergence in nats, its
    standard error by windows, its mean in each window, and both perplexities."""

    kl: float
    kl_stderr: float | None
    perplexity: float
    reference: float
    kl_of_windows: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        """The share of perplexity that is lost; below 0 where it fell."""
        return self.perplexity / self.reference - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A file that was written and measured: what of it was predicted, and what came out. `formats` says for each
    tensor that changed the format it is in."""

    number: int
    why: str
    formats: Mapping[str, str]
    size: int
    predicted: float
    score: Score
    ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`, and a run's record."""
        return {
            "number": self.number,
            "why": self.why,
            "bytes": self.size,
            "predicted_kl": self.predicted,
            "kl": self.score.kl,
            "kl_stderr": self.score.kl_stderr,
            "perplexity": self.score.perplexity,
            "loss": self.score.loss,
            **({} if self.ms is None else {"ms": self.ms}),
        }


#: Says how far a file is from what it was made of.
Measure = Callable[[Path], Score]
#: Says how many milliseconds a token takes in a file.
Clock = Callable[[Path], float]


def budget(text: str) -> Goal:
    """The goal that a budget in words is: "100MB" (10⁶ bytes; MiB are 2²⁰), "12ms".

    Raises:
        RecipeError: it is neither.
    """
    found = _BUDGET.fullmatch(text)
    if found and float(found[1]) > 0:
        number, unit = float(found[1]), found[2].upper()
        if unit == "MS":
            return Goal("ms", number)
        if unit in _SIZES:
            return Goal("bytes", float(int(number * _SIZES[unit])))
    raise RecipeError(
        f"the budget {text!r} is neither a size nor a time",
        hint="Write 100MB (or MiB, GB, GiB), or 12ms for the milliseconds that a token may take.",
        asked=text,
    )


def most_loss(text: str) -> Goal:
    """The goal that a share of lost perplexity in words is: "2%", "0.02".

    Raises:
        RecipeError: it is none, or not between 0 and 1.
    """
    found = _BUDGET.fullmatch(text)
    if found and found[2] in ("", "%"):
        share = float(found[1]) / (100 if found[2] else 1)
        if 0 < share < 1:
            return Goal("loss", share)
    raise RecipeError(
        f"a loss of {text!r} is no share of the perplexity",
        hint="Write 2% or 0.02: how much higher the perplexity may be than that of the version it is made of.",
        asked=text,
    )
