"""One file of weights: what it is, and what its header says once it has been checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pressroom.kernel.errors import UnsafeWeightsError
from pressroom.store.formats import _remote, gguf, safetensors
from pressroom.store.formats._naming import Named
from pressroom.store.formats._sniff import sniff
from pressroom.store.formats.base import WeightsInfo

_READERS: dict[str, Callable[[Named], WeightsInfo]] = {"gguf": gguf.read, "safetensors": safetensors.read}
_SAFE_WAY = (
    "Look for the model as GGUF or safetensors (most publishers have it: `press pull hf:ORG/NAME`), or convert it to "
    "safetensors on a machine you can afford to lose, and pull the result."
)
_OTHERS = {
    "empty": "it is empty",
    "npy": "it is a NumPy array, and no engine loads one",
    "hdf5": "it is HDF5 (Keras), and no engine here loads it",
    "ggml": "it is the format of llama.cpp before GGUF",
    "zip": "it is a zip archive",
    "tar": "it is a tar archive",
    "json": "it is JSON",
    "text": "it is text",
    "unknown": "it begins like neither GGUF nor safetensors",
}


def inspect(path: Path, *, name: str | None = None) -> WeightsInfo:
    """Check a file of weights and say what its header holds. The content decides what it is, not the name.

    `name` is what the file was called where the path no longer says it (a blob of the store); messages use it.

    Raises:
        UnsafeWeightsError: it is a pickle, in whatever dress.
        MalformedWeightsError: it is cut short, altered, its header lies, or it is something else altogether.
        WeightsError: it is one part of a split GGUF.
        NotFoundError, StoreError: it is not there or cannot be read.
    """
    named = Named(path, path.name if name is None else name)
    kind = sniff(path, named.name)
    if kind in _READERS:
        return _READERS[kind](named)
    if kind == "pickle":
        raise unsafe([named.name])
    if kind == "json" and named.name.rpartition("/")[2] == _remote.NAME:
        return _remote.read(named)
    found = _OTHERS.get(kind, f"it is compressed with {kind}")
    raise named.malformed(
        f"{found}; GGUF and safetensors are loaded",
        hint="Unpack it first." if kind in ("zip", "tar") or kind not in _OTHERS else "Name the file with the weights.",
        found=kind,
    )


def unsafe(names: list[str]) -> UnsafeWeightsError:
    """The refusal of pickles, by name."""
    shown = ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    are = "is a Python pickle" if len(names) == 1 else "are Python pickles"
    return UnsafeWeightsError(
        f"{shown} {are} by name or content: loading one runs whatever code it contains, so it is not read",
        hint=_SAFE_WAY,
        files=names,
    )
