"""F16: one sign bit, 5 bits of exponent, 10 of fraction."""

from __future__ import annotations

from pressroom.compress.numbers._floats import FloatFormat


class Format(FloatFormat):
    name = "f16"
    ggml = 1
    nbytes = 2
    stored = "<f2"
