"""Small models for the tests: a base and what is made of it, as safetensors and as GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pressroom.kernel.settings import StorageSettings
from pressroom.store.backends.file import Backend
from tests.store.weights_files import Gguf, Row, safetensors

Array = NDArray[Any]
Model = dict[str, Array]

WIDTH = 96
GGUF_KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "BF16": 30}


def bf16(values: Array) -> Array:
    """The upper halves of float32 numbers."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def widened(values: Array) -> Array:
    return (values.astype(np.uint32) << 16).view(np.float32)


def base(seed: int = 0, *, width: int = WIDTH, layers: int = 3) -> Model:
    """Weights as a trained model has them, in float32: two matrices and a norm a layer, and an embedding."""
    rng = np.random.default_rng(seed)
    model: Model = {"embed.weight": rng.standard_normal((4 * width, width)).astype(np.float32) * 0.02}
    for layer in range(layers):
        model[f"layers.{layer}.up.weight"] = rng.standard_normal((2 * width, width)).astype(np.float32) * 0.03
        model[f"layers.{layer}.down.weight"] = rng.standard_normal((width, 2 * width)).astype(np.float32) * 0.03
        model[f"layers.{layer}.norm.weight"] = np.ones(width, np.float32)
    return model


def tuned(model: Model, seed: int, step: float = 2e-5) -> Model:
    """A few steps further: every matrix a little different."""
    rng = np.random.default_rng(seed)
    return {
        name: values + (rng.standard_normal(values.shape).astype(np.float32) * step if values.ndim > 1 else 0)
        for name, values in model.items()
    }


def pruned(model: Model, border: float = 0.015) -> Model:
    """The smaller weights of every matrix at zero, of the model as bf16 has it."""
    exact = {name: widened(bf16(values)) for name, values in model.items()}
    return {
        name: np.where(np.abs(values) < border, 0, values).astype(np.float32) if values.ndim > 1 else values
        for name, values in exact.items()
    }


def tensors(model: Model) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name to type, shape and bytes, all in bf16."""
    return {name: ("BF16", values.shape, bf16(values).tobytes()) for name, values in model.items()}


def as_safetensors(
    parts: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str] | None = None
) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in parts.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    return safetensors(header, b"".join(data for _, _, data in parts.values()))


def as_gguf(parts: Mapping[str, tuple[str, tuple[int, ...], bytes]], *, tail: bytes = b"") -> bytes:
    rows, data = [], b""
    for name, (dtype, shape, raw) in parts.items():
        data += bytes(-len(data) % 32)
        rows.append(Row(name, tuple(reversed(shape)), GGUF_KINDS[dtype], len(data)))
        data += raw
    return bytes(Gguf(rows=rows, data=data + tail))


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def quantised(seed: int = 0, *, rows: int = 64, columns: int = 512) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Four-bit weights, which no codec makes smaller."""
    length = rows * columns // 32 * 18
    return {f"blk.{n}.weight": ("Q4_0", (rows, columns), noise(length, 100 * seed + n)) for n in range(6)}


def digest_of(content: bytes) -> str:
    return f"blake3-{blake3(content).hexdigest()}"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def model_file(path: Path, model: Model) -> Path:
    return write(path, as_safetensors(tensors(model)))


def store_at(root: Path, *, chains: str = "fast", threads: int = 2, cache_bytes: int = 1 << 30) -> Backend:
    """The store `store` in a directory."""
    return Backend(
        "file://store", root=root, storage=StorageSettings(chains=chains, threads=threads, cache_bytes=cache_bytes)
    )
