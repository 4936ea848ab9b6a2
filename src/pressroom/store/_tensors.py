"""Tensors of a file of weights as NumPy arrays, one at a time, when they are asked for."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.kernel.errors import NotFoundError, StoreError
from pressroom.store._opening import open_regular
from pressroom.store.formats import TensorInfo, inspect

Raw = NDArray[np.uint8]

# Types that NumPy lacks come as unsigned integers of their width; `dtype_name` says what they are.
_TYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "F8_E5M2": "u1",
    "F8_E4M3": "u1",
    "F8_E8M0": "u1",
    "F8_E4M3FNUZ": "u1",
    "F8_E5M2FNUZ": "u1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "BF16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "C64": "<c8",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
}
# A recipe asks for a tensor once for each of those that are made from it.
_REMEMBERED = 16 << 20


class Tensor(np.ndarray[Any, np.dtype[Any]]):
    """An array that knows its type in the file: BF16 comes as uint16, FP8 and packed blocks (Q4_K) as uint8."""

    dtype_name: str

    def __array_finalize__(self, source: Any) -> None:
        self.dtype_name = getattr(source, "dtype_name", "")


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, read-only, in the order of the file. What is asked for twice is read twice.

    Whole rows of packed blocks are one dimension: Q4_K of shape (8, 512) comes as uint8 of shape (8, 288).
    """

    def __init__(self, infos: Sequence[TensorInfo], load: Callable[[TensorInfo], Raw]) -> None:
        self.infos = {info.name: info for info in infos}
        self._load = load

    def remembering(self) -> Tensors:
        """The same, but the tensor that was read last is not read again, where it is of less than 16 MiB."""
        last: dict[str, Raw] = {}

        def load(info: TensorInfo) -> Raw:
            found = last.get(info.name)
            if found is None:
                found = self._load(info)
                last.clear()
                if info.nbytes < _REMEMBERED:
                    last[info.name] = found
            return found

        return Tensors(list(self.infos.values()), load)

    def __getitem__(self, name: str) -> Tensor:
        info = self.infos.get(name)
        if info is None:
            raise KeyError(name)
        return shaped(self._load(info), info)

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)


def shaped(raw: Raw, info: TensorInfo) -> Tensor:
    """The bytes of a tensor as an array of its type and shape; no copy."""
    kind = _TYPES.get(info.dtype)
    if kind is not None:
        array = raw.view(kind).reshape(info.shape)
    elif len(info.shape) > 1 and len(raw):
        array = raw.reshape(*info.shape[:-1], -1)
    else:
        array = raw
    array.flags.writeable = False
    found = array.view(Tensor)
    found.dtype_name = info.dtype
    return found


def mapped(path: Path, size: int) -> memoryview:
    """A file of the store, read-only in memory. Its length is looked at first: reading behind the end kills a process.

    Raises:
        NotFoundError: there is no such file.
        StoreError: it is shorter than `size`, or cannot be mapped.
    """
    with open_regular(path) as file:
        try:
            found = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise StoreError(f"{path} cannot be mapped: {error}", hint="Run `press verify`.", path=str(path)) from error
    if len(found) < size:
        raise StoreError(
            f"{path} has {len(found)} bytes, and {size} were stored",
            hint="The disk is failing or something else wrote to the store: run `press verify`.",
            path=str(path),
        )
    return found


def tensors_of_file(path: Path, *, name: str) -> Tensors:
    """The tensors of a local file of weights, mapped from it. Raises WeightsError, NotFoundError and StoreError."""
    infos = inspect(path, name=name).tensors
    if not infos:
        raise NotFoundError(f"{name} holds no tensors", hint="Name a file of weights.", asked=name)
    whole = mapped(path, max(info.offset + info.nbytes for info in infos))
    return Tensors(infos, lambda info: np.frombuffer(whole, np.uint8, info.nbytes, info.offset))
