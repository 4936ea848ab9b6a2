"""Whole numbers of any width with a scale for a group, a row or the whole matrix: what most runtimes but llama.cpp use.

Symmetric: value = code * scale, codes on both sides of zero. Asymmetric: value = (code - zero) * scale, codes from 0
on, where `zero` is the code of 0. Codes of 3, 5, 6 and 7 bits lie in planes, as the bits of llama.cpp's q3_k do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pressroom.compress.numbers._affine import best_affine, best_scale, tensor_affine, tensor_scale
from pressroom.compress.numbers._bits import CODE, SCALE, ZERO, Half, Plane, codes_in, half_bytes, halves, unpacked
from pressroom.compress.numbers._blocks import BlockFormat, Lines
from pressroom.compress.numbers._levels import Steps
from pressroom.compress.numbers._rows import Blocks, check_bytes, check_rows, checked_importance
from pressroom.compress.numbers.base import Grid, NumberFormat
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]
    Fields = dict[str, Bytes]

#: Some of the family, for lists and hints.
EXAMPLES: Final = (
    *("int8-channel", "int8-tensor", "int8-g128", "int4-g128", "int4-g64", "int4-g32", "int4-g64-asym"),
    *("int4-channel", "int3-g64", "int3-g32", "int3-g32-asym", "int2-g32", "int2-g32-asym", "t2-g128", "t2-tensor"),
)
#: A byte holds 8 codes of one bit: groups are multiples of it.
_OF = 8
_MOST_GROUP = 1 << 16
_NAME = re.compile(r"(?:int([2-8])|t2)-(?:(channel|tensor)|g([1-9][0-9]{0,5}))(-asym)?")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Coded:
    """Rows taken apart, as files of other runtimes keep them: codes (rows, columns), scales float32 (rows, groups), or
    (1, 1) where the whole matrix has one, and zeros as scales, uint8, or None.

    A value is (code - zero) * scale; in nf4 it is level[code] * scale. Codes are int8 where they are below zero too,
    and uint8 where they count from 0 on.
    """

    codes: NDArray[np.int8] | Bytes
    scales: Floats
    zeros: Bytes | None


class Uniform(BlockFormat):
    """Codes of 2 to 8 `bits` in equal steps; `group` weights that lie side by side share a scale, or a row ("channel"),
    or the matrix ("tensor"). `ternary`: of 2 bits only -1, 0 and 1 are used.

    With "channel" and "tensor" it must be `bound` to a matrix before anything is encoded: then a block is a row, and
    with "tensor" the scale is here (`scale`, `zero`) and not in the data. Scales in the data are float16, above 0; a
    zero takes a byte.

    Raises:
        RecipeError: there is no such width or group.
    """

    ggml = None
    #: Names of some, for lists: there are too many for all.
    examples = EXAMPLES

    def __init__(
        self, bits: int, *, symmetric: bool = True, group: int | str = 128, ternary: bool = False, block: int = 0
    ) -> None:
        if not 2 <= bits <= 8 or (ternary and (bits != 2 or not symmetric)):
            raise RecipeError(
                f"codes of {bits} bits are not possible so", hint="2 to 8 bits; ternary has 2, symmetric."
            )
        if isinstance(group, int) and (group % _OF or not _OF <= group <= _MOST_GROUP):
            raise RecipeError(
                f"groups of {group} weights are not possible",
                hint=f"Take a multiple of {_OF} up to {_MOST_GROUP}, such as 32, 64 or 128.",
                group=group,
            )
        if isinstance(group, str) and group not in ("channel", "tensor"):
            raise RecipeError(f"a scale for each {group!r} is not possible", hint="A group, 'channel' or 'tensor'.")
        reach = f"g{group}" if isinstance(group, int) else group
        self.name = f"{'t2' if ternary else f'int{bits}'}-{reach}{'' if symmetric else '-asym'}"
        self.code_bits = bits
        self.symmetric = symmetric
        self.ternary = ternary
        self.group = group
        #: Of the whole matrix, once bound to one, where it has one.
        self.scale: float | None = None
        self.zero: int | None = None
        half = 1 << (bits - 1)
        self.lowest, self.highest = (-1, 1) if ternary else (-half, half - 1) if symmetric else (0, 2 * half - 1)
        self.levels = Steps(self.lowest, self.highest)
        self.block = group if isinstance(group, int) else block
        self._lay_out()

    def _lay_out(self) -> None:
        heads: list[Half | Plane] = []
        if self.group != "tensor":
            heads.append(Half(SCALE, 0))
            if not self.symmetric:
                heads.append(Plane(ZERO, 2, 8, 1, 1))
        byte = sum(2 if isinstance(head, Half) else 1 for head in heads)
        codes = codes_in(byte, self.code_bits, self.block)
        if self.symmetric and self.code_bits == 8:
            codes = (Plane(CODE, byte, 8, self.block, self.block or 1, flip=0x80),)  # two's complement
        self.parts = (*heads, *codes)
        self.nbytes = byte + self.block * self.code_bits // 8

    @property
    def bits(self) -> float:
        """Bits for one weight; before it is bound to a matrix, without the scales that its rows will have."""
        return super().bits if self.block else float(self.code_bits)

    def fits(self, columns: int) -> bool:
        return columns > 0 and columns % (self.block or _OF) == 0

    def bound(self, rows: Floats, importance: Floats | None = None) -> Uniform:
        if isinstance(self.group, int) or (self.block and self.block == rows.shape[-1] and self.group == "channel"):
            return self
        if rows.ndim == 2 and not self.fits(rows.shape[1]):
            raise RecipeError(
                f"rows of {rows.shape[1]} weights cannot be kept as {self.name}",
                hint=f"Their number must be a multiple of {_OF}.",
                columns=rows.shape[1],
                format=self.name,
            )
        made = Uniform(
            self.code_bits, symmetric=self.symmetric, group=self.group, ternary=self.ternary, block=rows.shape[-1]
        )
        check_rows(made, rows)
        importance = checked_importance(rows.shape[1], importance)
        if self.group == "tensor":
            if self.symmetric:
                made.scale, made.zero = tensor_scale(rows, importance, self.levels), 0
            else:
                made.scale, made.zero = tensor_affine(rows, importance, self.highest)
        return made

    def encode(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        self._must_be_bound()
        return super().encode(rows, importance)

    def decode(self, data: Bytes) -> Floats:
        self._must_be_bound()
        return super().decode(data)

    def grid(self, rows: Floats, importance: Floats | None = None) -> Grid:
        self._must_be_bound()
        return super().grid(rows, importance)

    def choose(self, blocks: Blocks) -> Fields:
        if self.group == "tensor":
            return {}
        if self.symmetric:
            return {SCALE: half_bytes(best_scale(blocks, self.levels))}
        scale, zero = best_affine(blocks, self.highest)
        return {SCALE: half_bytes(scale), ZERO: zero[None].astype(np.uint8)}

    def lines(self, fields: Fields) -> Lines:
        if self.group == "tensor":
            step = np.full((1, 1), self.scale, np.float32)
            zero = np.full((1, 1), self.zero, np.float32)
        else:
            step = halves(fields[SCALE])[None]
            zero = np.zeros_like(step) if self.symmetric else fields[ZERO][:1].astype(np.float32)
        # code * scale - zero * scale is (code - zero) * scale bit for bit: a code and a float16 scale have 19 bits
        # together, so that nothing is rounded. The one scale of a matrix is rounded so as well.
        return Lines(step, None if self.symmetric else -zero * step)

    def coded(self, data: Bytes) -> Coded:
        """Rows of data taken apart. Raises RecipeError where they are not whole blocks."""
        self._must_be_bound()
        check_bytes(self, data)
        fields = unpacked(self.parts, np.ascontiguousarray(data.reshape(-1, self.nbytes).T))
        rows = len(data)
        codes = fields[CODE].T.reshape(rows, -1)
        signed = (codes.astype(np.int16) + self.lowest).astype(np.int8) if self.symmetric else codes
        if self.group == "tensor":
            zeros = None if self.symmetric else np.full((1, 1), self.zero, np.uint8)
            return Coded(codes=signed, scales=np.full((1, 1), self.scale, np.float32), zeros=zeros)
        zeros = None if self.symmetric else fields[ZERO].reshape(rows, -1)
        return Coded(codes=signed, scales=halves(fields[SCALE]).reshape(rows, -1), zeros=zeros)

    def data_of(self, coded: Coded) -> Bytes:
        """The bytes of rows that were taken apart. Scales are rounded to float16."""
        from pressroom.compress.numbers._bits import packed

        self._must_be_bound()
        rows = len(coded.codes)
        counted = (coded.codes.astype(np.int16) - self.lowest).astype(np.uint8)
        fields = {CODE: np.ascontiguousarray(counted.reshape(-1, self.block).T)}
        if self.group != "tensor":
            fields[SCALE] = half_bytes(np.ascontiguousarray(coded.scales.reshape(-1)))
            if coded.zeros is not None:
                fields[ZERO] = coded.zeros.reshape(1, -1)
        return np.ascontiguousarray(packed(self.parts, fields, self.nbytes).T).reshape(rows, -1)

    def _must_be_bound(self) -> None:
        if not self.block or (self.group == "tensor" and self.scale is None):
            raise RecipeError(
                f"{self.name} has a scale for a whole {'row' if self.group == 'channel' else 'matrix'}",
                hint="Say for which one: format.bound(rows), and use what that gives.",
                format=self.name,
            )

    def _key(self) -> tuple[object, ...]:
        return (self.name, self.block, self.scale, self.zero)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Uniform) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def named(name: str) -> NumberFormat | None:
    """The format of this name, if it is one of the family: int4-g64, int8-channel-asym, t2-tensor."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    bits, reach, group, asymmetric = found.groups()
    if group is not None and (int(group) % _OF or int(group) > _MOST_GROUP):
        return None
    if bits is None and asymmetric:
        return None
    return Uniform(int(bits or 2), symmetric=not asymmetric, group=reach or int(group), ternary=bits is None)
