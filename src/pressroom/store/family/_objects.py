"""What the family store knows of a stored tensor: its identity, its blocks, and where they lie.

The identity of a tensor is BLAKE3 over the BLAKE3 digests of its blocks, so one pass over the bytes gives both, and no
row of an index or a footer can claim other blocks than the tensor has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from blake3 import blake3

# Stored bytes, the check of the stored bytes, the digest of the raw bytes.
_BLOCK = struct.Struct("<I16s32s")
CHECK = 16
DIGEST = 32


@dataclass(frozen=True, slots=True)
class Block:
    """`stored` bytes with the check `check`, which decode to the bytes with the digest `raw`."""

    stored: int
    check: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A pack, or a file that is stored whole: its name, its bytes, and how many of them are blocks of tensors."""

    name: str
    size: int
    payload: int


@dataclass(frozen=True)
class Segment:
    """Blocks `first` to `first + count` of a tensor, one behind the other in the piece `piece` from `offset` on.

    `plain`: the raw bytes themselves, as they lie in a file that is stored whole.
    """

    first: int
    piece: str
    offset: int
    blocks: tuple[Block, ...]
    plain: bool = False

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each block begins in the piece, and where the last one ends."""
        return tuple(accumulate((block.stored for block in self.blocks), initial=self.offset))

    @property
    def length(self) -> int:
        return self.starts[-1] - self.offset


@dataclass(frozen=True)
class StoredTensor:
    """A tensor by content: `id` names it, `block` is the raw length of all blocks but the last.

    `parents` are the tensors it is told from: one for a difference, more for a `recipe` (JSON, see `_predicting`).
    `depth` is how many differences away the farthest one is that needs none. `copy` names the one time that it was
    stored, where its segments belong together. `sound` is False where it was found damaged, or is known only because
    somebody refers to it.
    """

    id: bytes
    dtype: str
    row: int
    nbytes: int
    block: int
    parents: tuple[bytes, ...] = ()
    recipe: str | None = None
    depth: int = 0
    segments: tuple[Segment, ...] = ()
    copy: bytes = b""
    sound: bool = field(default=True, compare=False)

    @property
    def count(self) -> int:
        return -(-self.nbytes // self.block) if self.block else 0

    @property
    def whole(self) -> bool:
        """Whether every block has its place, and they are the blocks that the identity says."""
        at = 0
        for segment in self.segments:
            if segment.first != at:
                return False
            at += len(segment.blocks)
        return at == self.count and tensor_id(b.raw for s in self.segments for b in s.blocks) == self.id

    @property
    def stored(self) -> int:
        return sum(segment.length for segment in self.segments)

    def span(self, number: int) -> tuple[int, int]:
        """Where block `number` lies among the raw bytes: its start and its length."""
        start = number * self.block
        return start, min(self.block, self.nbytes - start)

    def locate(self, number: int) -> tuple[Segment, int]:
        """The segment of a block and its number there. Raises LookupError where it has no place."""
        for segment in self.segments:
            if segment.first <= number < segment.first + len(segment.blocks):
                return segment, number - segment.first
        raise LookupError(number)


def check_of(stored: Any) -> bytes:
    """The check of stored bytes."""
    return blake3(stored).digest(length=CHECK)


def tensor_id(digests: Iterable[bytes]) -> bytes:
    """The identity of a tensor from the digests of its blocks, in order."""
    return blake3(b"".join(digests)).digest()


def pack_blocks(blocks: Sequence[Block]) -> bytes:
    """Blocks as one string of bytes, for an index or a footer."""
    return b"".join(_BLOCK.pack(block.stored, block.check, block.raw) for block in blocks)


def unpack_blocks(data: bytes) -> tuple[Block, ...]:
    """The blocks of `pack_blocks`. Raises ValueError where it is not a whole number of them."""
    if len(data) % _BLOCK.size:
        raise ValueError("blocks are cut")
    return tuple(Block(*row) for row in _BLOCK.iter_unpack(data))
