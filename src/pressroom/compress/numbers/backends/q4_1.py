"""Q4_1: 4 bits, and a float16 scale and a float16 offset for 32 weights."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, MIN, SCALE, Half, Plane
from pressroom.compress.numbers._single import OneLine
from pressroom.compress.numbers._tables import cut_shares


class Format(OneLine):
    name = "q4_1"
    ggml = 3
    block = 32
    nbytes = 20
    top = 15
    parts = (Half(SCALE, 0), Half(MIN, 2), Plane(CODE, 4, 4, 32, 16, (0, 4)))
    cuts = cut_shares(15)
