"""Weights that are zero and stay so: those of a student that was pruned, and those that training itself prunes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

# A matrix of fewer zeros was not pruned: some weights are zero by chance.
LEAST_SPARSE = 0.01


class Masks:
    """Which weights of some parameters live, by name. Call `apply` after every step of the optimiser."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._alive: dict[str, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that have a mask now."""
        return tuple(self._alive)

    def keep_zeros(self, *, least: float = LEAST_SPARSE) -> None:
        """What is zero stays so, in every parameter whose share of zeros is `least` or more."""
        for name, parameter in self._parameters.items():
            alive = parameter.detach() != 0
            if 1 - float(alive.float().mean()) >= least:
                self._alive[name] = alive

    def prune(self, share: float) -> None:
        """The `share` of smallest weights of every parameter becomes zero; what was zero is among them."""
        for name, parameter in self._parameters.items():
            dead = round(share * parameter.numel())
            alive = torch.ones(parameter.numel(), dtype=torch.bool, device=parameter.device)
            if dead:
                # Stable, so that of equal weights always the same ones go.
                order = parameter.detach().abs().reshape(-1).sort(stable=True).indices
                alive[order[:dead]] = False
            self._alive[name] = alive.reshape(parameter.shape)
        self.apply()

    def on(self, parameters: Mapping[str, nn.Parameter]) -> Masks:
        """The same masks for other parameters of the same names and shapes."""
        found = Masks(parameters)
        found._alive = dict(self._alive)
        return found

    def apply(self) -> None:
        """Make zero what is to be zero."""
        with torch.no_grad():
            for name, alive in self._alive.items():
                self._parameters[name].mul_(alive)


def zeros(parameters: Mapping[str, nn.Parameter]) -> float:
    """The share of zeros in these parameters together."""
    count = sum(int((one.detach() == 0).sum()) for one in parameters.values())
    return count / max(1, sum(one.numel() for one in parameters.values()))


def shares(step: int, *, start: int, end: int, share: float) -> float:
    """The share of zeros at a step of a schedule: from 0 at `start` to `share` at `end`, fast first and then slower and
    slower, as the cube of what is left (arXiv 1710.01878)."""
    if step >= end:
        return share
    left = 1 - max(0, step - start) / (end - start)
    return share * (1 - left**3)
