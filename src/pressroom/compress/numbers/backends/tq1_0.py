"""TQ1_0: -1, 0 or 1, five of them in a byte, and a float16 scale for 256 weights."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, SCALE, Digits, Half
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._single import OneScale
from pressroom.compress.numbers._tables import TERNARY_TOPS


class Format(OneScale):
    name = "tq1_0"
    ggml = 34
    block = 256
    nbytes = 54
    levels = Steps(-1, 1)
    parts = (
        Digits(CODE, 0, 160, 32, 5),
        Digits(CODE, 32, 80, 16, 5, first=160),
        Digits(CODE, 48, 16, 4, 4, first=240),
        Half(SCALE, 52),
    )
    plain = 1
    tops = TERNARY_TOPS
