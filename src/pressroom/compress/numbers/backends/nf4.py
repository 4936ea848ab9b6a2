"""NF4: 4 bits for 16 levels with equal shares of a normal distribution, and a float32 scale for 64 weights.

The levels are those of QLoRA (arXiv 2305.14314), the order of codes and of their bits that of bitsandbytes, whose files
keep the scales and the codes apart. GGUF has no type for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.numbers._bits import CODE, SCALE, Half, Plane, packed, unpacked
from pressroom.compress.numbers._blocks import BlockFormat, Lines
from pressroom.compress.numbers._fitting import ScaleFit, error, extreme, inverse
from pressroom.compress.numbers._levels import Chosen
from pressroom.compress.numbers._rows import Blocks, check_bytes
from pressroom.compress.numbers._tables import NORMAL_LEVELS
from pressroom.compress.numbers._uniform import Coded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]
    Fields = dict[str, Bytes]

_TOPS = (0.8, 0.86, 0.9, 0.94, 0.97, 1.03, 1.06, 1.1, 1.15, 1.2, 1.27, 1.35)


class Format(BlockFormat):
    name = "nf4"
    ggml = None
    block = 64
    nbytes = 36
    levels = Chosen(NORMAL_LEVELS)
    parts = (Half(SCALE, 0, 4), Plane(CODE, 4, 4, 64, 1, (4, 0)))

    def choose(self, blocks: Blocks) -> Fields:
        x, w = blocks.x, blocks.w
        largest = np.abs(extreme(x))
        fit = ScaleFit(x, w, self.levels)
        unit = inverse(largest)
        fit.try_inverse(unit)
        for top in _TOPS:
            fit.try_inverse(unit * np.float32(top))
        for _ in range(2):
            fit.try_inverse(inverse(fit.scale))
        best, least = np.zeros_like(largest), np.full_like(largest, np.inf)
        for scale in (largest, fit.scale):
            t = x * inverse(scale)
            self.levels.round(t)
            t *= scale
            left = error(x, w, t)
            better = left < least
            np.copyto(least, left, where=better)
            np.copyto(best, scale, where=better)
        with np.errstate(over="ignore", under="ignore"):
            stored = np.minimum(np.ldexp(best, blocks.exponent), np.finfo(np.float32).max)
        return {SCALE: np.ascontiguousarray(stored.astype("<f4").view(np.uint8).reshape(-1, 4).T)}

    def lines(self, fields: Fields) -> Lines:
        return Lines(_scales(fields)[None], None)

    def coded(self, data: Bytes) -> Coded:
        """Rows of data taken apart: codes from 0 to 15, and the scales, which bitsandbytes calls absmax."""
        check_bytes(self, data)
        fields = unpacked(self.parts, np.ascontiguousarray(data.reshape(-1, self.nbytes).T))
        rows = len(data)
        return Coded(
            codes=np.ascontiguousarray(fields[CODE].T).reshape(rows, -1),
            scales=_scales(fields).reshape(rows, -1),
            zeros=None,
        )

    def data_of(self, coded: Coded) -> Bytes:
        """The bytes of rows that were taken apart."""
        scales = np.ascontiguousarray(coded.scales.reshape(-1).astype("<f4"))
        fields = {
            CODE: np.ascontiguousarray(coded.codes.reshape(-1, self.block).T.astype(np.uint8)),
            SCALE: np.ascontiguousarray(scales.view(np.uint8).reshape(-1, 4).T),
        }
        return np.ascontiguousarray(packed(self.parts, fields, self.nbytes).T).reshape(len(coded.codes), -1)


def _scales(fields: Fields) -> Floats:
    numbers: Floats = np.ascontiguousarray(fields[SCALE].T).view("<f4")[:, 0].astype(np.float32)
    return numbers
