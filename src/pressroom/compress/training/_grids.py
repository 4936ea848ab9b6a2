"""Weights that a forward pass sees rounded to a number format, while their gradients go to the weights behind.

The scales of all blocks are the ones that the format's own search finds; they stay for some steps, and each weight goes
to the nearest value of its block at every step (Jacob et al., arXiv 1712.05877; the gradient passes the rounding
unchanged, Bengio et al., arXiv 1308.3432). What is written in the end are these very values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from pressroom.compress.numbers import NumberFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

# Beyond what any block holds: the nearest value to it is a block's last.
_FAR = np.float32(3e38)
_SUB_SCALES = ("sub-scale", "sub-min")


class Grids:
    """The values that the weights of matrices may take, each matrix in a format. `attach` puts them before the layers
    of a model, `refresh` chooses scales anew, `packed` gives the bytes for a file."""

    def __init__(self, modules: Mapping[str, nn.Module], form: NumberFormat) -> None:
        self._form = form
        self._modules = dict(modules)
        self._rounded: dict[str, _Rounded] = {}

    def attach(self) -> None:
        """From here on the modules compute with rounded weights; call `detach` in the end."""
        for name, module in self._modules.items():
            weight: Any = module.weight
            self._rounded[name] = _Rounded(weight, self._form)
            parametrize.register_parametrization(module, "weight", self._rounded[name], unsafe=True)

    def refresh(self) -> None:
        """Choose the scales that suit the weights as they are now."""
        for one in self._rounded.values():
            one.refresh()

    def packed(self, name: str) -> NDArray[np.uint8]:
        """The weights of a module on their grid, in the format's bytes, (rows, bytes)."""
        return self._rounded[name].packed()

    def detach(self) -> None:
        """The modules have their weights behind the rounding again."""
        for module in self._modules.values():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


class _Rounded(nn.Module):
    """The grid of one matrix."""

    def __init__(self, weight: nn.Parameter, form: NumberFormat) -> None:
        super().__init__()
        self._weight = [weight]  # in a list: it is not this module's
        self._form = form
        pieces = [piece for piece in form.layout() if piece.field in _SUB_SCALES]
        self._subs = 1 + max((item for piece in pieces for item in piece.items), default=0)
        self.refresh()

    def refresh(self) -> None:
        weight = self._weight[0]
        blocks = self._blocks()
        self._grid = self._form.grid(blocks)
        lowest, highest, codes = [], [], []
        for sub in range(self._subs):
            at = sub * self._form.block // self._subs
            first = self._grid.nearest(np.full(len(blocks), -_FAR), at)
            last = self._grid.nearest(np.full(len(blocks), _FAR), at)
            lowest.append(self._grid.values(first, at))
            highest.append(self._grid.values(last, at))
            codes.append(np.abs(last.astype(np.int32) - first.astype(np.int32)).max())
        self._most = int(max(codes))
        low, high = np.stack(lowest, axis=1), np.stack(highest, axis=1)
        step: NDArray[np.float32] = ((high - low) / np.float32(max(1, self._most))).astype(np.float32)
        self._low = torch.from_numpy(low)[..., None].to(weight.device)
        self._step = torch.from_numpy(step)[..., None].to(weight.device)
        self._inverse = torch.where(self._step > 0, 1 / self._step, 0.0)
        self._table = None if self._even(low, step) else self._values().to(weight.device)

    def forward(self, weight: Tensor) -> Tensor:
        found: Tensor = _Through.apply(weight, self)  # type: ignore[no-untyped-call]
        return found

    def nearest(self, weight: Tensor) -> Tensor:
        """Each weight as the nearest value of its block."""
        cut = weight.reshape(*self._low.shape[:2], -1)
        if self._table is None:
            t = (cut - self._low).mul_(self._inverse).round_().clamp_(0, self._most)
            return t.mul_(self._step).add_(self._low).reshape(weight.shape)
        between = (self._table[..., 1:] + self._table[..., :-1]) / 2
        places = torch.searchsorted(between.contiguous(), cut.contiguous())
        return torch.gather(self._table, -1, places).reshape(weight.shape)

    def packed(self) -> NDArray[np.uint8]:
        blocks = self._blocks()
        codes = np.stack([self._grid.nearest(blocks[:, at], at) for at in range(self._form.block)], axis=1)
        return self._grid.pack(codes).reshape(len(self._weight[0]), -1)

    def _blocks(self) -> NDArray[np.float32]:
        return self._weight[0].detach().cpu().numpy().reshape(-1, self._form.block)

    def _even(self, low: NDArray[np.float32], step: NDArray[np.float32]) -> bool:
        """Whether the values of the blocks lie at equal distances."""
        for code in range(1, self._most):
            values = self._grid.values(np.full(len(low), code, np.uint8), 0)
            off = (values - low[:, 0]) / np.where(step[:, 0] > 0, step[:, 0], 1)
            inside = off[(step[:, 0] > 0) & (off > -0.5) & (off < self._most + 0.5)]
            if np.abs(inside - np.rint(inside)).max(initial=0.0) > 0.05:
                return False
        return True

    def _values(self) -> Tensor:
        """All values of every block in rising order, (blocks, sub-blocks, values)."""
        count = len(self._low)
        found = [
            [
                self._grid.values(np.full(count, code, np.uint8), sub * self._form.block // self._subs)
                for code in range(self._most + 1)
            ]
            for sub in range(self._subs)
        ]
        return torch.from_numpy(np.sort(np.array(found).transpose(2, 0, 1), axis=-1))


class _Through(torch.autograd.Function):
    """Rounds on the way forth, and is not there on the way back."""

    @staticmethod
    def forward(context: Any, weight: Tensor, grid: _Rounded) -> Tensor:
        return grid.nearest(weight)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return gradients[0], None
