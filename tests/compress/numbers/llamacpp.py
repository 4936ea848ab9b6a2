"""What the installed llama.cpp makes of the same numbers, asked through its C interface."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.numbers import NumberFormat

_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
    )


@cache
def _library() -> ctypes.CDLL:
    spec = find_spec("xllamacpp.xllamacpp")
    assert spec is not None and spec.origin is not None
    library = ctypes.CDLL(spec.origin)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def decoded(form: NumberFormat, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The weights that llama.cpp reads from these bytes."""
    data = np.ascontiguousarray(data)
    rows = np.empty((len(data), data.shape[1] // form.nbytes * form.block), np.float32)
    traits = _library().ggml_get_type_traits(form.ggml).contents
    assert (traits.blck_size, traits.type_size) == (form.block, form.nbytes)
    traits.to_float(data.ctypes.data, rows.ctypes.data, rows.size)
    return rows


def encoded(
    form: NumberFormat, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """The bytes that llama.cpp's own quantiser writes for these rows."""
    rows = np.ascontiguousarray(rows)
    data = np.empty((len(rows), rows.shape[1] // form.block * form.nbytes), np.uint8)
    weighs = None if importance is None else importance.ctypes.data
    written = _library().ggml_quantize_chunk(
        form.ggml, rows.ctypes.data, data.ctypes.data, 0, rows.shape[0], rows.shape[1], weighs
    )
    assert written == data.nbytes
    return data
