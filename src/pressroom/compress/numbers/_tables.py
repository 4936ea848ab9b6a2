"""Tables that several formats share: levels, places of bits, and what a search tries.

How many candidates a search has was chosen by measuring, on weights with heavy tails, with and without importance: with
4 and 5 bits three times as many take about 1 % from the error that is left, for three times the time.
"""

from __future__ import annotations

from collections.abc import Sequence

from pressroom.compress.numbers._bits import SUB_MIN, SUB_SCALE, Plane
from pressroom.compress.numbers._levels import Codebook

# The levels of IQ4_NL and IQ4_XS as ggml has them.
NON_LINEAR = Codebook((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))

# The levels of NF4: the middles of 16 parts of a normal distribution that are as likely as each other, eight on either
# side with 0 twice, brought to -1 … 1; as the code of QLoRA (arXiv 2305.14314) has them.
NORMAL_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)

# The twelve bytes from byte 4 on of Q4_K and Q5_K: eight sub-scales and eight sub-mins of 6 bits. The first four of
# each have a byte of their own, whose upper two bits are the upper two of the last four.
SIX_BIT_PAIRS = (
    Plane(SUB_SCALE, 4, 6, 4, 4),
    Plane(SUB_SCALE, 4, 2, 4, 4, (6,), first=4, low=4),
    Plane(SUB_MIN, 8, 6, 4, 4),
    Plane(SUB_MIN, 8, 2, 4, 4, (6,), first=4, low=4),
    Plane(SUB_SCALE, 12, 4, 4, 4, first=4),
    Plane(SUB_MIN, 12, 4, 4, 4, (4,), first=4),
)

# With three levels most weights lie beyond the outermost: the extreme of 256 normal weights belongs on about 2.
TERNARY_TOPS = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.25, 2.5, 2.8, 3.2, 3.8, 4.6)

# For the levels above: the outer ones themselves, and what is between them and a little beyond.
NON_LINEAR_TOPS = (
    *(-139, -133, -127, -121, -115.5, -109, -104, -97, -90, -83, -74, -65),
    *(53, 61, 69, 76, 83, 89, 95, 101, 107, 113, 119, 125),
)


def both_signs(first: float, last: float, step: float) -> tuple[float, ...]:
    """The levels from `first` to `last`, below zero and above: which side the extreme weight is best put on depends on
    what is at the other end of the block."""
    above = tuple(first + step * number for number in range(int((last - first) / step) + 1))
    return (*(-level for level in above), *above)


def cut_shares(top: int, levels: Sequence[float] = (-1, -0.5, 0, 0.5, 1, 2)) -> tuple[tuple[float, float], ...]:
    """Shares of the range of a block to cut off below and above: as many levels as said, of `top` in all. Below 0 the
    range is widened."""
    return tuple((below / top, above / top) for below in levels for above in levels)
