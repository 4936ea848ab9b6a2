"""Folders of safetensors, read without a copy, and one file of them written: whole under its name, or not at all."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.export._whole import write_whole
from pressroom.kernel import RecipeError, StoreError
from pressroom.store import TensorInfo, WeightsInfo, inspect_folder

#: The number formats of floating point that a tensor may be in, by the names that safetensors have.
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "I32": 4, "I64": 8}


class Folder:
    """A model as transformers saves it: config.json, safetensors whole or in shards, a tokenizer. Checked when opened.

    Raises:
        WeightsError: a file is cut or altered, a shard is missing, the index does not match, or there is a pickle.
        RecipeError: there are no safetensors in it, or no config.json.
        StoreError: it cannot be read.
    """

    def __init__(self, path: Path, *, called: str = "") -> None:
        self.path, self.called = path, called or path.name
        if not path.is_dir():
            raise RecipeError(
                f"{self.called} is not a folder of a model", hint="Name one with config.json and *.safetensors."
            )
        files = {str(found.relative_to(path)): found for found in sorted(path.rglob("*")) if found.is_file()}
        self.info: WeightsInfo = inspect_folder(files)
        if self.info.format != "safetensors":
            raise RecipeError(f"{self.called} holds {self.info.format}", hint="It needs no conversion.")
        self.config = self.json("config.json")
        self.tensors: Mapping[str, TensorInfo] = {one.name: one for one in self.info.tensors}
        self._maps: dict[str, mmap.mmap] = {}

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._maps.values():
            with suppress(BufferError):
                each.close()

    def json(self, name: str) -> dict[str, Any]:
        """One of its files, {} where it is not there. Raises RecipeError where it is no JSON object."""
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RecipeError(f"{name} of {self.called} cannot be read: {error}", hint="Fetch it again.") from error
        if not isinstance(found, dict):
            raise RecipeError(f"{name} of {self.called} is no JSON object", hint="Fetch it again.")
        return found

    def rows(self, name: str) -> NDArray[np.float32]:
        """A tensor's numbers, as float32 in its shape. Raises RecipeError where it is none of floating point."""
        from pressroom.compress.numbers import number_format

        tensor = self.tensors[name]
        if tensor.dtype not in FLOATS:
            raise RecipeError(
                f"the tensor {name} of {self.called} is {tensor.dtype}, and F32, F16 and BF16 are taken",
                hint="Take the model before it was quantised.",
                tensor=name,
            )
        raw = np.frombuffer(self._map(tensor.file), np.uint8, tensor.nbytes, tensor.offset)
        columns = tensor.shape[-1] if tensor.shape else 1
        found = number_format(FLOATS[tensor.dtype]).decode(raw.reshape(-1, columns * _SIZES[tensor.dtype]))
        return found.reshape(tensor.shape)

    def _map(self, file: str) -> mmap.mmap:
        if file not in self._maps:
            path = self.path / (file or "model.safetensors")
            try:
                with path.open("rb") as opened:
                    self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise StoreError(f"{path} cannot be mapped: {error}", hint="Check its permissions.") from error
        return self._maps[file]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written: `dtype` as safetensors name it, and what gives its data when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * _SIZES[self.dtype]


def write(path: Path, entries: Sequence[Entry], *, progress: Callable[[int, int], None] | None = None) -> int:
    """Write a safetensors file; returns its bytes. One tensor is in memory at a time.

    Raises:
        StoreFullError: there is no room, said before the first byte where it is known. StoreError: it cannot be
            written. Nothing is left under the name in either case.
    """
    return write_whole(path, _header(entries), entries, progress=progress)


def _header(entries: Sequence[Entry]) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for one in entries:
        table[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [offset, offset + one.nbytes]}
        offset += one.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
