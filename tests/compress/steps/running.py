"""What llama.cpp makes of a file, token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pressroom.compress.calibrate._llama import Llama

from .conftest import TEXT


def log_probabilities(path: Path, *, window: int = 512, text: str = TEXT, first: int = 0) -> np.ndarray:
    """(tokens, vocabulary) on one window of a text."""
    llama = Llama(path, window=window, piece=window, threads=1, watch=lambda *_: False)
    tokens = llama.tokens(text)[first : first + window]
    if llama.bos is not None:
        tokens = np.concatenate([np.array([llama.bos], np.int32), tokens[: window - 1]])
    llama.read(tokens, 0)
    logits = llama.logits(len(tokens)).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(before: np.ndarray, now: np.ndarray) -> float:
    return float((np.exp(before) * (before - now)).sum(axis=1).mean())
