"""Tensors that a recipe tells from others: what is stored with them, and how their bytes are foretold again."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from pressroom.store._tensors import Raw, Tensor, Tensors
from pressroom.store.family._decoding import DamagedTensorError, Decoder
from pressroom.store.family._objects import StoredTensor
from pressroom.store.formats import TensorInfo
from pressroom.store.recipe import Parent, Recipe, prediction

T = TypeVar("T")
# Blocks of one tensor are decoded one after the other; two, as threads are at two tensors where one ends.
_MOST_HELD = 2
_REMEMBERED = 16 << 20
# Recipes told from what recipes tell; who comes here follows rows that were altered into a circle.
_DEEPEST = 8


@dataclass(frozen=True)
class Foretold:
    """The bytes that a recipe gives a tensor: `record` is what is stored of it, `parents` the tensors it read."""

    data: memoryview
    record: str
    parents: tuple[bytes, ...]


def foretell(
    recipe: Recipe, info: TensorInfo, parents: Callable[[int], tuple[Tensors, Mapping[str, bytes]]]
) -> Foretold | None:
    """What the recipe says of a tensor, if it says something of that length.

    `parents(n)` are the tensors of the nth parent and their identities by name.
    """
    seen: list[dict[str, Any]] = []

    def opened(number: int) -> Parent:
        tensors, ids = parents(number)
        return _Watched(tensors, ids, number, seen)

    data = prediction(recipe, info.name, opened)
    if data is None or len(data) != info.nbytes or not seen:
        return None
    record = {"op": recipe.op, "parameters": recipe.parameters, "tensor": info.name, "inputs": seen}
    ids = tuple(dict.fromkeys(bytes.fromhex(entry["id"]) for entry in seen))
    return Foretold(data, json.dumps(record, separators=(",", ":")), ids)


class _Watched(Mapping[str, Tensor]):
    """The tensors of a parent; which ones are read is noted."""

    def __init__(self, tensors: Tensors, ids: Mapping[str, bytes], number: int, seen: list[dict[str, Any]]) -> None:
        self._tensors = tensors
        self._ids = ids
        self._number = number
        self._seen = seen

    def __getitem__(self, name: str) -> Tensor:
        found = self._tensors[name]
        info = self._tensors.infos[name]
        entry = {
            "parent": self._number,
            "name": name,
            "dtype": info.dtype,
            "shape": list(info.shape),
            "nbytes": info.nbytes,
            "id": self._ids[name].hex(),
        }
        if entry not in self._seen:
            self._seen.append(entry)
        return found

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Predictions:
    """Foretells stored tensors again. Safe to use from several threads; the last two results are kept, and of what they
    are told from the last two, where these are of less than 16 MiB.
    """

    def __init__(self) -> None:
        self._results = _Kept[memoryview](_MOST_HELD)
        self._inputs = _Kept[Raw](_MOST_HELD)
        self._own = threading.local()

    def __call__(self, tensor: StoredTensor, decoder: Decoder, *, checked: bool) -> memoryview:
        """The bytes that the recipe of a stored tensor gives. Raises DamagedTensorError where it gives none.

        Unless `checked`, what it reads is not held against any digest: the result of it has one.
        """
        depth = getattr(self._own, "depth", 0)
        if depth > _DEEPEST:
            raise DamagedTensorError(tensor.id, "its recipe leads to itself")
        self._own.depth = depth + 1
        try:
            if depth:  # whoever waits for others while others wait for it waits for ever: nothing is shared here
                return self._made(tensor, decoder, checked, shared=False)
            return self._results.get((tensor.id, checked), lambda: self._made(tensor, decoder, checked, shared=True))
        finally:
            self._own.depth = depth

    def _made(self, tensor: StoredTensor, decoder: Decoder, checked: bool, shared: bool) -> memoryview:
        assert tensor.recipe is not None
        try:
            record = json.loads(tensor.recipe)
            recipe = Recipe(str(record["op"]), (), dict(record["parameters"]))
            inputs = [(entry["parent"], _info(entry), bytes.fromhex(entry["id"])) for entry in record["inputs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedTensorError(tensor.id, "its recipe was altered") from error

        def opened(number: int) -> Parent:
            ids = {info.name: identity for parent, info, identity in inputs if parent == number}
            return Tensors(
                [info for parent, info, _ in inputs if parent == number],
                lambda info: self._read(ids[info.name], decoder, checked, shared),
            )

        made = prediction(recipe, str(record["tensor"]), opened)
        if made is None or len(made) != tensor.nbytes:
            raise DamagedTensorError(
                tensor.id,
                f"the tensor {tensor.id.hex()[:16]}… is stored by the recipe {recipe.op!r}, which this version "
                "does not follow as the one did that stored it",
            )
        return made

    def _read(self, identity: bytes, decoder: Decoder, checked: bool, shared: bool) -> Raw:
        """All bytes of a tensor, from a mapped file where it lies in one."""
        if not checked:
            direct = decoder.shortcut(identity)
            if direct is not None:
                return np.frombuffer(direct, np.uint8)
        if not shared or decoder.tensor(identity).nbytes >= _REMEMBERED:
            return _whole(decoder, identity, checked)
        return self._inputs.get((identity, checked), lambda: _whole(decoder, identity, checked))


class _Kept(Generic[T]):
    """Values by key, made by the first who asks while others wait; the longest unused go."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[Hashable, _Entry[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            if len(self._entries) > self._most:
                self._entries.popitem(last=False)
        with entry.lock:
            if entry.value is None:
                entry.value = make()
            return entry.value


class _Entry(Generic[T]):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: T | None = None


def _whole(decoder: Decoder, identity: bytes, checked: bool) -> Raw:
    """All bytes of a tensor, on this thread, each block held against its digest if `checked`."""
    tensor = decoder.tensor(identity)
    out = np.empty(tensor.nbytes, np.uint8)
    for number in range(tensor.count):
        start, length = tensor.span(number)
        decoder.block(identity, number, out.data[start : start + length], checked=checked)
    return out


def _info(entry: Mapping[str, Any]) -> TensorInfo:
    return TensorInfo(
        name=str(entry["name"]),
        dtype=str(entry["dtype"]),
        shape=tuple(entry["shape"]),
        offset=0,
        nbytes=int(entry["nbytes"]),
    )
