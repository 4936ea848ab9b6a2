"""Observers at the inputs of a model's linear layers."""

from __future__ import annotations

import re
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from pressroom.compress.clipping._observer import PERCENTILE, Observer
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch.utils.hooks import RemovableHandle

    from pressroom.compress.numbers import Coded, NumberFormat


class Prepared:
    """A model that is watched while it computes; `close`, or the end of `with`, ends that, and what was seen stays.

    model: as it was given, unchanged. observers: by the names of the linear layers. rounded: the weights of those that
    were converted, by name, format and what was seen by then, with what is lost in them; kept for the next time.
    """

    def __init__(self, model: torch.nn.Module, layers: dict[str, torch.nn.Linear], *, percentile: float) -> None:
        self.model = model
        self.layers = layers
        self.observers = {name: Observer(name, percentile=percentile) for name in layers}
        self.rounded: dict[tuple[str, NumberFormat, int], tuple[Coded, float]] = {}
        self._squares = {name: torch.zeros(layer.in_features, dtype=torch.float64) for name, layer in layers.items()}
        self._handles: list[RemovableHandle] = [
            layer.register_forward_pre_hook(_watch(self.observers[name], self._squares[name]))
            for name, layer in layers.items()
        ]

    def __enter__(self) -> Prepared:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Look no longer."""
        while self._handles:
            self._handles.pop().remove()

    def moments(self, name: str) -> NDArray[np.float32] | None:
        """The mean square of what entered each column of a layer, relative to that of all; None where nothing did, or
        nothing but zeros."""
        squares = self._squares[name]
        if not bool(squares.any()):
            return None
        found: NDArray[np.float32] = (squares / squares.mean()).float().numpy()
        return found

    @property
    def unseen(self) -> tuple[str, ...]:
        """Layers that nothing entered so far."""
        return tuple(name for name, observer in self.observers.items() if not observer.seen)


def prepare(
    model: torch.nn.Module, *, skip: Sequence[str] = (r"(.*\.)?lm_head",), percentile: float = PERCENTILE
) -> Prepared:
    """Put an observer at the input of every linear layer, save those whose whole name a regular expression of `skip`
    matches: by default the output head, which often is the table of embeddings as well and whose errors go straight
    into the answer. The model computes as before; then run text through it.

    Raises:
        RecipeError: no linear layer is left, or an expression is none.
    """
    patterns = expressions(skip, "skip")
    every = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    layers = {name: layer for name, layer in every.items() if not any(one.fullmatch(name) for one in patterns)}
    if not layers:
        raise RecipeError(
            f"of {len(every)} linear layers none is left to be watched",
            hint="Skip fewer of them." if every else "The model has none: only torch.nn.Linear layers are converted.",
            skip=list(skip),
        )
    return Prepared(model, layers, percentile=percentile)


def expressions(given: Sequence[str], what: str) -> list[re.Pattern[str]]:
    """Regular expressions for names of layers. Raises RecipeError where one is none."""
    try:
        return [re.compile(one) for one in given]
    except re.error as error:
        raise RecipeError(
            f"{what} has what is no regular expression: {error}", hint="Name layers, such as lm_head."
        ) from error


def _watch(observer: Observer, squares: torch.Tensor) -> Any:
    def hook(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        values = given[0].detach().float().cpu()
        observer.add(values.numpy())
        squares.add_(values.reshape(-1, values.shape[-1]).square().sum(dim=0, dtype=torch.float64))

    return hook
