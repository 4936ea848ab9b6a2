"""One choice for each tensor so that the sum of what is lost is least within a limit: solved, not guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Steps that the limit is cut into where the costs have no common measure that is coarse enough. 211 tensors with 6
# choices each take half a second at this many.
_STEPS = 200_000


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to keep a tensor: `name` of the format ('' as it is), what it costs (bytes or nanoseconds) and loses."""

    name: str
    cost: int
    loss: float


def useful(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Those than which no other costs no more and loses no more, cheapest first."""
    found: list[Choice] = []
    for one in sorted(choices, key=lambda one: (one.cost, one.loss, one.name)):
        if not found or one.loss < found[-1].loss:
            found.append(one)
    return tuple(found)


def allocate(tensors: Mapping[str, Sequence[Choice]], limit: int) -> dict[str, Choice] | None:
    """The choices of least loss in all whose costs are at most `limit` in all; None where not even the cheapest are.

    Dynamic programming over the limit, exact where the differences of the costs have a common divisor of at least
    1/200,000 of what is to be given out; else costs are rounded up to so many steps, so that the limit always holds.
    Equal losses are settled by the order of the tensors and choices: the same input gives the same result.
    """
    ways = {name: useful(choices) for name, choices in tensors.items()}
    least = sum(choices[0].cost for choices in ways.values())
    if least > limit:
        return None
    spare = min(limit - least, sum(choices[-1].cost - choices[0].cost for choices in ways.values()))
    more = [choice.cost - choices[0].cost for choices in ways.values() for choice in choices[1:]]
    unit = max(math.gcd(*more), 1) if more else 1
    if spare // unit > _STEPS:
        unit = -(-spare // _STEPS)
    steps = spare // unit + 1
    # The least loss within so many steps of those tensors that were gone through, and which choice that took.
    best = np.zeros(steps)
    taken = []
    for choices in ways.values():
        found = best + choices[0].loss
        which = np.zeros(steps, dtype=np.uint8)
        for number, choice in enumerate(choices[1:], start=1):
            wide = -(-(choice.cost - choices[0].cost) // unit)
            if wide >= steps:
                break
            other = best[: steps - wide] + choice.loss
            better = other < found[wide:]
            found[wide:][better] = other[better]
            which[wide:][better] = number
        best = found
        taken.append((choices, which))
    result: dict[str, Choice] = {}
    at = steps - 1
    for name, (choices, which) in zip(reversed(ways), reversed(taken), strict=True):
        choice = choices[which[at]]
        result[name] = choice
        at -= -(-(choice.cost - choices[0].cost) // unit)
    return {name: result[name] for name in ways}


def cheapest(tensors: Mapping[str, Sequence[Choice]], most: float) -> dict[str, Choice]:
    """The choices of least cost whose losses are at most `most` in all; where that cannot be, those of least loss.

    Found by halving the limit that `allocate` is given, to within 1/1000 of what there is to give out.
    """
    ways = {name: useful(choices) for name, choices in tensors.items()}
    low = sum(choices[0].cost for choices in ways.values())
    high = sum(choices[-1].cost for choices in ways.values())
    found = {name: choices[-1] for name, choices in ways.items()}
    grain = max(1, (high - low) // 1000)
    while high - low > grain:
        middle = (low + high) // 2
        tried = allocate(ways, middle)
        if tried is not None and sum(one.loss for one in tried.values()) <= most:
            found, high = tried, middle
        else:
            low = middle
    return found
