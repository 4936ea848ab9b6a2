"""A text as the windows that a model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from pressroom.compress.calibrate._llama import Llama

    Tokens = NDArray[np.int32]

# No tokenizer in use packs this many characters into a token on average, so the rest of a long text need not be read.
_MOST_CHARACTERS_A_TOKEN = 64


def read_part(text: str, tokens: int) -> str:
    """What there is to read of a text for so many tokens."""
    return text[: tokens * _MOST_CHARACTERS_A_TOKEN]


def windows_of(llama: Llama, text: str, *, tokens: int, window: int) -> tuple[Tokens, list[Tokens]]:
    """The tokens of what is read, and the whole windows of it, at most `tokens` tokens in all: `window` tokens each,
    the first of them the one that every text begins with where the model has one.

    Raises:
        RecipeError: the text is shorter than a window.
    """
    found = llama.tokens(read_part(text, tokens))
    bos = llama.bos
    body = window if bos is None else window - 1
    count = min(tokens // window, len(found) // body)
    if count == 0:
        raise RecipeError(
            f"the calibration text is too short: {len(found)} tokens, and one window takes {body}",
            hint="Name a longer text, or ask for a smaller window.",
            tokens=len(found),
            window=window,
        )
    parts = [found[number * body : (number + 1) * body] for number in range(count)]
    if bos is not None:
        parts = [np.concatenate([np.array([bos], np.int32), part]) for part in parts]
    return found, parts
