"""The tensors of one file on their way into packs: found again where held, else coded near a parent or alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from blake3 import blake3

from pressroom.kernel.errors import NotFoundError
from pressroom.store import codec
from pressroom.store._tensors import Tensors
from pressroom.store.family import _filling as filling
from pressroom.store.family import _parents as parents
from pressroom.store.family import _queries as queries
from pressroom.store.family._coding import Coded, Coder, Parent
from pressroom.store.family._decoding import DamagedTensorError
from pressroom.store.family._manifests import row_of
from pressroom.store.family._objects import Stored, StoredTensor, tensor_id
from pressroom.store.family._packs import PackWriter
from pressroom.store.family._parts import Parts
from pressroom.store.family._predicting import Foretold, foretell
from pressroom.store.family._rebuilding import read_manifest
from pressroom.store.family._restoring import Reader, decoder_for
from pressroom.store.family._source import Source
from pressroom.store.formats import TensorInfo
from pressroom.store.recipe import Recipe

_log = logging.getLogger(__name__)

# Random, so that no two copies of a tensor are taken for one; the number of the tensor makes the rest of the name.
_SERIES = 8


@dataclass
class _Open:
    """A tensor being coded: what it is told from, and the digests of its blocks so far."""

    info: TensorInfo
    block: int
    position: int
    copy: bytes
    parents: tuple[bytes, ...] = ()
    recipe: str | None = None
    near: Parent | None = None
    needs: bool = False
    digests: list[bytes] = field(default_factory=list)

    @property
    def count(self) -> int:
        return -(-self.info.nbytes // self.block)

    def stored(self) -> StoredTensor:
        """What is said of it in the index and in the footer."""
        return StoredTensor(
            id=tensor_id(self.digests),
            dtype=self.info.dtype,
            row=row_of(self.info),
            nbytes=self.info.nbytes,
            block=self.block,
            parents=self.parents if self.needs else (),
            recipe=self.recipe if self.needs else None,
            copy=self.copy,
        )


class TensorAdder:
    """Takes tensors in the order of the file. Use it with `with`: unless `kept` was said, all is taken back."""

    def __init__(
        self, parts: Parts, source: Source, relatives: Sequence[parents.Relative], recipes: Sequence[Recipe]
    ) -> None:
        self._parts = parts
        self._source = source
        self._tensors = source.info.tensors
        self._recipes = recipes
        self._packs = PackWriter(parts.place)
        self._coder = Coder(parts.workers)
        self._ids: dict[int, bytes] = {}
        self._firsts: dict[tuple[bytes, int], list[_Open]] = {}
        self._damaged: set[bytes] = set()
        self._series = os.urandom(_SERIES)
        self._unusable: set[bytes] = set()
        self._opened: dict[str, tuple[Tensors, Mapping[str, bytes]]] = {}
        self._chosen = {
            number: chosen
            for number in range(len(self._tensors))
            if (chosen := parents.choose(relatives, number, parts.chains)) is not None
        }
        known = parts.index.tensors({chosen.id for chosen in self._chosen.values()}) if self._chosen else {}
        # What parents decode to needs no digest: a wrong parent would be as wrong when the child is restored.
        self._decoder = decoder_for(parts, known, fast=True)
        #: What was stored, to be taken into the index.
        self.stored: list[StoredTensor] = []

    def __enter__(self) -> TensorAdder:
        self._coder.__enter__()
        self._packs.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._coder.__exit__()
        self._packs.__exit__(kind, error, trace)

    @property
    def ids(self) -> tuple[bytes, ...]:
        """The identity of every tensor, in the order of the file."""
        return tuple(self._ids[number] for number in range(len(self._tensors)))

    def add(self, number: int, hasher: blake3 | None, progress: Callable[[int], None]) -> None:
        """Take in tensor `number`, and hash its bytes on the way."""
        info = self._tensors[number]
        if not info.nbytes:
            self._ids[number] = tensor_id([])
            return
        length = codec.block_length(info.dtype, row_of(info))
        first = self._read(info, length, 0, hasher)
        progress(len(first))
        digest = blake3(first).digest()
        if self._known(number, info, length, first, digest, hasher, progress):
            return
        tensor = self._begun(number, info, length, first, digest)
        self._code(tensor, 0, first, digest)
        for block in range(1, tensor.count):
            raw = self._read(info, length, block, hasher)
            self._code(tensor, block, raw)
            progress(len(raw))

    def drain(self) -> None:
        """Wait for all that is under way."""
        self._coder.drain()

    def finish(self) -> list[Stored]:
        """Make the packs durable; returns them."""
        self._packs.close()
        if self._damaged:
            self._parts.index.write(lambda c: filling.flag(c, self._damaged))
        return self._packs.packs

    def kept(self) -> None:
        """The file is held: the packs stay."""
        self._packs.keep()

    def _read(self, info: TensorInfo, length: int, block: int, hasher: blake3 | None) -> memoryview:
        start = block * length
        raw = self._coder.buffer(min(length, info.nbytes - start))
        self._source.read(info.offset + start, raw)
        if hasher is not None:
            hasher.update(raw)
        return raw

    def _known(
        self,
        number: int,
        info: TensorInfo,
        length: int,
        first: memoryview,
        digest: bytes,
        hasher: blake3 | None,
        progress: Callable[[int], None],
    ) -> bool:
        """Whether the tensor is held already, or came before in this file. If its first block is not, it is not."""
        same = self._firsts.get((digest, info.nbytes), [])
        held = self._parts.index.read(lambda c: queries.like(c, digest, info.nbytes))
        if not held and not same:
            return False
        if same:
            self._coder.drain()
            held |= {self._ids[tensor.position] for tensor in same}
        digests = [digest]
        for block in range(1, -(-info.nbytes // length)):
            raw = self._read(info, length, block, hasher)
            digests.append(blake3(raw).digest())
            progress(len(raw))
            self._coder.spare(raw)
        identity = tensor_id(digests)
        self._ids[number] = identity
        if identity in held:
            self._coder.spare(first)
            return True
        # Only the beginning is the same: it is read again, and must be what was hashed.
        tensor = self._begun(number, info, length, first, digest)
        self._code(tensor, 0, first, digest)
        for block in range(1, tensor.count):
            raw = self._read(info, length, block, None)
            if blake3(raw).digest() != digests[block]:
                raise self._source.changed()
            self._code(tensor, block, raw, digests[block])
        return True

    def _begun(self, number: int, info: TensorInfo, length: int, first: memoryview, digest: bytes) -> _Open:
        tensor = _Open(info, length, number, self._series + number.to_bytes(4, "little"))
        self._firsts.setdefault((digest, info.nbytes), []).append(tensor)
        chosen = self._chosen.get(number)
        if chosen is not None:
            parent = self._decoder.tensors.get(chosen.id)
            if parent is not None and (parent.nbytes, parent.block) == (info.nbytes, length):
                tensor.parents, tensor.near = (chosen.id,), self._decoded(chosen.id)
        for recipe in self._recipes:
            if self._follow(recipe, tensor, first):
                break
        return tensor

    def _code(self, tensor: _Open, block: int, raw: memoryview, digest: bytes | None = None) -> None:
        info = tensor.info
        self._coder.add(
            raw, info.dtype, row_of(info), block, tensor.near, lambda coded: self._take(tensor, coded), digest
        )

    def _take(self, tensor: _Open, coded: Coded) -> None:
        if not tensor.digests:
            self._packs.begin(tensor.copy)
        tensor.digests.append(coded.block.raw)
        tensor.needs |= coded.near
        self._packs.block(coded.data, coded.block)
        if len(tensor.digests) == tensor.count:
            stored = tensor.stored()
            self._ids[tensor.position] = stored.id
            self.stored.append(replace(stored, segments=self._packs.end(stored)))

    def _decoded(self, identity: bytes) -> Parent:
        def fill(block: int, out: memoryview) -> bool:
            if identity in self._unusable:
                return False
            try:
                self._decoder.block(identity, block, out)
            except DamagedTensorError as error:
                _log.warning("a tensor is not told from its parent: %s", error.message)
                self._damaged.add(error.id)
                self._unusable.add(identity)
                return False
            return True

        return fill

    def _follow(self, recipe: Recipe, tensor: _Open, first: memoryview) -> bool:
        """Tell the tensor from what the recipe says, where that comes nearer than its parent does."""
        try:
            told = foretell(recipe, tensor.info, lambda number: self._parent_of(recipe.parents[number]))
        except (NotFoundError, DamagedTensorError) as error:
            _log.warning("a recipe is not followed: %s", error.message)
            return False
        if told is None or not self._shallow(told):
            return False
        data = memoryview(told.data)

        def fill(block: int, out: memoryview) -> bool:
            start = block * tensor.block
            out[:] = data[start : start + len(out)]
            return True

        row = row_of(tensor.info)
        by_recipe = len(codec.encode(first, dtype=tensor.info.dtype, row=row, parent=data[: len(first)]))
        if tensor.near is not None and 10 * by_recipe > len(first):
            other = bytearray(len(first))
            if tensor.near(0, memoryview(other)):
                by_parent = len(codec.encode(first, dtype=tensor.info.dtype, row=row, parent=other))
                if by_parent <= by_recipe:
                    return False
        tensor.parents, tensor.recipe, tensor.near = told.parents, told.record, fill
        return True

    def _shallow(self, told: Foretold) -> bool:
        deepest = parents.DEPTHS[self._parts.chains] - 1
        depths = self._parts.index.read(lambda c: queries.depths(c, told.parents))
        return all(depths.get(identity, deepest + 1) <= deepest for identity in told.parents)

    def _parent_of(self, digest: str) -> tuple[Tensors, Mapping[str, bytes]]:
        if digest not in self._opened:
            self._opened[digest] = opened_parent(self._parts, digest)
        return self._opened[digest]


def opened_parent(parts: Parts, digest: str) -> tuple[Tensors, Mapping[str, bytes]]:
    """The tensors of a held file and their identities, by name.

    Raises:
        NotFoundError: it is not held, or not in parts.
    """
    manifest = read_manifest(parts.place, digest)
    ids = {t.name: i for t, i in zip(manifest.tensors, manifest.ids, strict=True)}
    # Checked: what is foretold from an altered file could never be restored.
    return Reader(parts, manifest).tensors(checked=True).remembering(), ids
