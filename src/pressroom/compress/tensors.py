"""Tensors rounded when the file comes to them, and what became of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.compress.recipe import Recipe, bits_below_16
from pressroom.kernel import Progress, RecipeError, Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.rounding import Curvature, Rounded
    from pressroom.compress.weights import Plan, Planned, Weights

    Bytes = NDArray[np.uint8]
    #: Gives the data of a tensor (its name) in a format (its name), with the share of its output that is lost, or None.
    Kept = Callable[[str, str], tuple[Bytes, float] | None]

# Rows that are rounded at once where no second-order pass needs all of them: 64 MB of a model's widest layer.
_ROWS = 4_096


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
        return rounded(self._source.rows(name), self._curvature[1], one.format, importance=importance)

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
