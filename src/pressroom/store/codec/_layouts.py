"""How the elements of a type lie in memory: what the codec has to know of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """`size` bytes repeat; `columns` cuts them into ranges that are coded apart, as their bytes mean different things.

    `kind` is how values are told near: `float16` (the kernel's own codec), `float32` and `float64` (ordered
    differences), `signed`, `float8`, or `bytes` (differences byte by byte). `shift` is where a 16-bit float's exponent
    begins.
    """

    size: int
    kind: str = "bytes"
    columns: tuple[int, ...] = ()
    shift: int = 0

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        cuts = (0, *self.columns, self.size)
        return tuple(itertools.pairwise(cuts))


_BYTES = Layout(1)
_LAYOUTS = {
    "BF16": Layout(2, "float16", shift=7),
    "F16": Layout(2, "float16", shift=10),
    "F32": Layout(4, "float32"),
    "F64": Layout(8, "float64"),
    "I8": Layout(1, "signed"),
    "F8_E4M3": Layout(1, "float8"),
    "F8_E5M2": Layout(1, "float8"),
    "F8_E4M3FN": Layout(1, "float8"),
    "I16": Layout(2, columns=(1,)),
    "U16": Layout(2, columns=(1,)),
    "I32": Layout(4, columns=(1, 2, 3)),
    "U32": Layout(4, columns=(1, 2, 3)),
    "I64": Layout(8, columns=(1, 2, 3, 4, 5, 6, 7)),
    "U64": Layout(8, columns=(1, 2, 3, 4, 5, 6, 7)),
    # GGUF blocks of 32 or 256 weights: where the scales (float16), their second level and the quanta lie
    # (ggml-common.h of llama.cpp declares them).
    "Q4_0": Layout(18, columns=(1, 2)),
    "Q4_1": Layout(20, columns=(1, 2, 3, 4)),
    "Q5_0": Layout(22, columns=(1, 2, 6)),
    "Q5_1": Layout(24, columns=(1, 2, 3, 4, 8)),
    "Q8_0": Layout(34, columns=(1, 2)),
    "Q2_K": Layout(84, columns=(16, 80, 81, 82, 83)),
    "Q3_K": Layout(110, columns=(32, 96, 108, 109)),
    "Q4_K": Layout(144, columns=(1, 2, 3, 4, 16)),
    "Q5_K": Layout(176, columns=(1, 2, 3, 4, 16, 48)),
    "Q6_K": Layout(210, columns=(128, 192, 208, 209)),
    "IQ4_NL": Layout(18, columns=(1, 2)),
    "IQ4_XS": Layout(136, columns=(1, 2, 4, 8)),
}


def layout_of(dtype: str) -> Layout:
    """The layout of a type as the readers of formats name it; one of single bytes where it is not known."""
    return _LAYOUTS.get(dtype, _BYTES)
