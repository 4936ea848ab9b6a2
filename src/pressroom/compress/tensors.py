"""Tensors rounded when the file comes to them, and what became of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.compress.recipe import Recipe, bits_below_16
from pressroom.kernel import Progress, RecipeError, Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.numbers import NumberFormat
    from pressroom.compress.rounding import Curvature, Rounded
    from pressroom.compress.weights import Plan, Planned, Weights

    Bytes = NDArray[np.uint8]
    #: Gives the data of a tensor (its name) in a format (its name), with the share of its output that is lost, or None.
    Kept = Callable[[str, str], tuple[Bytes, float] | None]

# Rows that are rounded at once where no second-order pass needs all of them: 64 MB of a model's widest layer.
_ROWS = 4_096


# In these a weight is 0 because it was pruned; in others many are because their grid has a 0.
_PLAIN = ("F32", "F16", "BF16")
# Fewer zeros than this are not the work of pruning: a 4-bit grid, turned into floats, has about 0.1.
_PRUNED = 0.2


def sparsity_of(rows: NDArray[np.float32]) -> dict[str, Any]:
    """What to ask of rounding so that weights that were pruned have as many zeros afterwards, in their pattern."""
    zeros = (rows == 0).mean(dtype=float)
    if zeros < _PRUNED:
        return {}
    if rows.shape[1] % 4 == 0 and ((rows.reshape(-1, 4) == 0).sum(axis=1) >= 2).all():
        return {"pattern": (2, 4)}
    return {"ratio": min(float(zeros), 1 - 1 / rows.size)}


@cache
def keeps_zero(format: NumberFormat) -> bool:
    """Whether weights of 0 among others are 0 in this format."""
    import numpy as np

    probe = np.random.default_rng(0).standard_normal((8, format.block), dtype=np.float32)
    probe[:4] = np.abs(probe[:4]) + 1
    probe[:, ::4] = 0
    return not format.decode(format.encode(probe))[:, ::4].any()


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorReport:
    """What became of a tensor. `error` is the share of its layer's output, squared, that is lost on the calibration
    text, and `nearest` what plain rounding would have lost (None: not computed); `fallback` says that the second-order
    pass could not be done."""

    name: str
    format: str
    nbytes: int
    error: float | None = None
    nearest: float | None = None
    fallback: bool = False


class Rounding:
    """One after the other, on one thread: a pass is thousands of small steps, and two side by side gain a tenth."""

    def __init__(
        self,
        workspace: Workspace,
        source: Weights,
        plan: Plan,
        recipe: Recipe,
        calibration: Calibration | None,
        kept: Kept | None = None,
    ) -> None:
        self._workspace = workspace
        self._source = source
        self._plan = plan
        self._recipe = recipe
        self._calibration = calibration
        self._rounded = kept
        # The last one, with the array it was made of: layers with the same input lie side by side in the file.
        self._curvature: tuple[NDArray[np.float32], Curvature] | None = None
        self._digests: dict[str, bytes] = {}
        #: Of those that are done, in the order of the file.
        self.reports: list[TensorReport] = []

    def of(self, one: Planned) -> Callable[[], Iterator[Bytes]]:
        """What gives the data of this tensor, piece by piece, when the file comes to it."""

        def made() -> Iterator[Bytes]:
            hashed = hashlib.blake2b(digest_size=16)
            for piece in self._pieces(one):
                hashed.update(piece.data)
                yield piece
            self._digests[one.tensor.name] = hashed.digest()
            total = len(self._plan.changed)
            self._workspace.events.emit(Progress("rounding", len(self.reports), total, "tensors"))

        return made

    def compare(self, path: Path) -> None:
        """The file as it is on the disk has what was made: every tensor in its type, with its bytes.

        Raises:
            RecipeError: it has not; the disk or the memory is not to be trusted.
        """
        from pressroom.compress.weights import open_weights

        with open_weights(path) as written:
            wrong = []
            for one in self._plan.changed:
                name, format = one.tensor.name, one.format
                found = written.tensors[name]
                same = hashlib.blake2b(written.raw(name), digest_size=16).digest() == self._digests[name]
                if format is None or found.number != format.ggml or not same:
                    wrong.append(name)
        if wrong:
            raise RecipeError(
                f"the file that was written does not hold what was made: {', '.join(wrong[:5])}",
                hint="Check the disk and the memory, then try again.",
                tensors=wrong,
            )

    def _pieces(self, one: Planned) -> Iterator[Bytes]:
        import numpy as np

        tensor, format = one.tensor, one.format
        assert format is not None
        kept = None if self._rounded is None else self._rounded(tensor.name, format.name)
        if kept is not None:
            data, error = kept
            self.reports.append(TensorReport(name=tensor.name, format=format.name, nbytes=one.nbytes, error=error))
            yield np.ascontiguousarray(data)
            return
        hessian = self._hessian_of(one)
        if hessian is not None:
            found = self._second_order(one, hessian)
            self.reports.append(
                TensorReport(
                    name=tensor.name,
                    format=format.name,
                    nbytes=one.nbytes,
                    error=found.error,
                    nearest=found.nearest,
                    fallback=found.fallback,
                )
            )
            yield np.ascontiguousarray(found.data)
            return
        importance = self._kept("moments", tensor.name)
        if importance is not None and importance.ndim != 1:
            importance = None  # of experts, each with its own
        for start in range(0, tensor.rows, _ROWS):
            rows = self._source.rows(tensor.name, start, min(start + _ROWS, tensor.rows))
            yield np.ascontiguousarray(format.encode(rows, importance))
        self.reports.append(TensorReport(name=tensor.name, format=format.name, nbytes=one.nbytes))

    def _second_order(self, one: Planned, hessian: NDArray[np.float32]) -> Rounded:
        from pressroom.compress.rounding import Curvature, rounded

        assert one.format is not None
        if self._curvature is None or self._curvature[0] is not hessian:
            self._curvature = hessian, Curvature(hessian)
        name = one.tensor.name
        importance = self._kept("moments", name)
        rows = self._source.rows(name)
        how: dict[str, Any] = {}
        if one.tensor.type in _PLAIN and keeps_zero(one.format):
            how = sparsity_of(rows)
        return rounded(rows, self._curvature[1], one.format, importance=importance, **how)

    def _hessian_of(self, one: Planned) -> NDArray[np.float32] | None:
        """What enters the layer, where it is to be rounded with that in mind: an embedding only where it is the head
        as well."""
        assert one.format is not None
        if one.tensor.role == "experts" or not bits_below_16(one.format.name):
            return None
        if self._recipe.rounding_of(one.tensor.name) != "gptq":
            return None
        return self._kept("hessians", one.tensor.name)

    def _kept(self, what: str, name: str) -> NDArray[np.float32] | None:
        if self._calibration is None:
            return None
        kept: Mapping[str, Any] = getattr(self._calibration, what)
        found: NDArray[np.float32] | None = kept.get(name)
        return found if found is not None and found.any() else None
