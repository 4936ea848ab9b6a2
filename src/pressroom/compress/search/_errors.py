"""What each tensor would lose in each format: rounded on some of its rows, as the file would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.numbers import NumberFormat, formats, number_format
from pressroom.compress.rounding import Curvature, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.weights import Tensor, Weights

# Rows of a tensor that tell what all of them lose: on SmolLM2 within a tenth.
SAMPLE = 96
# Layers of each kind, evenly spaced, that all formats are tried on; the others only with those that were of use there.
_SCOUTS = 3


def fitting(tensor: Tensor) -> list[NumberFormat]:
    """The formats that a tensor can be put in and that are smaller than it is, the largest first."""
    size = tensor.nbytes
    return sorted(
        (
            one
            for one in formats()
            if one.ggml is not None
            and one.fits(tensor.columns)
            and one.block > 1
            and tensor.elements // one.block * one.nbytes < size
        ),
        key=lambda one: (-one.bits, one.name),
    )


class Errors:
    """The shares of their outputs, squared, that tensors lose in formats (see `compress.rounding.base`), looked up or
    found out. `known` is where they are kept: tensor → format → share; it is added to."""

    def __init__(self, source: Weights, calibration: Calibration, known: dict[str, dict[str, float]]) -> None:
        self._source = source
        self._calibration = calibration
        self.known = known
        self._curvature: tuple[object, Curvature] | None = None

    def table(
        self, tensors: list[Tensor], on_progress: Callable[[int, int], None]
    ) -> Mapping[str, Mapping[str, float]]:
        """For each tensor the formats that are worth having, with what they lose: of two with equally many bits the
        better, none that loses more than a smaller one does. Those of a layer's kind that are of no use in a few layers
        are not tried in the others."""
        kinds: dict[tuple[str, int], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.part, tensor.columns), []).append(tensor)
        done = 0
        for found in kinds.values():
            scouts = {round(at) for at in np.linspace(0, len(found) - 1, min(_SCOUTS, len(found)))}
            useful: set[str] = set()
            for place in (*sorted(scouts), *(at for at in range(len(found)) if at not in scouts)):
                tensor = found[place]
                wanted = [one.name for one in fitting(tensor) if place in scouts or one.name in useful]
                losses = {name: self.of(tensor, name) for name in wanted}
                if place in scouts:
                    useful |= set(worth_having(losses))
                done += 1
                on_progress(done, len(tensors))
        return {tensor.name: worth_having(self.known.get(tensor.name, {})) for tensor in tensors}

    def of(self, tensor: Tensor, format: str) -> float:
        """What it loses in that format, on a sample of its rows."""
        kept = self.known.setdefault(tensor.name, {})
        if format not in kept:
            rows = sampled(self._source, tensor, SAMPLE)
            kept[format] = rounded(rows, self.curvature(tensor), number_format(format), sweeps=0).error
        return kept[format]

    def importance(self, tensor: Tensor) -> NDArray[np.float32] | None:
        """How much each of its columns weighs; None where that was not seen, or is of experts, each with its own."""
        found = self._calibration.moments.get(tensor.name)
        return found if found is not None and found.ndim == 1 and found.any() else None

    def curvature(self, tensor: Tensor) -> Curvature:
        """What enters it (experts: all of them together); each column alike where that was not seen, as with an
        embedding that is no head. The last one is kept, for the next layer may have the same input."""
        hessian = self._calibration.hessians.get(tensor.name)
        if hessian is None or not hessian.any():
            return Curvature(np.eye(tensor.columns, dtype=np.float32))
        if self._curvature is None or self._curvature[0] is not hessian:
            square = hessian if hessian.ndim == 2 else hessian.mean(axis=0)
            self._curvature = hessian, Curvature(square)
        return self._curvature[1]


def worth_having(losses: Mapping[str, float]) -> dict[str, float]:
    """Those formats than which none with as few bits loses as little, the smallest first."""
    found: dict[str, float] = {}
    least = float("inf")
    for name in sorted(losses, key=lambda name: (number_format(name).bits, losses[name], name)):
        if losses[name] < least:
            found[name] = least = losses[name]
    return found


def sampled(source: Weights, tensor: Tensor, most: int) -> NDArray[np.float32]:
    """Rows of a tensor, evenly spaced, at most so many."""
    if tensor.rows <= most:
        return source.rows(tensor.name)
    places = np.linspace(0, tensor.rows - 1, most).astype(np.int64)
    return np.concatenate([source.rows(tensor.name, int(at), int(at) + 1) for at in places])
