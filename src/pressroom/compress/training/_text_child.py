"""Makes tokens of a text in a process of its own: a crash of native code stays here.

Started by `_text`: the model's path, the descriptor of the text and that of the file for the tokens are its arguments.
"""

from __future__ import annotations

import ctypes as c
import json
import os
import sys

import numpy as np

_CONTROL = 1 << 3  # llama_token_attr


def main() -> int:
    from pressroom.compress.calibrate._llama import _library

    model, text, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    library = _library()
    library.llama_vocab_is_eog.restype, library.llama_vocab_is_eog.argtypes = c.c_bool, [c.c_void_p, c.c_int32]
    handle = library.llama_model_load_from_file(model.encode(), library.llama_model_default_params())
    if not handle:
        return 1
    vocabulary = library.llama_model_get_vocab(handle)
    with os.fdopen(text, "rb") as given:
        data = given.read()
    buffer = np.zeros(len(data) + 8, np.int32)
    place = buffer.ctypes.data_as(c.POINTER(c.c_int32))
    count = library.llama_tokenize(vocabulary, data, len(data), place, len(buffer), False, False)
    if count < 0:
        return 1
    every = range(library.llama_vocab_n_tokens(vocabulary))
    head = {
        "bos": library.llama_vocab_bos(vocabulary) if library.llama_vocab_get_add_bos(vocabulary) else None,
        "ends": [token for token in every if library.llama_vocab_is_eog(vocabulary, token)],
        "controls": [token for token in every if library.llama_vocab_get_attr(vocabulary, token) & _CONTROL],
    }
    with os.fdopen(tokens, "wb") as found:
        found.write(json.dumps(head).encode() + b"\n")
        found.write(buffer[:count].tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
