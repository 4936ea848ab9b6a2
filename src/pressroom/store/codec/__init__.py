"""Blocks of weights in few bytes: alone by their exponents, near a parent by their differences. Bit for bit.

A block is up to 2 MiB of one tensor and can be decoded without any other, save the same block of its parent. Its first
byte says how it is stored; docs/store-format.md describes the bytes.

| name | what is stored |
|---|---|
| raw | the bytes |
| alone | 16-bit floats: exponents entropy-coded, sign and mantissa as they are |
| near | 16-bit floats: differences from the parent, entropy-coded under its exponents |
| planes | other types: the bytes that mean the same, entropy-coded apart |
| same | nothing: the parent's bytes |

The work is done by a kernel in C where one can be compiled (see `_native.py`), else by NumPy: the same bytes, about a
hundred times slower. Both let other threads run.
"""

from __future__ import annotations

from pressroom.store.codec._blocks import (
    block_length,
    codec_name,
    decode,
    encode,
    kernel,
    needs_parent,
    path_in_use,
    use,
)
from pressroom.store.codec.base import BLOCK, DamagedError

__all__ = [
    "BLOCK",
    "DamagedError",
    "block_length",
    "codec_name",
    "decode",
    "encode",
    "kernel",
    "needs_parent",
    "path_in_use",
    "use",
]
