"""Q8_0: 8 bits, and a float16 scale for 32 weights."""

from __future__ import annotations

from pressroom.compress.numbers._bits import CODE, SCALE, Half, Plane
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._single import OneScale


class Format(OneScale):
    name = "q8_0"
    ggml = 8
    block = 32
    nbytes = 34
    # -128 would fit, but llama.cpp's own encoder leaves it out, and so do kernels that take the sign apart.
    levels = Steps(-127, 127, zero=-128)
    parts = (Half(SCALE, 0), Plane(CODE, 2, 8, 32, 32, flip=0x80))
    plain = 127
    tops = tuple(112 + number / 2 for number in range(33))
