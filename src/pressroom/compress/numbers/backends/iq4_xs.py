"""IQ4_XS: the levels of IQ4_NL, with 6-bit scales for 32 weights in super-blocks of 256."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, SCALE, SUB_SCALE, Half, Plane
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._super import SuperScale
from pressroom.compress.numbers._tables import NON_LINEAR, NON_LINEAR_TOPS


class Format(SuperScale):
    name = "iq4_xs"
    ggml = 23
    block = 256
    nbytes = 136
    subs = 8
    levels = NON_LINEAR
    sub_levels = Steps(-32, 31)
    parts = (
        Half(SCALE, 0),
        Plane(SUB_SCALE, 2, 2, 8, 1, (0, 2, 4, 6), low=4),
        Plane(SUB_SCALE, 4, 4, 8, 1, (0, 4)),
        Plane(CODE, 8, 4, 256, 16, (0, 4)),
    )
    plain = -127
    tops = NON_LINEAR_TOPS
    around = (0.97, 0.99, 1.01, 1.03)
    starts = (1.0, 0.97, 0.94)
