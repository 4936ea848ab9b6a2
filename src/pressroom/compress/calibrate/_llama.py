"""The functions of llama.cpp's C interface that show what goes into a model's layers, from the library in `xllamacpp`.

llama.cpp calls back before and after each node of its graph, which is how its own tools collect an importance matrix:
every architecture it runs is served, under the names of the file, with its own tokenizer and its own arithmetic.

The parameter structs grow with every release, so they are passed on as the library filled them: the place of the
callback is found by what surrounds it. The layout of a tensor is held against the library's own functions. What does
not fit is an error, and never a wrong figure.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.kernel import EngineError, RecipeError

# More than any llama.cpp struct of parameters so far (about 200 bytes); the callee reads and writes its own size.
_PARAMS_WORDS = 256
_F16 = 1
_OBJECT_BYTES = 32  # what ggml keeps in front of each tensor
_PIECE_BYTES = 256
_UNKNOWN, _BYTE = 1 << 0, 1 << 5  # llama_token_attr


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


class Node(c.Structure):
    """A tensor of ggml: a node of the graph, or what goes into one. Dimensions innermost first."""

    _fields_ = [
        ("kind", c.c_int32),
        ("buffer", c.c_void_p),
        ("ne", c.c_int64 * 4),
        ("nb", c.c_size_t * 4),
        ("op", c.c_int32),
        ("op_params", c.c_int32 * 16),
        ("flags", c.c_int32),
        ("src", c.c_void_p * 10),
        ("view_src", c.c_void_p),
        ("view_offs", c.c_size_t),
        ("data", c.c_void_p),
        ("name", c.c_char * 64),
        ("extra", c.c_void_p),
        ("padding", c.c_char * 8),
    ]


#: (node, whether it is asked before the node is computed): asked, whether to call again after; then, whether to go on.
Watch = Callable[[Node, bool], bool]
_CALLBACK = c.CFUNCTYPE(c.c_bool, c.c_void_p, c.c_bool, c.c_void_p)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_model_default_params": (_Params, []),
    "llama_context_default_params": (_Params, []),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, _Params]),
    "llama_init_from_model": (c.c_void_p, [c.c_void_p, _Params]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_model_n_ctx_train": (c.c_int32, [c.c_void_p]),
    "llama_vocab_n_tokens": (c.c_int32, [c.c_void_p]),
    "llama_vocab_get_add_bos": (c.c_bool, [c.c_void_p]),
    "llama_vocab_bos": (c.c_int32, [c.c_void_p]),
    "llama_vocab_get_attr": (c.c_int, [c.c_void_p, c.c_int32]),
    "llama_token_to_piece": (c.c_int32, [c.c_void_p, c.c_int32, c.c_char_p, c.c_int32, c.c_int32, c.c_bool]),
    "llama_tokenize": (
        c.c_int32,
        [c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool],
    ),
    "llama_batch_init": (_Batch, [c.c_int32, c.c_int32, c.c_int32]),
    "llama_decode": (c.c_int32, [c.c_void_p, _Batch]),
    "llama_get_logits": (c.c_void_p, [c.c_void_p]),
    "llama_get_memory": (c.c_void_p, [c.c_void_p]),
    "llama_memory_clear": (None, [c.c_void_p, c.c_bool]),
    "llama_set_n_threads": (None, [c.c_void_p, c.c_int32, c.c_int32]),
    "llama_n_ctx": (c.c_uint32, [c.c_void_p]),
    "llama_n_batch": (c.c_uint32, [c.c_void_p]),
    "llama_n_ubatch": (c.c_uint32, [c.c_void_p]),
    "ggml_op_name": (c.c_char_p, [c.c_int]),
    "ggml_type_name": (c.c_char_p, [c.c_int]),
    "ggml_get_name": (c.c_void_p, [c.c_void_p]),
    "ggml_get_data": (c.c_void_p, [c.c_void_p]),
    "ggml_nelements": (c.c_int64, [c.c_void_p]),
    "ggml_nbytes": (c.c_size_t, [c.c_void_p]),
    "ggml_tensor_overhead": (c.c_size_t, []),
    "ggml_backend_tensor_get": (None, [c.c_void_p, c.c_void_p, c.c_size_t, c.c_size_t]),
    "ggml_backend_tensor_set": (None, [c.c_void_p, c.c_void_p, c.c_size_t, c.c_size_t]),
}
_DTYPES = {b"f32": np.dtype(np.float32), b"i32": np.dtype(np.int32)}


class Llama:
    """One model, read `piece` tokens at a time in windows of `window`, that shows `watch` its nodes while it computes.

    Never freed: it lives as long as its process.

    Raises:
        RecipeError: llama.cpp does not load the model, or it was not made for windows of that size.
        EngineError: this release of the library has another layout.
    """

    def __init__(self, model: Path, *, window: int, piece: int, threads: int, watch: Watch) -> None:
        self._lib = _library()
        self.multiplied = {self._op(b"MUL_MAT"): False, self._op(b"MUL_MAT_ID"): True}
        handle = self._lib.llama_model_load_from_file(str(model).encode(), self._lib.llama_model_default_params())
        if not handle:
            raise RecipeError(
                f"llama.cpp cannot load {model.name}, so what goes into its layers cannot be seen",
                hint="The lines above say why: it may be of an architecture that this release does not know.",
            )
        longest = int(self._lib.llama_model_n_ctx_train(handle))
        if window > longest > 0:
            raise RecipeError(
                f"a window of {window} tokens was asked for, and the model was made for {longest}",
                hint=f"Ask for a window of at most {longest}.",
            )
        self._watch, self._checked = watch, False
        self._failure: BaseException | None = None
        self._callback = _CALLBACK(self._called)  # kept: the library holds no reference
        params = self._lib.llama_context_default_params()
        params.words[0], params.words[1], params.words[2] = window, piece, piece  # n_ctx, n_batch, n_ubatch
        c.c_void_p.from_buffer(params, 4 * _callback_word(params)).value = c.cast(self._callback, c.c_void_p).value
        self._context = self._lib.llama_init_from_model(handle, params)
        if not self._context:
            raise EngineError(f"llama.cpp cannot make room for {model.name}", hint="The lines above say why.")
        sizes = [int(getattr(self._lib, f"llama_{name}")(self._context)) for name in ("n_ctx", "n_batch", "n_ubatch")]
        if sizes[0] < window or sizes[1:] != [piece, piece]:
            raise _changed(f"asked for {window} tokens in pieces of {piece}, it made room for {sizes}")
        self._lib.llama_set_n_threads(self._context, threads, threads)
        self._vocab = self._lib.llama_model_get_vocab(handle)
        self._batch = self._lib.llama_batch_init(piece, 0, 1)
        filled = (self._batch.token, self._batch.pos, self._batch.n_seq_id, self._batch.seq_id, self._batch.logits)
        if self._batch.n_tokens != 0 or self._batch.embd or not all(filled):
            raise _changed("a new batch is not empty")

    @property
    def bos(self) -> int | None:
        """The token every text begins with, or None where the model wants none."""
        return int(self._lib.llama_vocab_bos(self._vocab)) if self._lib.llama_vocab_get_add_bos(self._vocab) else None

    def tokens(self, text: str) -> NDArray[np.int32]:
        """The text as tokens, without what begins or ends a text; markers in it are plain text."""
        data = text.encode()
        buffer = np.zeros(len(data) + 8, np.int32)
        place = buffer.ctypes.data_as(c.POINTER(c.c_int32))
        count = self._lib.llama_tokenize(self._vocab, data, len(data), place, len(buffer), False, False)
        if count < 0:
            raise RecipeError("llama.cpp cannot tokenise the calibration text", hint="Take a shorter one.")
        return buffer[:count]

    def falls_back(self, token: int) -> bool:
        """Whether a token is unknown, or bytes that are no whole characters."""
        if self._lib.llama_vocab_get_attr(self._vocab, token) & (_UNKNOWN | _BYTE):
            return True
        piece = c.create_string_buffer(_PIECE_BYTES)
        count = self._lib.llama_token_to_piece(self._vocab, token, piece, _PIECE_BYTES, 0, False)
        try:
            piece.raw[: max(0, count)].decode()
        except UnicodeDecodeError:
            return True
        return False

    def read(self, tokens: NDArray[np.int32], first: int) -> None:
        """Compute the model at `tokens`, the `first` one's place in its window being that; 0 empties the memory."""
        batch = self._batch
        for i, token in enumerate(tokens.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = True  # or the last layer is computed for the last position only
        batch.n_tokens = len(tokens)
        if first == 0:
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        status = self._lib.llama_decode(self._context, batch)
        if self._failure is not None:
            raise self._failure
        if status != 0:
            raise EngineError(f"llama.cpp cannot read {len(tokens)} tokens: status {status}")
        if not self._checked:
            raise _changed("it does not say what it computes")

    def values(self, address: int) -> NDArray[Any]:
        """A copy of a float32 or int32 tensor, outermost dimension first, four of them."""
        node = Node.from_address(address)
        kind: bytes = self._lib.ggml_type_name(node.kind)
        if kind not in _DTYPES:
            raise _changed(f"{node.name!r} is of type {kind!r}")
        raw = np.empty(self._lib.ggml_nbytes(address), np.uint8)
        self._lib.ggml_backend_tensor_get(address, raw.ctypes.data, 0, raw.nbytes)
        dtype, shape, steps = _DTYPES[kind], tuple(node.ne)[::-1], tuple(node.nb)[::-1]
        return np.ndarray(shape, dtype, raw, strides=steps)

    def put(self, address: int, values: NDArray[np.float32]) -> None:
        """Put other numbers into a float32 tensor without gaps, as `values` gives them, for what is computed next."""
        node = Node.from_address(address)
        raw = np.ascontiguousarray(values, np.float32)
        if self._lib.ggml_type_name(node.kind) != b"f32" or raw.nbytes != self._lib.ggml_nbytes(address):
            raise _changed(f"{node.name!r} is not {raw.shape} of float32")
        self._lib.ggml_backend_tensor_set(address, raw.ctypes.data, 0, raw.nbytes)

    def logits(self, count: int) -> NDArray[np.float32]:
        """What the last `read` of `count` tokens made of each of them, (count, vocabulary); good until the next one."""
        size = int(self._lib.llama_vocab_n_tokens(self._vocab))
        place = self._lib.llama_get_logits(self._context)
        if not place:
            raise _changed("it has no logits")
        return np.ctypeslib.as_array(c.cast(place, c.POINTER(c.c_float)), (count, size))

    def _called(self, address: int, ask: bool, _: object) -> bool:
        if self._failure is not None:
            return False
        try:
            if not self._checked:
                self._check(address)
            return self._watch(Node.from_address(address), ask)
        except BaseException as failure:  # noqa: BLE001  it must not pass through C; `read` raises it
            self._failure = failure
            return False

    def _check(self, address: int) -> None:
        """Hold the layout of a tensor against what the library says of it."""
        node = Node.from_address(address)
        said = (
            self._lib.ggml_tensor_overhead() - _OBJECT_BYTES,
            self._lib.ggml_get_name(address),
            self._lib.ggml_get_data(address),
            self._lib.ggml_nelements(address),
        )
        here = (c.sizeof(Node), address + Node.name.offset, node.data, int(np.prod(tuple(node.ne))))
        if said != here:
            raise _changed(f"a tensor of it is {said}, and was thought to be {here}")
        self._checked = True

    def _op(self, name: bytes) -> int:
        for number in range(64):
            if self._lib.ggml_op_name(number) == name:
                return number
        raise _changed(f"it has no operation {name.decode()}")


def _callback_word(params: _Params) -> int:
    """Where the callback goes: two empty pointers before the two types of the cache, which are F16 unless asked."""
    words = list(params.words)
    found = [
        at
        for at in range(4, _PARAMS_WORDS - 10, 2)
        if words[at : at + 4] == [0] * 4 and words[at + 4 : at + 6] == [_F16] * 2 and words[at + 6 : at + 10] == [0] * 4
    ]
    if len(found) != 1:
        raise _changed("the parameters of a context have no place for a callback")
    return found[0]


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
        f"this release of xllamacpp cannot be used to look into a model: {found}",
        hint="Install the release that constraints.txt names.",
    )
