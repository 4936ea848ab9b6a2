"""Feeds a kernel, built with sanitizers, blocks that were altered at random: `python fuzz_kernel.py KERNEL.so`.

Buffers have exactly the sizes the kernel asks for, so that a byte beyond one is seen.
"""

from __future__ import annotations

import ctypes
import random
import sys

import numpy as np

from pressroom.store.codec import _native
from pressroom.store.codec.base import DamagedError


def main(path: str) -> None:
    kernel = _native.Kernel(ctypes.CDLL(path))
    chance = random.Random(3)
    some = np.random.default_rng(3)
    tried = refused = 0
    for round in range(60):
        count = chance.choice([1, 40, 64, 100, 1000, 3333])
        parent = (some.standard_normal(count) * 300 + 15500).astype(np.uint16)
        child = (parent + some.integers(-3, 4, count) * (some.random(count) < 0.4)).astype(np.uint16)
        child[some.random(count) < 0.05] = some.integers(0, 1 << 16)
        for near in (None, parent):
            stored = kernel.floats_encode(child, near, 7, 6, True)
            if stored is None:
                continue
            out = np.empty(count, np.uint16)
            kernel.floats_decode(memoryview(stored), near, out)
            assert (out == child).all()
            for _ in range(20):
                broken = bytearray(stored)
                for _ in range(chance.choice([1, 3])):
                    broken[chance.randrange(min(len(broken), chance.choice([24, 200, 9999])))] ^= 1 << chance.randrange(
                        8
                    )
                if chance.random() < 0.3:
                    del broken[chance.randrange(len(broken)) :]
                tried += 1
                try:
                    kernel.floats_decode(memoryview(bytes(broken)), near, out)
                except DamagedError:
                    refused += 1
        symbol = some.integers(0, 7, count).astype(np.uint8)
        context = None if round % 2 else (symbol >> 1).astype(np.uint8)
        section = kernel.bytes_encode(symbol, context)
        for _ in range(20 if section else 0):
            assert section is not None
            broken = bytearray(section)
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
            tried += 1
            try:
                kernel.bytes_decode(memoryview(bytes(broken)), context, np.empty(count, np.uint8))
            except DamagedError:
                refused += 1
    print(f"{tried} altered blocks, {refused} refused")


if __name__ == "__main__":
    main(sys.argv[1])
