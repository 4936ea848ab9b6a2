"""Q2_K: 2 bits, and 4-bit scales and offsets for 16 weights in super-blocks of 256."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, MIN, SCALE, SUB_MIN, SUB_SCALE, Half, Plane
from pressroom.compress.numbers._super import SuperLine
from pressroom.compress.numbers._tables import cut_shares


class Format(SuperLine):
    name = "q2_k"
    ggml = 10
    block = 256
    nbytes = 84
    subs = 16
    top = 3
    sub_top = 15
    parts = (
        Plane(SUB_SCALE, 0, 4, 16, 16),
        Plane(SUB_MIN, 0, 4, 16, 16, (4,)),
        Plane(CODE, 16, 2, 256, 32, (0, 2, 4, 6)),
        Half(SCALE, 80),
        Half(MIN, 82),
    )
    cuts = cut_shares(3, (-0.3, 0, 0.3, 0.6, 0.9))
    starts = (1.0, 0.9)
    rounds = 3
