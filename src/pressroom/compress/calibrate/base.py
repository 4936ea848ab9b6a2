"""What was seen at the inputs of a model's linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """The inputs of every linear layer over `tokens` positions: `windows` windows of `window` tokens each, read from an
    empty memory, the first position of each included (where `bos`, it is the token that every text begins with).

    By the names of the tensors in the file: `moments`, float32 (columns,), the mean over positions of the square of
    each input column; `hessians`, float32 (columns, columns), the mean of x xᵀ, symmetric bit for bit, empty where they
    were not asked for. Tensors that are multiplied with the same input (q, k and v; gate and up) refer to one array.
    A tensor of several matrices (experts) has a first dimension more, and `positions`, int64 (matrices,), says how many
    positions each one saw: `tokens` for a dense one. A matrix that saw none has zeros. The arrays are mapped from a
    file, read-only. The table of embeddings is here under its name where it is the output head too.

    `unseen` are the matrices that saw nothing ("blk.3.ffn_up_exps.weight[7]" for one of several).
    `tokens_per_character` and `fallback_share` (of tokens that are bytes of a character, or unknown) are of the text
    that was read; both are high where the tokenizer was not made for its language.
    """

    model_digest: str
    text_digest: str
    window: int
    windows: int
    tokens: int
    bos: bool
    tokens_per_character: float
    fallback_share: float
    by: str
    unseen: tuple[str, ...]
    moments: Mapping[str, NDArray[np.float32]]
    hessians: Mapping[str, NDArray[np.float32]]
    positions: Mapping[str, NDArray[np.int64]]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes one doubt that the text is in a language of the model."""
        found = []
        if self.fallback_share > _MOST_FALLBACK:
            found.append(
                f"{self.fallback_share:.0%} of the calibration text's tokens are single bytes or unknown: the "
                "tokenizer was not made for its language or kind"
            )
        if self.tokens_per_character > _MOST_PER_CHARACTER:
            found.append(
                f"the calibration text takes {self.tokens_per_character:.2f} tokens a character, and text in a "
                "language of the model takes about 0.25: it may be in another one"
            )
        return tuple(found)


# Prose in a language that the tokenizer was made for has under 1 % and about 0.25 (English in a vocabulary of 49,152);
# source code and tables reach 0.4. Scripts of about a token a character (Chinese) are warned of where bytes do it.
_MOST_FALLBACK = 0.05
_MOST_PER_CHARACTER = 0.5
