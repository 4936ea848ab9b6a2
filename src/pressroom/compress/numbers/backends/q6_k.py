"""Q6_K: 6 bits from -32 to 31, and 8-bit scales for 16 weights in super-blocks of 256."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, SCALE, SUB_SCALE, Half, Plane
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._super import SuperScale
from pressroom.compress.numbers._tables import both_signs


class Format(SuperScale):
    name = "q6_k"
    ggml = 14
    block = 256
    nbytes = 210
    subs = 16
    levels = Steps(-32, 31)
    sub_levels = Steps(-128, 127)
    parts = (
        Plane(CODE, 0, 4, 256, 64, (0, 4)),
        Plane(CODE, 128, 2, 256, 32, (0, 2, 4, 6), low=4),
        Plane(SUB_SCALE, 192, 8, 16, 16, flip=0x80),
        Half(SCALE, 208),
    )
    plain = -32
    tops = both_signs(20, 33, 1)
