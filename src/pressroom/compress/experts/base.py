"""What becomes of a feed-forward that is made of experts.

A feed-forward gives down(silu(gate(x)) * up(x)). Of experts, each a smaller one, a router takes the `used` ones with
the largest logits (router @ x) for every position, and adds them up with the softmax of these logits as weights, which
sum to 1: as llama.cpp's llama and Mixtral have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Loads:
    """How many of the positions go to which expert. `shares` (experts,) sum to `used`: each expert's share of the
    positions. Of those that are not meant to be taken always: `variation` is the standard deviation over the mean, 0
    where all have the same, and `most` the largest as a multiple of the mean."""

    shares: tuple[float, ...]
    variation: float
    most: float


def loads_of(shares: NDArray[np.floating[Any]], shared: int = 0) -> Loads:
    """The loads of experts that are taken for these shares of the positions."""
    rest = shares[shared:]
    mean = float(rest.mean()) if len(rest) else 0.0
    return Loads(
        shares=tuple(round(float(one), 6) for one in shares),
        variation=float(rest.std()) / mean if mean > 0 else 0.0,
        most=float(rest.max()) / mean if mean > 0 else 1.0,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """A feed-forward's channels as experts.

    channels: (experts, channels of each), which of the dense one's rows of gate and up, in its order. router: (experts,
    width). down: (experts, outputs, channels of each), with what makes up for the weights. error: the share of the
    dense one's output, squared, each position counting alike, that is lost on positions that nothing but the damping
    was fitted to; even: the same for a router that takes experts in turn, without a fit. loads: on these positions.
    refitted: whether `down` is more than a multiple of the dense one's.
    """

    channels: NDArray[np.intp]
    router: Floats
    down: Floats
    error: float
    even: float
    loads: Loads
    refitted: bool
