"""Which codec a block gets, and the byte that says so."""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np

from pressroom.store.codec import _native, _numpy, _planes
from pressroom.store.codec._layouts import Layout, layout_of
from pressroom.store.codec.base import BLOCK, Array, DamagedError

RAW, ALONE, NEAR, SAME, PLANES = 0, 2, 3, 5, 6
_NAMES = {RAW: "raw", ALONE: "alone", NEAR: "near", SAME: "same", PLANES: "planes"}
_SAME = struct.Struct("<BQ")
# Kind, 1 where it is told near a parent, bytes of an element, bytes of a row; then the name of the type.
_PLANES_HEAD = struct.Struct("<BBHIB")
_GROUP = 32
# Where even that much of a block is left near its parent, it may be shorter alone.
_FAR = 0.5
_SOON = 4096

_loading = threading.Lock()
_chosen: _native.Kernel | str | None = "auto"


def use(path: str) -> None:
    """Choose how blocks are coded in this process: `auto` (the kernel where there is one), `numpy`, or an architecture
    that the kernel is compiled for (`native`, `x86-64-v3`, `x86-64`). For tests and benchmarks.

    Raises:
        ValueError: the kernel cannot be had for that architecture.
    """
    global _chosen
    if path in ("auto", "numpy"):
        _chosen = "auto" if path == "auto" else None
        return
    found = _native.load(path)
    if found is None:
        raise ValueError(f"no kernel for {path!r}: no C compiler, or it does not know it")
    _chosen = found


def path_in_use() -> str:
    """`avx512`, `avx2`, `c` or `numpy`: what blocks are coded with now."""
    native = kernel()
    return "numpy" if native is None else {512: "avx512", 256: "avx2"}.get(native.width, "c")


def block_length(dtype: str, row: int = 0) -> int:
    """Raw bytes of every block of a tensor but the last: at most 2 MiB, whole elements, whole rows where these fit.

    `row`: elements of the innermost dimension, 0 where it is not known. GGUF types count weights there, and their rows
    are not aligned to.
    """
    layout = layout_of(dtype)
    whole = layout.size * row if row and layout.kind != "bytes" else layout.size
    if not 0 < whole <= BLOCK:
        whole = layout.size
    return BLOCK // whole * whole


def encode(raw: Any, *, dtype: str, row: int = 0, parent: Any = None) -> bytes:
    """One block. `raw` and `parent` are buffers of the same length, `row` as for `block_length`.

    Raises:
        ValueError: the lengths differ.
    """
    x = np.frombuffer(raw, np.uint8)
    p = None if parent is None else np.frombuffer(parent, np.uint8)
    if p is not None and len(p) != len(x):
        raise ValueError(f"a block and its parent's have one length; got {len(x)} and {len(p)} bytes")
    # Blocks that differ at all nearly always differ soon.
    if p is not None and np.array_equal(x[:_SOON], p[:_SOON]) and np.array_equal(x, p):
        return _SAME.pack(SAME, len(x))
    layout = layout_of(dtype)
    best: bytes | None = None
    if len(x) and len(x) % layout.size == 0:
        best = _floats(x, p, layout, row) if layout.kind == "float16" else _in_planes(x, p, layout, dtype, row)
    return best if best is not None and len(best) <= len(x) else b"\0" + x.tobytes()


def decode(stored: Any, out: Any, *, parent: Any = None) -> None:
    """The raw bytes of a block into `out`, a writable buffer of exactly their length.

    Raises:
        DamagedError: the block was altered, is of another length, or a parent is missing or too many.
    """
    data = memoryview(stored).cast("B")
    target = np.frombuffer(out, np.uint8)
    p = None if parent is None else np.frombuffer(parent, np.uint8)
    if not len(data):
        raise DamagedError("a block has no bytes")
    kind = data[0]
    if needs_parent(data) != (p is not None):
        raise DamagedError("a block needs its parent's" if p is None else "a block is given a parent and needs none")
    if p is not None and len(p) != len(target):
        raise DamagedError(f"a block of {len(target)} bytes has a parent of {len(p)}")
    if kind == RAW:
        if len(data) - 1 != len(target):
            raise DamagedError(f"a block has {len(data) - 1} bytes, and {len(target)} are asked for")
        target[:] = np.frombuffer(data[1:], np.uint8)
    elif kind == SAME:
        if bytes(data) != _SAME.pack(SAME, len(target)):
            raise DamagedError(f"a block is not the parent's {len(target)} bytes")
        assert p is not None
        target[:] = p
    elif kind in (ALONE, NEAR):
        if len(target) % 2:
            raise DamagedError(f"a block of 16-bit floats is asked for as {len(target)} bytes")
        source = None if p is None else _aligned(p)
        coder = kernel() or _numpy
        if target.ctypes.data % 2:
            apart = np.empty(len(target) // 2, np.uint16)
            coder.floats_decode(data, source, apart)
            target[:] = apart.view(np.uint8)
        else:
            coder.floats_decode(data, source, target.view(np.uint16))
    elif kind == PLANES:
        _from_planes(data, target, p)
    else:
        raise DamagedError(f"a block is of kind {kind}, which this version does not know", kind=kind)


def needs_parent(stored: Any) -> bool:
    """Whether the block is told from its parent's. Raises DamagedError where there is no block."""
    data = memoryview(stored).cast("B")
    if not len(data) or (data[0] == PLANES and len(data) < 2):
        raise DamagedError("a block has no head")
    return data[0] in (NEAR, SAME) or (data[0] == PLANES and data[1] == 1)


def codec_name(stored: Any) -> str:
    """How a block is stored, for reports: raw, alone, near, planes or same."""
    kind = memoryview(stored).cast("B")[0]
    return _NAMES.get(kind, f"unknown ({kind})")


def kernel() -> _native.Kernel | None:
    """The kernel that this process uses, None for NumPy's path: for what else has the same bytes by both."""
    if not isinstance(_chosen, str):
        return _chosen
    with _loading:  # of the threads that come first one compiles it
        return _native.load()


def _aligned(data: Array) -> Array:
    """The bytes as 16-bit values; copied where they start at an odd address."""
    return (data.copy() if data.ctypes.data % 2 else data).view(np.uint16)


def _floats(x: Array, p: Array | None, layout: Layout, row: int) -> bytes | None:
    native = kernel()
    columns = row % _GROUP == 0 and 128 <= row <= 4096
    groups = row // _GROUP if columns else 16
    values = _aligned(x)

    def coded(parent: Array | None) -> bytes | None:
        if native is not None:
            return native.floats_encode(values, parent, layout.shift, groups, columns)
        made = _numpy.floats_encode(values, parent, layout.shift, groups, columns)
        return made if len(made) <= len(x) else None

    best = None if p is None else coded(_aligned(p))
    if best is None or len(best) > _FAR * len(x):
        alone = coded(None)
        if alone is not None and (best is None or len(alone) < len(best)):
            best = alone
    return best


def _in_planes(x: Array, p: Array | None, layout: Layout, dtype: str, row: int) -> bytes:
    """The shorter of alone and near; only what differs a lot is tried alone as well."""
    name = dtype.encode()[:255]
    size = row * layout.size if layout.kind != "bytes" else 0
    coder = kernel() or _numpy
    best = b""
    for parent in (p, None) if p is not None else (None,):
        if best and len(best) <= _FAR * len(x):
            break
        head = _PLANES_HEAD.pack(PLANES, parent is not None, layout.size, size, len(name)) + name
        made = head + _planes.encode(coder, x, parent, layout, size)
        if not best or len(made) < len(best):
            best = made
    return best


def _from_planes(data: memoryview, target: Array, p: Array | None) -> None:
    if len(data) < _PLANES_HEAD.size:
        raise DamagedError("a block ends inside its head")
    _, near, size, row, length = _PLANES_HEAD.unpack_from(data)
    at = _PLANES_HEAD.size + length
    layout = layout_of(bytes(data[_PLANES_HEAD.size : at]).decode("utf-8", "replace"))
    if near > 1 or at > len(data) or layout.size != size or len(target) % size or layout.kind == "float16":
        raise DamagedError("the head of a block was altered")
    apart = target
    words = layout.kind in ("float32", "float64")
    if words and target.ctypes.data % size:
        apart = np.empty(len(target), np.uint8)
    if words and p is not None and p.ctypes.data % size:
        p = p.copy()
    _planes.decode(kernel() or _numpy, data[at:], apart, p, layout, row)
    if apart is not target:
        target[:] = apart
