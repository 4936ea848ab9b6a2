"""Where the bits of a block are, said once: packing, unpacking and the picture of a format all come from here.

Blocks lie along the last axis here, (bytes, blocks) and (items, blocks): every operation runs over long rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pressroom.compress.numbers.base import Piece

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

# What a field may be called.
CODE, SCALE, MIN, SUB_SCALE, SUB_MIN, ZERO = "code", "scale", "min", "sub-scale", "sub-min", "zero"


class Part(Protocol):
    """Some bits of a block that belong to one field."""

    @property
    def field(self) -> str: ...

    def put(self, items: Bytes, blocks: Bytes) -> None:
        """Set the bits in blocks that are zero there; items of the whole field."""
        ...

    def add(self, blocks: Bytes, items: Bytes) -> None:
        """Add what the bits hold to the items of the whole field."""
        ...

    def pieces(self) -> Iterator[Piece]: ...


@dataclass(frozen=True, slots=True)
class Plane:
    """The bits from `low` on of `count` items, `bits` of each, in the bytes from `byte` on.

    `width` items go into as many bytes side by side, at the first of `shifts`; the next `width` go into the same bytes
    at the next shift, and when the shifts are used up, into the next bytes. Stored bits are turned over where `flip`
    has a one: two's complement is a number from 0 on with its highest bit turned over.
    """

    field: str
    byte: int
    bits: int
    count: int
    width: int
    shifts: tuple[int, ...] = (0,)
    first: int = 0
    low: int = 0
    flip: int = 0

    def _folded(self, items: Bytes) -> Bytes:
        ours = items[self.first : self.first + self.count]
        return ours.reshape(self._groups, len(self.shifts), self.width, items.shape[1])

    def _where(self, blocks: Bytes) -> Bytes:
        ours = blocks[self.byte : self.byte + self.count // len(self.shifts)]
        return ours.reshape(self._groups, self.width, blocks.shape[1])

    @property
    def _groups(self) -> int:
        return self.count // (len(self.shifts) * self.width)

    def put(self, items: Bytes, blocks: Bytes) -> None:
        folded = self._folded(items)
        where = self._where(blocks)
        for position, shift in enumerate(self.shifts):
            bits = (folded[:, position] >> np.uint8(self.low)) & np.uint8((1 << self.bits) - 1)
            where |= (bits ^ np.uint8(self.flip)) << np.uint8(shift)

    def add(self, blocks: Bytes, items: Bytes) -> None:
        folded = self._folded(items)
        where = self._where(blocks)
        for position, shift in enumerate(self.shifts):
            bits = ((where >> np.uint8(shift)) & np.uint8((1 << self.bits) - 1)) ^ np.uint8(self.flip)
            folded[:, position] |= bits << np.uint8(self.low)

    def pieces(self) -> Iterator[Piece]:
        for item in range(self.count):
            group, rest = divmod(item, len(self.shifts) * self.width)
            position, column = divmod(rest, self.width)
            at = 8 * (self.byte + group * self.width + column) + self.shifts[position]
            yield Piece(at, self.bits, self.field, (self.first + item,), self.low)


@dataclass(frozen=True, slots=True)
class Half:
    """A float16 at `byte`, or a float32 where `size` is 4: its bytes are the items of the field."""

    field: str
    byte: int
    size: int = 2

    def put(self, items: Bytes, blocks: Bytes) -> None:
        blocks[self.byte : self.byte + self.size] = items

    def add(self, blocks: Bytes, items: Bytes) -> None:
        items[:] = blocks[self.byte : self.byte + self.size]

    def pieces(self) -> Iterator[Piece]:
        yield Piece(8 * self.byte, 8 * self.size, self.field, (0,))


@dataclass(frozen=True, slots=True)
class Digits:
    """Items of 0, 1 or 2, as digits of one number in a byte, the first the most significant.

    The number stands for a fraction of 243 = 3^5 and is kept as that fraction of 256, rounded up: a digit comes out as
    the whole part when the byte is multiplied by three, with no division. Where only four go into a byte, the last
    digit is 0. Items lie as in a `Plane` with as many shifts as digits.
    """

    field: str
    byte: int
    count: int
    width: int
    digits: int
    first: int = 0

    def _folded(self, items: Bytes) -> Bytes:
        ours = items[self.first : self.first + self.count]
        return ours.reshape(self._groups, self.digits, self.width, items.shape[1])

    def _where(self, blocks: Bytes) -> Bytes:
        ours = blocks[self.byte : self.byte + self.count // self.digits]
        return ours.reshape(self._groups, self.width, blocks.shape[1])

    @property
    def _groups(self) -> int:
        return self.count // (self.digits * self.width)

    def put(self, items: Bytes, blocks: Bytes) -> None:
        folded = self._folded(items).astype(np.uint16)
        number = np.zeros_like(folded[:, 0])
        for digit in range(5):
            number *= np.uint16(3)
            if digit < self.digits:
                number += folded[:, digit]
        self._where(blocks)[:] = (number * np.uint16(256) + np.uint16(242)) // np.uint16(243)

    def add(self, blocks: Bytes, items: Bytes) -> None:
        folded = self._folded(items)
        rest = self._where(blocks).copy()
        for digit in range(self.digits):
            folded[:, digit] = (rest.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
            rest *= np.uint8(3)  # the whole part falls off at the top

    def pieces(self) -> Iterator[Piece]:
        for byte in range(self.count // self.digits):
            group, column = divmod(byte, self.width)
            start = self.first + group * self.width * self.digits + column
            items = tuple(start + digit * self.width for digit in range(self.digits))
            yield Piece(8 * (self.byte + byte), 8, self.field, items)


def packed(parts: tuple[Part, ...], fields: dict[str, Bytes], nbytes: int) -> Bytes:
    """The blocks that hold these fields: (nbytes, blocks)."""
    blocks = np.zeros((nbytes, fields[CODE].shape[1]), np.uint8)
    for part in parts:
        part.put(fields[part.field], blocks)
    return blocks


def unpacked(parts: tuple[Part, ...], blocks: Bytes) -> dict[str, Bytes]:
    """The fields of blocks, (nbytes, blocks), which must be contiguous."""
    counts: dict[str, int] = {}
    for part in parts:
        most = 1 + max(max(piece.items) for piece in part.pieces())
        counts[part.field] = part.size if isinstance(part, Half) else max(most, counts.get(part.field, 0))
    fields = {field: np.zeros((count, blocks.shape[1]), np.uint8) for field, count in counts.items()}
    for part in parts:
        part.add(blocks, fields[part.field])
    return fields


def halves(items: Bytes) -> NDArray[np.float32]:
    """The float16 numbers whose two bytes these are, (2, blocks), as float32."""
    numbers: NDArray[np.float32] = np.ascontiguousarray(items.T).view("<f2")[:, 0].astype(np.float32)
    return numbers


def half_bytes(numbers: NDArray[np.float32]) -> Bytes:
    """The two bytes of each number as float16, (2, blocks). Numbers must not be beyond the largest float16."""
    return np.ascontiguousarray(numbers.astype("<f2").view(np.uint8).reshape(-1, 2).T)


def codes_in(byte: int, bits: int, count: int) -> tuple[Part, ...]:
    """`count` codes of 2 to 8 bits one after the other from byte `byte` on: in bytes as far as powers of two go, and
    what is left of each in a plane of its own behind that. `count` is a multiple of 8."""
    parts = []
    low = 0
    for size in (8, 4, 2, 1):
        if bits & size:
            parts.append(Plane(CODE, byte, size, count, 1, tuple(range(0, 8, size)), low=low))
            byte += count * size // 8
            low += size
    return tuple(parts)
