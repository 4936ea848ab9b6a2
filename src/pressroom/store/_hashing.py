"""BLAKE3 with as many threads as pay."""

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3

# Handing a block to other threads costs about 30 µs: below this many bytes it is slower than one thread.
BLOCK = 1 << 20
_MOST_THREADS = 4


def new_hasher(size: int | None = None) -> blake3:
    """A hasher for `size` bytes (None: not known). Feed it blocks of at least BLOCK bytes where there are as many."""
    if size is not None and size < 2 * BLOCK:
        return blake3()
    # A number, not AUTO: AUTO shares one pool of threads in the process, which is dead in a forked child.
    return blake3(max_threads=min(_MOST_THREADS, os.cpu_count() or 1))


def digest_of(hasher: blake3) -> str:
    """The digest as the store writes it."""
    return f"blake3-{hasher.hexdigest()}"


def file_digest(path: Path) -> tuple[str, int]:
    """The digest of a file's bytes and how many there are. Raises OSError."""
    size = 0
    with path.open("rb", buffering=0) as file:
        hasher = new_hasher(os.fstat(file.fileno()).st_size)
        block = memoryview(bytearray(4 * BLOCK))
        while count := file.readinto(block):
            hasher.update(block[:count])
            size += count
    return digest_of(hasher), size
