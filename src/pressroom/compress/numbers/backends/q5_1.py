"""Q5_1: 5 bits, and a float16 scale and a float16 offset for 32 weights."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, MIN, SCALE, Half, Plane
from pressroom.compress.numbers._single import OneLine
from pressroom.compress.numbers._tables import cut_shares


class Format(OneLine):
    name = "q5_1"
    ggml = 7
    block = 32
    nbytes = 24
    top = 31
    parts = (
        Half(SCALE, 0),
        Half(MIN, 2),
        Plane(CODE, 4, 1, 32, 1, tuple(range(8)), low=4),
        Plane(CODE, 8, 4, 32, 16, (0, 4)),
    )
    cuts = cut_shares(31)
