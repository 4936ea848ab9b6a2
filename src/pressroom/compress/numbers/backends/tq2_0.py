"""TQ2_0: -1, 0 or 1 in 2 bits, and a float16 scale for 256 weights."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, SCALE, Half, Plane
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._single import OneScale
from pressroom.compress.numbers._tables import TERNARY_TOPS


class Format(OneScale):
    name = "tq2_0"
    ggml = 35
    block = 256
    nbytes = 66
    levels = Steps(-1, 1)
    parts = (Plane(CODE, 0, 2, 256, 32, (0, 2, 4, 6)), Half(SCALE, 64))
    plain = 1
    tops = TERNARY_TOPS
