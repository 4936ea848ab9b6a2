"""Q3_K: 3 bits from -4 to 3, and 6-bit scales for 16 weights in super-blocks of 256."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, SCALE, SUB_SCALE, Half, Plane
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._super import SuperScale
from pressroom.compress.numbers._tables import both_signs


class Format(SuperScale):
    name = "q3_k"
    ggml = 11
    block = 256
    nbytes = 110
    subs = 16
    levels = Steps(-4, 3)
    sub_levels = Steps(-32, 31)
    parts = (
        Plane(CODE, 0, 1, 256, 32, tuple(range(8)), low=2),
        Plane(CODE, 32, 2, 256, 32, (0, 2, 4, 6)),
        Plane(SUB_SCALE, 96, 4, 16, 8, (0, 4)),
        Plane(SUB_SCALE, 104, 2, 16, 4, (0, 2, 4, 6), low=4),
        Half(SCALE, 108),
    )
    plain = -4
    tops = both_signs(1, 4.5, 0.5)
