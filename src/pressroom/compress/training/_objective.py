"""What is made small: how far the student is from the teacher's probabilities, and from the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """`alpha` times the soft loss plus 1 - `alpha` times the hard one.

    Soft: the KL divergence of the student's probabilities from the teacher's, both at `temperature`, times its square,
    which keeps the gradients as large as at 1 (arXiv 1503.02531). Hard: the cross entropy of the text at temperature 1.
    """

    alpha: float = 0.5
    temperature: float = 2.0

    def loss(self, student: Tensor, teacher: Tensor | None, tokens: Tensor) -> Tensor:
        """Of logits (windows, positions, vocabulary) at `tokens` (windows, positions); the mean over positions. The
        last position of a window has no next token, and counts for neither. A token below 0 is none: what it would be
        the answer to is left out."""
        logits = student[:, :-1].float()
        answers = tokens[:, 1:]
        known = answers >= 0
        total = logits.new_zeros(())
        if self.alpha < 1 or teacher is None:
            hard = F.cross_entropy(logits[known], answers[known])
            total = total + (1 - self.alpha if teacher is not None else 1) * hard
        if teacher is not None and self.alpha > 0:
            soft = divergence(teacher[:, :-1].float()[known], logits[known], temperature=self.temperature)
            total = total + self.alpha * self.temperature**2 * soft
        return total


def divergence(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The mean KL divergence of the student's probabilities from the teacher's, of logits (positions, vocabulary)."""
    return F.kl_div(
        torch.log_softmax(student / temperature, dim=-1),
        torch.log_softmax(teacher / temperature, dim=-1),
        log_target=True,
        reduction="batchmean",
    )
