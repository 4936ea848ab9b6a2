"""Sums what goes into the layers while llama.cpp computes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from ctypes import addressof
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.calibrate._file import Writing
from pressroom.compress.calibrate._llama import Node
from pressroom.kernel import RecipeError

# Tensors with rows that no input is multiplied with: they are looked up, or convolved.
_NOT_MULTIPLIED = (
    "token_embd.",
    "position_embd.",
    "token_types.",
    "per_layer_token_embd.",
    "conv1d.",
    "shortconv.conv.",
)


def linears(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a file those that multiply an input, outermost dimension first."""
    return {
        name: shape
        for name, shape in shapes.items()
        if len(shape) > 1 and name.endswith(".weight") and not any(part in name for part in _NOT_MULTIPLIED)
    }


def matrices(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """The names of all tensors, and of each matrix in those that are several."""
    for name, shape in shapes.items():
        yield name
        if len(shape) > 2:
            yield from (f"{name}[{matrix}]" for matrix in range(_count(shape)))


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[:-2], dtype=np.int64))


@dataclass(slots=True)
class _Input:
    """The sums over one input, which several tensors may share: squares (matrices, columns), positions (matrices,)."""

    squares: NDArray[np.float64]
    positions: NDArray[np.int64]
    hessian: NDArray[np.float32] | None


@dataclass(slots=True)
class Inputs:
    """Watches the nodes. `shapes` of the file's tensors by name, outermost dimension first; `multiplied` says which
    operations are products, and which of them choose a matrix for each row; `values` reads a tensor."""

    shapes: Mapping[str, tuple[int, ...]]
    writing: Writing
    hessians: bool
    multiplied: Mapping[int, bool] = field(default_factory=dict)
    values: Callable[[int], NDArray[Any]] = field(default=lambda _: np.empty(0))
    of: dict[str, str] = field(default_factory=dict)  # tensor -> the tensor under whose name its input is summed
    sums: dict[str, _Input] = field(default_factory=dict)
    _met: dict[int, str] = field(default_factory=dict)  # address of an input -> the first that takes it
    _names: Counter[bytes] = field(default_factory=Counter)  # of the nodes of the first graph
    _last: tuple[str, bytes] | None = None  # the last product that was met, and the name of its input
    _end: tuple[str, bytes] | None = None  # the last of a graph: its input is enough
    _over: bool = False

    def next_piece(self) -> None:
        """Another graph comes: addresses are used again. What was last in the first is last in all."""
        if self._end is None and self._last is not None and self._names[self._last[1]] == 1:
            self._end = self._last
        self._met.clear()
        self._over = False

    def watch(self, node: Node, ask: bool) -> bool:
        """As `_llama.Watch`. Raises RecipeError where an input is not finite."""
        if self._end is None and ask:
            self._names[node.name] += 1
        if self._over:
            return False
        if self._end is not None and node.name == self._end[1]:
            if not ask:
                # The product itself would be the logits: a quarter of the work in a small model, and nobody wants them.
                self._sum(self._end[0], self.values(addressof(node)))
                self._over = True
            return ask
        if node.op not in self.multiplied:
            return False
        name = self._name(Node.from_address(node.src[0]).name.decode(errors="replace"))
        if name is None:
            return False
        source = int(node.src[1])
        if not ask:
            chosen = self.values(int(node.src[2]))[0, 0] if self.multiplied[node.op] else None
            self._sum(name, self.values(source), chosen)
            return True
        owner = self._met.setdefault(source, name)
        if self.of.setdefault(name, owner) != owner:
            raise RecipeError(
                f"{name!r} takes its input now with {owner!r} and now with {self.of[name]!r}",
                hint="Models whose layers share weights in part cannot be calibrated.",
            )
        if ask and self._end is None:
            alone = owner == name and not self.multiplied[node.op]
            self._last = (name, Node.from_address(source).name) if alone else None
        return owner == name

    def _name(self, found: str) -> str | None:
        """The tensor of the file; a copy on another device is called DEVICE#NAME#NUMBER."""
        if found not in self.shapes and "#" in found:
            found = found.split("#")[1]
        return found if found in self.shapes else None

    def _sum(self, name: str, x: NDArray[np.float32], chosen: NDArray[np.int32] | None = None) -> None:
        """`x` has four dimensions, the columns last; `chosen` (tokens, matrices of each) where there is a choice."""
        count, columns = _count(self.shapes[name]), x.shape[-1]
        if chosen is not None:
            rows = x[0][:, np.arange(chosen.shape[1]) % x.shape[2]]
            for matrix in np.unique(chosen).tolist():
                self._add(name, count, int(matrix), rows[chosen == matrix])
        else:
            each = x.shape[1] // count  # inputs to one matrix
            for matrix in range(count):
                rows = x[:, matrix * each : (matrix + 1) * each].reshape(-1, columns)
                self._add(name, count, matrix, rows)

    def _add(self, name: str, count: int, matrix: int, rows: NDArray[np.float32]) -> None:
        columns = rows.shape[1]
        if name not in self.sums:
            hessian = None
            if self.hessians:
                hessian = self.writing.add(f"hessian.{len(self.sums)}", "F32", _squeezed(count, columns, columns))
                hessian = hessian.reshape(count, columns, columns)
            self.sums[name] = _Input(np.zeros((count, columns)), np.zeros(count, np.int64), hessian)
        found = self.sums[name]
        rows = np.ascontiguousarray(rows)
        with np.errstate(all="ignore"):
            squares = np.einsum("ij,ij->j", rows, rows)
        if not np.isfinite(squares).all():
            raise RecipeError(
                f"what goes into {name!r} is not finite (not a number, or beyond float32)",
                hint="The weights are damaged, or this model cannot be computed so; try it on another text.",
                tensor=name,
                columns=np.flatnonzero(~np.isfinite(squares))[:8].tolist(),
            )
        found.squares[matrix] += squares
        found.positions[matrix] += len(rows)
        if found.hessian is not None:
            found.hessian[matrix] += rows.T @ rows  # one array with itself: half the work, and symmetric

    def finish(self) -> tuple[dict[str, int], list[str]]:
        """Turn sums into means, in the file; the number of each tensor's input there, and what saw nothing."""
        numbers = {owner: number for number, owner in enumerate(self.sums)}
        for owner, found in self.sums.items():
            seen = np.maximum(found.positions, 1)
            if found.hessian is not None:
                found.hessian /= seen[:, None, None].astype(np.float32)
            means = found.squares / seen[:, None]
            self.writing.add(f"moments.{numbers[owner]}", "F32", _squeezed(*means.shape)).reshape(means.shape)[...] = (
                means
            )
            self.writing.add(f"positions.{numbers[owner]}", "I64", seen.shape)[...] = found.positions
        unseen = [name for name in linears(self.shapes) if name not in self.of]
        for name, owner in self.of.items():
            zeros = np.flatnonzero(self.sums[owner].positions == 0).tolist()
            unseen += [f"{name}[{matrix}]" for matrix in zeros]
        return {name: numbers[owner] for name, owner in self.of.items()}, sorted(unseen)


def _squeezed(count: int, *rest: int) -> tuple[int, ...]:
    """A single matrix has no dimension for it."""
    return rest if count == 1 else (count, *rest)
