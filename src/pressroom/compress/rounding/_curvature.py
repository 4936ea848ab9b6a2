"""What enters a layer, as its hessian, checked and factored for the columns to be gone through in some order."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.kernel import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.compress.rounding.base import Floats

    Indices = NDArray[np.intp]

#: How often the damping is raised, tenfold each time, before the hessian is given up.
_RAISES = 4
#: The damping after none at all.
_LEAST_DAMP = 1e-4
#: How far two entries that should be equal may lie apart, relative to the largest of the diagonal. Float32 sums over
#: many tokens, done in another order for each half, differ by about 1e-6.
_ASYMMETRY = 1e-3


def needs_torch() -> Any:
    """The module torch. Raises MissingDependencyError."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "rounding and pruning need PyTorch, which is not installed",
            hint="Install it: pip install 'pressroom[compress]'",
            missing="torch",
        ) from error
    return torch


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Let torch use so many threads for a while."""
    torch = needs_torch()
    if threads < 1:
        raise RecipeError(f"{threads} threads cannot compute", hint="Ask for 1 or more.", asked=threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """H = M D Mᵀ of the damped hessian with its columns in some order, M upper triangular with ones on its diagonal.

    With E = W - Q this makes trace(E H Eᵀ) the sum over columns k of D_k |(E M)_k|², where (E M)_k is E_k plus what
    M says of the columns before it. So column k is best rounded to what is nearest to W_k plus that, whatever comes
    after it: the pass of GPTQ, without the inverse of H.

    mixing: M, a float32 tensor. stiffness: D, float32. damp: the share of the mean diagonal that was added to it.
    """

    mixing: Any
    stiffness: Any
    damp: float


class Curvature:
    """The hessian of a layer. Layers with the same input can share one, so that it is factored once. Threads may
    share it too.

    matrix, diagonal: the hessian, scaled so that the largest of its diagonal lies between 0.5 and 1.

    Raises:
        RecipeError: it is not a square matrix, not symmetric, has a negative diagonal, or an entry that is infinite or
            not a number.
    """

    def __init__(self, hessian: Floats) -> None:
        hessian = np.asarray(hessian, dtype=np.float32)
        if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or not hessian.size:
            raise RecipeError(
                f"a hessian has as many rows as columns; this one has the shape {hessian.shape}", shape=hessian.shape
            )
        must_be_finite(hessian, "the hessian")
        self.diagonal: Floats = hessian.diagonal().copy()
        most = float(self.diagonal.max())
        if self.diagonal.min() < 0:
            raise RecipeError(
                f"the hessian has {self.diagonal.min():g} on its diagonal at {int(self.diagonal.argmin())}, "
                "where mean squares are",
                hint="Collect it again.",
            )
        apart = float(np.abs(hessian - hessian.T).max())
        if apart > _ASYMMETRY * most:
            raise RecipeError(
                f"the hessian is not symmetric: entries that should be equal are {apart:g} apart",
                hint="Collect it again.",
            )
        # Only the direction of the hessian counts. Near 1, and scaled by a power of 2, it neither overflows nor loses.
        scale = np.float32(2.0 ** min(-math.frexp(most)[1], 126)) if most > 0 else np.float32(1)
        self.diagonal *= scale
        self.matrix: Floats = hessian * (scale / 2)
        self.matrix += self.matrix.T.copy()
        self._lock = threading.Lock()
        self._last: tuple[tuple[bytes, float], Factor | None] | None = None

    @property
    def columns(self) -> int:
        """How many inputs the layer has."""
        return len(self.diagonal)

    @property
    def usable(self) -> bool:
        """Whether anything entered the layer."""
        return bool(self.diagonal.max() > 0)

    def factor(self, order: Indices, damp: float) -> Factor | None:
        """The factor for columns in this order; None where it cannot be had even with more damping.

        The last one is kept: many formats and layers ask for the same.
        """
        key = (order.tobytes(), damp)
        with self._lock:  # who comes second waits, rather than do the same again
            if self._last is None or self._last[0] != key:
                self._last = (key, self._factored(order, damp))
            return self._last[1]

    def losses(self, difference: Floats) -> NDArray[np.float64]:
        """E_i H E_iᵀ for every row of a difference of weights, with the scaled hessian: (rows,)."""
        torch = needs_torch()
        exponent = math.frexp(float(np.abs(difference).max()))[1]
        errors = torch.from_numpy(np.ldexp(difference, -exponent))
        products = (errors @ torch.from_numpy(self.matrix)).mul_(errors)
        result: NDArray[np.float64] = products.sum(dim=1, dtype=torch.float64).clamp_(min=0).numpy()
        # The squares of very small or large weights are no float32, but are a float64.
        return result * 4.0**exponent

    def _factored(self, order: Indices, damp: float) -> Factor | None:
        torch = needs_torch()
        if not self.usable:
            return None
        mean = float(self.diagonal.mean(dtype=np.float64))
        # Reversed, so that the lower triangle of Cholesky becomes an upper one: H = L Lᵀ gives J H J = (J L J)(J L J)ᵀ.
        reverse = order[::-1]
        matrix = torch.from_numpy(self.matrix[np.ix_(reverse, reverse)]).to(torch.float64)
        diagonal = matrix.diagonal().clone()
        for _ in range(1 + _RAISES):
            matrix.diagonal().copy_(diagonal + damp * mean)
            lower, failed = torch.linalg.cholesky_ex(matrix)
            if not int(failed):
                roots = lower.diagonal()
                mixing = (lower / roots).flip(0, 1).to(torch.float32).contiguous()
                stiffness = roots.square().flip(0).to(torch.float32)
                if bool(torch.isfinite(mixing).all()) and float(stiffness.min()) > 0:
                    return Factor(mixing, stiffness, damp)
            damp = max(10 * damp, _LEAST_DAMP)
        return None


def curved(hessian: Floats | Curvature) -> Curvature:
    """The curvature of a hessian that may already be one."""
    return hessian if isinstance(hessian, Curvature) else Curvature(hessian)


def must_be_finite(array: Floats, what: str) -> None:
    """Raises RecipeError that names the first entry that is infinite or not a number."""
    # A sum is finite only if all are, and needs no array of the same size; it may also overflow, so then look closely.
    with np.errstate(all="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = tuple(int(at) for at in bad[0])
        raise RecipeError(
            f"{what}: the entry at {place} is {array[place]}; {len(bad):,} of {array.size:,} are not finite",
            hint="The model or its calibration is damaged: check the weights, and that the model gives finite outputs.",
            at=place,
            count=len(bad),
        )


def checked(weights: Floats, curvature: Curvature, damp: float) -> Floats:
    """The weights as float32, if they and the hessian belong together. Raises RecipeError."""
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    if weights.ndim != 2 or not weights.size:
        raise RecipeError(f"weights are a matrix of (rows, columns); these have the shape {weights.shape}")
    if weights.shape[1] != curvature.columns:
        raise RecipeError(
            f"the weights have {weights.shape[1]:,} columns, the hessian has {curvature.columns:,}",
            hint="The hessian was collected at another layer.",
            weights=weights.shape[1],
            hessian=curvature.columns,
        )
    if not 0 <= damp < float("inf"):
        raise RecipeError(f"a damping of {damp} is not possible", hint="Give a number from 0 on; 0.01 is usual.")
    must_be_finite(weights, "the weights")
    return weights


def relative(losses: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    """The sum of losses as a share of the whole; where that is 0 nothing can be lost."""
    total = float(whole.sum())
    return float(losses.sum()) / total if total > 0 else 0.0
