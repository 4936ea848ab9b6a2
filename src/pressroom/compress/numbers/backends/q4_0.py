"""Q4_0: 4 bits from -8 to 7, and a float16 scale for 32 weights."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, SCALE, Half, Plane
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._single import OneScale
from pressroom.compress.numbers._tables import both_signs


class Format(OneScale):
    name = "q4_0"
    ggml = 2
    block = 32
    nbytes = 18
    levels = Steps(-8, 7)
    parts = (Half(SCALE, 0), Plane(CODE, 2, 4, 32, 16, (0, 4)))
    plain = -8
    tops = both_signs(4, 9, 0.5)
    around = (0.97, 0.99, 1.01, 1.03)
