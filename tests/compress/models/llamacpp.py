"""The logits that the installed llama.cpp computes."""

from __future__ import annotations

import ctypes as c
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.calibrate._llama import Llama


def logits(model: Path, tokens: list[int]) -> NDArray[np.float32]:
    """(positions, vocabulary) of one text. Its memory of keys and values is float16."""
    room = max(32, len(tokens))
    llama = Llama(model, window=room, piece=room, threads=1, watch=lambda node, ask: False)
    library = llama._lib
    library.llama_get_logits.restype, library.llama_get_logits.argtypes = c.POINTER(c.c_float), [c.c_void_p]
    llama._checked = True  # nothing is watched
    llama.read(np.array(tokens, np.int32), 0)
    shape = (len(tokens), library.llama_vocab_n_tokens(llama._vocab))
    return np.ctypeslib.as_array(library.llama_get_logits(llama._context), shape).copy()
