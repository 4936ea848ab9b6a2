"""F32: weights as they are."""

from __future__ import annotations

from pressroom.compress.numbers._floats import FloatFormat


class Format(FloatFormat):
    name = "f32"
    ggml = 0
    nbytes = 4
    stored = "<f4"
