"""Sequences of models that remember more than keys and values (states of recurrent or linear attention layers).

Each has a cache of its own and is stepped by itself, in turn: correct for everything transformers has, and no faster
for several than for one. Nothing is kept for prompts that come again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from pressroom.engines._transformers.rows import Kept, Model, Prompt


class ApartReading:
    """One prompt that is read."""

    def __init__(self, model: Model, prompt: Prompt) -> None:
        self._model = model
        self._tokens = torch.tensor(prompt.tokens, device=model.device)[None]
        self._cache = DynamicCache(config=model.config)

    def step(self, most: int) -> torch.Tensor | None:
        """As `Reading.step`, all of it at once: recurrent layers begin anew with each piece of several tokens."""
        places = torch.arange(self._tokens.shape[1], device=self._model.device)[None]
        return self._model.forward(self._tokens, places, None, self._cache)

    def kept(self, row: int) -> Any:
        """What the model remembers of the prompt; handed over, not copied."""
        return _Sequence(self._cache, self._tokens.shape[1])


class _Sequence:
    def __init__(self, cache: DynamicCache, length: int) -> None:
        self.cache = cache
        self.length = length


class ApartRows:
    """What `Rows` is, for these models."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._sequences: list[_Sequence] = []

    @property
    def lengths(self) -> list[int]:
        """Tokens each has read."""
        return [sequence.length for sequence in self._sequences]

    def read(self, prompts: Sequence[Prompt]) -> ApartReading:
        """Begin to read this one."""
        (prompt,) = prompts
        return ApartReading(self.model, prompt)

    def join(self, kept: Any) -> None:
        """A new last row."""
        self._sequences.append(kept)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """As `Rows.step`."""
        logits = []
        for sequence, token in zip(self._sequences, tokens, strict=True):
            given = torch.tensor([[token]], device=self.model.device)
            place = torch.tensor([[sequence.length]], device=self.model.device)
            logits.append(self.model.forward(given, place, None, sequence.cache))
            sequence.length += 1
        return torch.cat(logits)

    def kept(self, row: int) -> Kept:
        raise AssertionError("nothing is kept of these")

    def leave(self, row: int, *, wipe: bool = False) -> None:
        """As `Rows.leave`."""
        last = self._sequences.pop()
        if row < len(self._sequences):
            self._sequences[row] = last

    def clear(self) -> None:
        """Forget all of them."""
        self._sequences.clear()
