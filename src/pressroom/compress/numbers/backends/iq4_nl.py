"""IQ4_NL: 4 bits for 16 levels that lie closer near zero, and a float16 scale for 32 weights."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, SCALE, Half, Plane
from pressroom.compress.numbers._single import OneScale
from pressroom.compress.numbers._tables import NON_LINEAR, NON_LINEAR_TOPS


class Format(OneScale):
    name = "iq4_nl"
    ggml = 20
    block = 32
    nbytes = 18
    levels = NON_LINEAR
    parts = (Half(SCALE, 0), Plane(CODE, 2, 4, 32, 16, (0, 4)))
    plain = -127
    tops = NON_LINEAR_TOPS
    around = (0.97, 0.99, 1.01, 1.03)
