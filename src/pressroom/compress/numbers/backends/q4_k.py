"""Q4_K: 4 bits, and 6-bit scales and offsets for 32 weights in super-blocks of 256."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, MIN, SCALE, Half, Plane
from pressroom.compress.numbers._super import SuperLine
from pressroom.compress.numbers._tables import SIX_BIT_PAIRS, cut_shares


class Format(SuperLine):
    name = "q4_k"
    ggml = 12
    block = 256
    nbytes = 144
    subs = 8
    top = 15
    sub_top = 63
    parts = (Half(SCALE, 0), Half(MIN, 2), *SIX_BIT_PAIRS, Plane(CODE, 16, 4, 256, 32, (0, 4)))
    cuts = cut_shares(15)
    starts = (1.0, 0.97, 0.94)
