"""What can be said of a number format in words and figures, for the table and the drawings of `press formats`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pressroom.compress.numbers import NumberFormat

#: Sign, exponent and fraction of the floating point formats.
FLOATS = {"f32": (1, 8, 23), "f16": (1, 5, 10), "bf16": (1, 8, 7)}

_VALUES = {
    "f32": "floating point: 8 bits of exponent, 23 of fraction",
    "f16": "floating point: 5 bits of exponent, 10 of fraction",
    "bf16": "floating point: 8 bits of exponent, 7 of fraction",
    "q8_0": "equal steps from -127 to 127",
    "q5_1": "32 equal steps from a smallest value",
    "q4_1": "16 equal steps from a smallest value",
    "iq4_nl": "16 levels, closer near zero",
    "iq4_xs": "16 levels, closer near zero; 6-bit scales for 32",
    "nf4": "16 levels, equal shares of a normal distribution",
    "q6_k": "64 equal steps; 8-bit scales for 16",
    "q5_k": "32 equal steps; 6-bit scales and offsets for 32",
    "q4_k": "16 equal steps; 6-bit scales and offsets for 32",
    "q3_k": "8 equal steps; 6-bit scales for 16",
    "q2_k": "4 equal steps; 4-bit scales and offsets for 16",
    "tq2_0": "-1, 0 and 1",
    "tq1_0": "-1, 0 and 1, five in a byte",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A format as the table has it. `block` is the weights that share a scale, or words for it."""

    name: str
    bits: float
    block: str
    nbytes: int | None
    values: str
    run_by: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "bits": round(self.bits, 4),
            "block": self.block,
            "bytes_of_a_block": self.nbytes,
            "values": self.values,
            "run_by": self.run_by,
        }


def told(form: NumberFormat) -> Told:
    """The row of a format."""
    from pressroom.compress.numbers import Uniform

    block = str(form.block)
    if isinstance(form, Uniform) and isinstance(form.group, str):
        block = {"channel": "a row", "tensor": "the matrix"}[form.group]
    return Told(
        name=form.name,
        bits=form.bits,
        block=block,
        nbytes=form.nbytes if form.block else None,
        values=_values(form),
        run_by=_run_by(form),
    )


def _values(form: NumberFormat) -> str:
    from pressroom.compress.numbers import Uniform

    if isinstance(form, Uniform):
        if form.ternary:
            return "-1, 0 and 1"
        steps = f"{1 << form.code_bits} equal steps"
        return f"{steps} from {form.lowest} to {form.highest}" if form.symmetric else f"{steps}, one of them zero"
    if form.name in _VALUES:
        return _VALUES[form.name]
    return f"{1 << code_bits(form)} equal steps"


def _run_by(form: NumberFormat) -> str:
    """Engines that compute with it, not those that could be taught to."""
    from pressroom.compress.numbers import Uniform

    if form.name in FLOATS:
        return "llama.cpp, vLLM, transformers"
    if form.ggml is not None:
        return "llama.cpp"
    if form.name == "nf4":
        return "transformers, vLLM (bitsandbytes)"
    if isinstance(form, Uniform) and not form.ternary and form.group != "tensor" and form.code_bits in (4, 8):
        return "vLLM, transformers (compressed-tensors)"
    return "no engine yet"


def code_bits(form: NumberFormat) -> int:
    """The bits of one code, wherever they lie; of digits in a byte those that they take on average."""
    pieces = [piece for piece in form.layout() if piece.field == "code" and 0 in piece.items]
    return sum(piece.bits // len(piece.items) or 1 for piece in pieces)


def levels_of(form: NumberFormat) -> NDArray[np.float64]:
    """Every value that a weight can take in a block whose weights lie evenly from -1 to 1, the farthest at 1 or -1."""
    import numpy as np

    # Each sub-block has all of it.
    block = form.block or 64
    count = 64 if block % 64 == 0 and "sub-scale" not in _fields(form) else 16
    even: NDArray[np.float32] = np.resize(np.linspace(-1, 1, count).astype(np.float32), block)
    bound = form.bound(even[None])
    count = 256
    grid = bound.grid(np.tile(even, (count, 1)))
    ends = [int(grid.nearest(np.full(count, end, np.float32), 0)[0]) for end in (-1e30, 1e30)]
    codes = np.minimum(np.arange(count), max(ends)).astype(np.uint8)
    values = np.unique(grid.values(codes, 0)[min(ends) :].astype(np.float64))
    if -values[0] < values[-1] and not {"min", "zero"} & _fields(form):
        values = -values[::-1]  # a scale below 0 mirrors them: all in one direction
    farthest = float(np.abs(values).max())
    return values / farthest if farthest else values


def _fields(form: NumberFormat) -> set[str]:
    return {piece.field for piece in form.layout()}
