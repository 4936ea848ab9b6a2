"""Q5_0: 5 bits from -16 to 15, and a float16 scale for 32 weights."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, SCALE, Half, Plane
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._single import OneScale
from pressroom.compress.numbers._tables import both_signs


class Format(OneScale):
    name = "q5_0"
    ggml = 6
    block = 32
    nbytes = 22
    levels = Steps(-16, 15)
    parts = (
        Half(SCALE, 0),
        Plane(CODE, 2, 1, 32, 1, tuple(range(8)), low=4),
        Plane(CODE, 6, 4, 32, 16, (0, 4)),
    )
    plain = -16
    tops = both_signs(10, 17, 0.5)
    around = (0.99, 1.01)
