"""A GGUF file's tensors: their names, shapes, roles, bytes and numbers."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.numbers import NumberFormat, formats
from pressroom.compress.weights._header import Header, decoded, read_header
from pressroom.compress.weights._roles import EMBEDDING, HEAD, Role, Tensor, role_of
from pressroom.kernel import RecipeError, StoreError, did_you_mean
from pressroom.store import WeightsInfo, inspect

_ALIGNMENT = 32


class Weights:
    """A GGUF file, mapped into memory; made by `open_weights`. Use it with `with`, or close it.

    The file must hold still meanwhile, as files of the store do. What was handed out without a copy stays readable
    after the end. `header`, `data` and `identity` (device and inode) are for this package.
    """

    def __init__(
        self,
        path: Path,
        info: WeightsInfo,
        header: Header,
        data: mmap.mmap,
        identity: tuple[int, int],
        *,
        called: str,
    ) -> None:
        self.called = called
        self.path = path
        self.info = info
        self.header = header
        self.data = data
        self.identity = identity
        self.size = len(data)
        self.tensors: Mapping[str, Tensor] = MappingProxyType(
            {
                given.name: made_tensor(given.name, given.shape, given.dtype, row.number, given.offset, given.nbytes)
                for given, row in zip(info.tensors, header.rows, strict=True)
            }
        )

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. What shares memory with it keeps it mapped until that is gone, too."""
        with suppress(BufferError):
            self.data.close()

    @property
    def architecture(self) -> str:
        """As the file names it: llama, qwen3; '' where it does not."""
        return self.info.architecture or ""

    @cached_property
    def alignment(self) -> int:
        """Every tensor's data begin at a multiple of so many bytes."""
        return int(self.value("general.alignment", _ALIGNMENT))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the metadata, in the order of the file."""
        return tuple(self.header.entries)

    def value(self, key: str, default: Any = None) -> Any:
        """What the metadata say under a key, whole: a number, a truth value, text or a list of these."""
        entry = self.header.entries.get(key)
        return default if entry is None else decoded(self.data, entry)

    @property
    def linears(self) -> tuple[Tensor, ...]:
        """The weights of the linear layers in the order of the file; the experts' are not among them."""
        return self.of_role(Role.LINEAR)

    def of_role(self, *roles: Role) -> tuple[Tensor, ...]:
        """The tensors of these roles, in the order of the file."""
        return tuple(tensor for tensor in self.tensors.values() if tensor.role in roles)

    @property
    def embedding(self) -> Tensor | None:
        """The token embedding."""
        return self.tensors.get(EMBEDDING)

    @property
    def head(self) -> Tensor | None:
        """What the logits are computed with: the output head, or the embedding where it is tied."""
        return self.tensors.get(HEAD, self.embedding)

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output head as well."""
        return HEAD not in self.tensors and EMBEDDING in self.tensors

    def tensor(self, name: str) -> Tensor:
        """Raises RecipeError where there is none of that name."""
        found = self.tensors.get(name)
        if found is None:
            raise self.unknown([name])
        return found

    def unknown(self, names: list[str]) -> RecipeError:
        """What to raise where tensors are asked for that are not there."""
        if self.tied and HEAD in names:
            hint = f"The output head is tied to the embedding: name {EMBEDDING} for both."
        else:
            some = ", ".join([*self.tensors][:3])
            hint = did_you_mean(names[0], self.tensors, otherwise=f"Its tensors are called {some} and so on.")
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        return RecipeError(f"{self.called} has no tensor {shown}", hint=hint, asked=names)

    def raw(self, name: str) -> memoryview:
        """The bytes of a tensor as they are in the file, without a copy. Raises RecipeError."""
        tensor = self.tensor(name)
        return memoryview(self.data)[tensor.offset : tensor.offset + tensor.nbytes]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """The weights of the rows from `start` to before `stop`, as (rows, columns); outer dimensions are one.

        Raises:
            RecipeError: there is no such tensor, or its type is not one of our number formats.
        """
        tensor = self.tensor(name)
        format = format_of(tensor)
        packed = np.frombuffer(self.raw(name), np.uint8).reshape(tensor.rows, -1)
        return format.decode(packed[start:stop])


def open_weights(path: Path, *, called: str = "") -> Weights:
    """The weights in a GGUF file. Its table is checked; no data are read before they are asked for. `called` is what
    errors call it, else the name of the file.

    Raises:
        WeightsError: it is cut short, altered, one part of a split model, for big-endian machines, or no GGUF.
        RecipeError: these are weights, but not GGUF.
        NotFoundError, StoreError: it is not there, cannot be read, or changed meanwhile.
    """
    info = inspect(path)
    if info.format != "gguf":
        raise RecipeError(
            f"{path.name} is {info.format}, and only GGUF files are compressed so far",
            hint="Take a GGUF version of the model, or convert it with llama.cpp's convert_hf_to_gguf.py.",
            format=info.format,
        )
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            status = os.fstat(file.fileno())
    except (OSError, ValueError) as error:  # ValueError: it is empty now
        raise StoreError(f"{path} cannot be mapped: {error}", hint="Check its permissions.", path=str(path)) from error
    try:
        header = read_header(data)
    except (struct.error, UnicodeDecodeError) as error:
        raise _moved(path) from error
    if len(header.rows) != len(info.tensors) or len(data) < max(one.offset + one.nbytes for one in info.tensors):
        raise _moved(path)
    start = info.tensors[0].offset - header.rows[0].offset
    for row, given in zip(header.rows, info.tensors, strict=True):
        if (row.name, row.shape, row.offset + start) != (given.name, given.shape, given.offset):
            raise _moved(path)
    return Weights(path, info, header, data, (status.st_dev, status.st_ino), called=called or path.name)


def by_number() -> dict[int, NumberFormat]:
    """The number formats that GGUF files can have, by ggml's number."""
    return {one.ggml: one for one in formats() if one.ggml is not None}


def format_of(tensor: Tensor) -> NumberFormat:
    """The number format a tensor is in. Raises RecipeError where it is none of ours."""
    known = by_number()
    found = known.get(tensor.number)
    if found is None:
        raise RecipeError(
            f"the tensor {tensor.name} is {tensor.type}, which cannot be turned into numbers here",
            hint="Take a version of the model whose tensors are of these types: "
            f"{', '.join(sorted(one.name for one in known.values()))}.",
            tensor=tensor.name,
            type=tensor.type,
        )
    return found


def readable(tensor: Tensor) -> bool:
    """Whether its type is one of our number formats, so that `rows` can be had."""
    return tensor.number in by_number()


def made_tensor(name: str, shape: tuple[int, ...], type: str, number: int, offset: int, nbytes: int) -> Tensor:
    """A tensor with its role."""
    role, layer, part = role_of(name, shape)
    return Tensor(
        name=name,
        shape=shape,
        type=type,
        number=number,
        offset=offset,
        nbytes=nbytes,
        role=role,
        layer=layer,
        part=part,
    )


def _moved(path: Path) -> StoreError:
    return StoreError(
        f"{path} changed while it was read", hint="Wait until nothing writes to it, then try again.", path=str(path)
    )
