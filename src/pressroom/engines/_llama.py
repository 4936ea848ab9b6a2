"""The few functions of llama.cpp's C interface that scoring a text needs, from the library inside `xllamacpp`.

The wheel's Python interface gives sampled tokens, not the probabilities of given ones. The parameter structs grow with
every release, so they are passed on as the library filled them: blocks that are larger than any release's, of which
only the first three numbers are set. Whether these are still what they were is asked of the library afterwards, so a
changed layout is an error and never a wrong figure.
"""

from __future__ import annotations

import ctypes as c
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.kernel import EngineError

# More than any llama.cpp struct of parameters so far (about 200 bytes); the callee reads and writes its own size.
_PARAMS_WORDS = 256
_ROWS = 32  # rows of logits turned to float64 at once: 12 MB for a vocabulary of 49,152


class _Params(c.Structure):
    _fields_ = [("words", c.c_uint32 * _PARAMS_WORDS)]


class _Batch(c.Structure):
    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_model_default_params": (_Params, []),
    "llama_context_default_params": (_Params, []),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, _Params]),
    "llama_init_from_model": (c.c_void_p, [c.c_void_p, _Params]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_vocab_n_tokens": (c.c_int32, [c.c_void_p]),
    "llama_vocab_get_add_bos": (c.c_bool, [c.c_void_p]),
    "llama_vocab_bos": (c.c_int32, [c.c_void_p]),
    "llama_tokenize": (
        c.c_int32,
        [c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool],
    ),
    "llama_batch_init": (_Batch, [c.c_int32, c.c_int32, c.c_int32]),
    "llama_decode": (c.c_int32, [c.c_void_p, _Batch]),
    "llama_get_logits": (c.POINTER(c.c_float), [c.c_void_p]),
    "llama_get_memory": (c.c_void_p, [c.c_void_p]),
    "llama_memory_clear": (None, [c.c_void_p, c.c_bool]),
    "llama_set_n_threads": (None, [c.c_void_p, c.c_int32, c.c_int32]),
    "llama_n_ctx": (c.c_uint32, [c.c_void_p]),
    "llama_n_batch": (c.c_uint32, [c.c_void_p]),
    "llama_n_ubatch": (c.c_uint32, [c.c_void_p]),
}


class Llama:
    """One model, scored in windows of `window` tokens. Never freed: it lives as long as its process.

    Raises:
        EngineError: the model does not load, or this release of the library has another layout.
    """

    def __init__(self, model: Path, *, window: int, threads: int) -> None:
        self._lib = _library()
        self.window = window
        handle = self._lib.llama_model_load_from_file(str(model).encode(), self._lib.llama_model_default_params())
        if not handle:
            raise EngineError(f"llama.cpp cannot load {model.name}", hint="The lines above say why.")
        params = self._lib.llama_context_default_params()
        params.words[0] = params.words[1] = params.words[2] = window  # n_ctx, n_batch, n_ubatch
        self._context = self._lib.llama_init_from_model(handle, params)
        if not self._context:
            raise EngineError(f"llama.cpp cannot make room to score {model.name}", hint="The lines above say why.")
        sizes = [int(getattr(self._lib, f"llama_{name}")(self._context)) for name in ("n_ctx", "n_batch", "n_ubatch")]
        if sizes[0] < window or sizes[1:] != [window, window]:
            raise _changed(f"asked for {window} tokens, it made room for {sizes}")
        self._lib.llama_set_n_threads(self._context, threads, threads)
        self._vocab = self._lib.llama_model_get_vocab(handle)
        self.vocabulary = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self._batch = self._lib.llama_batch_init(window, 0, 1)
        filled = (self._batch.token, self._batch.pos, self._batch.n_seq_id, self._batch.seq_id, self._batch.logits)
        if self._batch.n_tokens != 0 or self._batch.embd or not all(filled):
            raise _changed("a new batch is not empty")

    @property
    def bos(self) -> int | None:
        """The token every text begins with, or None where the model wants none."""
        return int(self._lib.llama_vocab_bos(self._vocab)) if self._lib.llama_vocab_get_add_bos(self._vocab) else None

    def tokens(self, text: str) -> NDArray[np.int32]:
        """The text as tokens, with what the model wants at its beginning; markers in it are plain text."""
        data = text.encode()
        room = len(data) + 8
        buffer = (c.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, room, True, False)
        if count < 0:
            raise EngineError("llama.cpp cannot tokenise the text", hint="Take a shorter one.")
        return np.array(buffer[:count], dtype=np.int32)

    def log_probabilities(self, tokens: NDArray[np.int32], first: int) -> NDArray[np.float64]:
        """Natural logarithms of the probabilities of `tokens[first + 1:]`, each given all before it.

        `tokens` is one window or less, read into an empty memory.
        """
        return log_softmax_at(self.logits(tokens, first), tokens[first + 1 :])

    def logits(self, tokens: NDArray[np.int32], first: int) -> NDArray[np.float32]:
        """What is said of each of `tokens[first + 1:]` given all before it: a row of the vocabulary each.

        They lie in the context's own memory, until the next call.
        """
        count = len(tokens)
        assert 0 <= first < count - 1 and count <= self.window
        batch = self._batch
        for i, token in enumerate(tokens.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = first <= i < count - 1
        batch.n_tokens = count
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            raise EngineError(f"llama.cpp cannot score a window of {count} tokens: status {status}")
        rows = count - 1 - first
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), shape=(rows, self.vocabulary))


def log_softmax_at(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """For each row of logits the log-probability of its target, summed in float64 a few rows at a time."""
    found = np.empty(len(targets))
    for start in range(0, len(targets), _ROWS):
        rows = _log_softmax(logits[start : start + _ROWS])
        found[start : start + _ROWS] = np.take_along_axis(
            rows, targets[start : start + _ROWS, None].astype(np.int64), axis=1
        )[:, 0]
    return found


def divergences(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """For each row the Kullback-Leibler divergence D(reference ‖ other) of the two distributions, in nats."""
    found = np.empty(len(logits))
    for start in range(0, len(logits), _ROWS):
        p, q = _log_softmax(reference[start : start + _ROWS]), _log_softmax(logits[start : start + _ROWS])
        q -= p
        np.exp(p, out=p)
        p *= q
        found[start : start + _ROWS] = -p.sum(axis=1)
    return found


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def _library() -> Any:
    import xllamacpp.xllamacpp as binding

    library = c.CDLL(binding.__file__)
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise _changed(f"it does not export {name}") from None
        function.restype, function.argtypes = result, arguments
    return library


def _changed(found: str) -> EngineError:
    return EngineError(
        f"this release of xllamacpp cannot be used to score a text: {found}",
        hint="Install the release that constraints.txt names.",
    )
