"""What rounding and pruning give back, and what their arguments mean.

`weights` are float32 of the shape (rows, columns), a row for every output of the layer. `hessian` is float32 of the
shape (columns, columns): the mean, or the sum, of x xᵀ over the inputs x of the layer; only its direction counts, not
its size. The error of a result Q is trace((W - Q) H (W - Q)ᵀ) relative to trace(W H Wᵀ): the share of the layer's
output, squared, that is lost on the inputs the hessian was made from. No argument is changed, and a result shares no
memory with one. The same arguments with the same number of threads give the same result.

Method: optimal brain surgeon, one column after the other, as in GPTQ (arXiv 2210.17323) and SparseGPT (2301.00774).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]
    Bools = NDArray[np.bool_]

Order = Literal["given", "activation"]
#: (2, 4): of every 4 weights that lie side by side along the input dimension 2 are kept.
Pattern = tuple[int, int]
#: "row": every row loses the same share of its weights. "layer": all rows together lose that share.
Per = Literal["row", "layer"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rounded:
    """Weights in a number format.

    data: as the file holds them, (rows, bytes of a row). values: what `data` stands for, bit for bit.
    error: what is lost; see above. nearest: what plain rounding weighted by the importance would lose: never less.
    plain_rows: of how many rows that was not worse, so that it was taken.
    fallback: the hessian could not be used even with more damping, so that all rows are rounded plainly.
    damp: the damping that was used. mask: where weights were kept, if some were also to be pruned.
    """

    data: Bytes
    values: Floats
    error: float
    nearest: float
    plain_rows: int
    fallback: bool
    damp: float
    mask: Bools | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pruned:
    """Weights some of which are 0.

    values: the weights, those that are left changed where the method makes up for those that are gone.
    mask: where a weight is kept. error: what is lost; see above.
    fallback: the hessian could not be used even with more damping, so that this is what `wanda` gives.
    """

    values: Floats
    mask: Bools
    error: float
    fallback: bool = False
