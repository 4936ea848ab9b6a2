"""How good a model is on windows that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from pressroom.compress.training._objective import divergence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Means over positions, in nats: the cross entropy of the text, and the KL divergence from the teacher (None: there
    is none)."""

    loss: float
    divergence: float | None = None


def measured(student: nn.Module, windows: NDArray[np.int64], *, teacher: nn.Module | None = None) -> Measured:
    """Of a model, in float32, one window after the other."""
    losses, divergences = [], []
    device = next(student.parameters()).device
    with torch.no_grad():
        for window in torch.from_numpy(windows).to(device):
            logits = logits_of(student, window[None])[0, :-1].float()
            losses.append(float(F.cross_entropy(logits, window[1:])))
            if teacher is not None:
                divergences.append(float(divergence(logits_of(teacher, window[None])[0, :-1].float(), logits)))
    mean = sum(divergences) / len(divergences) if divergences else None
    return Measured(loss=sum(losses) / len(losses), divergence=mean)


def logits_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """(windows, positions, vocabulary) for (windows, positions)."""
    found: torch.Tensor = model(input_ids=tokens).logits
    return found
