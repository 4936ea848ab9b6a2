"""Blocks of stored tensors, decoded with all that they are told from, one block at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from blake3 import blake3

from pressroom.kernel.errors import NotFoundError, StoreError
from pressroom.store import codec
from pressroom.store.family._objects import Segment, StoredTensor, check_of
from pressroom.store.family._pieces import Pieces

# Deeper than any policy makes chains: who comes here follows rows that were altered into a circle.
_DEEPEST = 32


class Predicted(Protocol):
    """The bytes that a tensor has by its recipe; `checked`: all that they are made from is held against its digest."""

    def __call__(self, tensor: StoredTensor, decoder: Decoder, *, checked: bool) -> memoryview: ...


class DamagedTensorError(StoreError):
    """Bytes of a tensor are missing or are not what was stored; `id` is the tensor whose own bytes they are."""

    def __init__(self, identity: bytes, what: str, *, piece: str = "") -> None:
        super().__init__(
            what,
            hint="The disk is failing or something else wrote to the store. `press verify` names every version that is "
            "affected; pulling one again puts the right bytes in their place.",
            tensor=identity.hex(),
            piece=piece,
        )
        self.id = identity
        self.piece = piece


class Decoder:
    """Decodes blocks of `tensors`, which are complete: with everything that they are told from.

    `shortcut(id)` is the whole raw content of a tensor where it lies in memory or in a mapped file, `predicted(tensor,
    decoder, checked=)` what its recipe says. `renew(id)` looks for a tensor again whose pack is gone.

    What comes out is held against its digest; with `fast`, not where all of the stored bytes were held against their
    checks; what comes by a shortcut has none. `strict`: both. Safe to use from several threads; a thread needs a
    few blocks of memory.
    """

    def __init__(
        self,
        tensors: Mapping[bytes, StoredTensor],
        pieces: Pieces,
        *,
        fast: bool = False,
        strict: bool = False,
        shortcut: Callable[[bytes], memoryview | None] = lambda _: None,
        predicted: Predicted | None = None,
        renew: Callable[[bytes], Mapping[bytes, StoredTensor]] | None = None,
    ) -> None:
        self.tensors = dict(tensors)
        self.pieces = pieces
        self._fast = fast
        self._strict = fast or strict
        self.shortcut = shortcut
        self._predicted = predicted
        self._renew = renew
        self._scratch = threading.local()

    def tensor(self, identity: bytes) -> StoredTensor:
        """Raises DamagedTensorError where it is missing."""
        found = self.tensors.get(identity)
        if found is None or not found.segments:
            raise DamagedTensorError(identity, f"the tensor {identity.hex()[:16]}… is missing from the store")
        return found

    def block(self, identity: bytes, number: int, out: memoryview, *, checked: bool = True) -> None:
        """Block `number` of a tensor into `out`, which has its length. What comes is what was stored, or an error.

        Not `checked`: perhaps other bytes, for who holds what is made of them against a digest.

        Raises:
            DamagedTensorError: a byte of it, or of what it is told from, was altered or is missing.
        """
        read = self._checked if checked else self._unchecked
        try:
            read(identity, number, out)
        except NotFoundError:
            # A sweep moved blocks to another pack since they were looked up.
            if self._renew is None:
                raise
            self.tensors.update(self._renew(identity))
            try:
                read(identity, number, out)
            except NotFoundError as error:
                raise DamagedTensorError(identity, f"a pack of the store is missing: {error.message}") from error

    def _unchecked(self, identity: bytes, number: int, out: memoryview) -> None:
        self._decode(self.tensor(identity), number, out, thorough=False)

    def _checked(self, identity: bytes, number: int, out: memoryview) -> None:
        tensor = self.tensor(identity)
        start, length = tensor.span(number)
        whole = self.shortcut(identity)
        if whole is not None:
            out[:] = whole[start : start + length]
            if self._is_right(tensor, number, out):
                return
            # The file it was taken from was altered: what is stored still counts.
        try:
            checked = self._decode(tensor, number, out, thorough=False)
            if (checked and self._fast) or self._is_right(tensor, number, out):
                return
        except DamagedTensorError:
            pass  # whose fault it is comes out below
        self._decode(tensor, number, out, thorough=True)
        if not self._is_right(tensor, number, out):
            raise self._culprit(tensor, number)

    def _is_right(self, tensor: StoredTensor, number: int, out: memoryview) -> bool:
        segment, at = self._located(tensor, number)
        return blake3(out).digest() == segment.blocks[at].raw

    def _decode(self, tensor: StoredTensor, number: int, out: memoryview, *, thorough: bool) -> bool:
        """Down the chain until a block needs nothing or is at hand, then up again, between two buffers. `thorough`: by
        no shortcut, and all that is read is held against its check.

        Returns whether every byte that was read was held against the check of what was stored.
        """
        chain: list[tuple[StoredTensor, Any]] = []
        parent: memoryview | None = None
        start, length = tensor.span(number)
        checked = thorough or self._strict
        while True:
            if chain and not thorough:
                whole = self.shortcut(tensor.id)
                if whole is not None:
                    parent, checked = whole[start : start + length], False
                    break
            segment, at = self._located(tensor, number)
            if segment.plain:
                parent = self._buffer(0, length) if chain else out
                self._read_into(tensor, segment, at, parent)
                if not chain:
                    return False
                checked = False
                break
            stored = self._buffer(3 + len(chain), segment.blocks[at].stored)
            self._read_into(tensor, segment, at, stored)
            if (thorough or self._strict) and check_of(stored) != segment.blocks[at].check:
                raise DamagedTensorError(
                    tensor.id,
                    f"block {number} of the tensor {tensor.id.hex()[:16]}… was altered in {segment.piece}",
                    piece=segment.piece,
                )
            chain.append((tensor, stored))
            try:
                needs = codec.needs_parent(stored)
            except codec.DamagedError as error:
                raise self._undecoded(tensor, number, error) from error
            if not needs:
                break
            if tensor.recipe is not None:
                if self._predicted is None:
                    raise DamagedTensorError(tensor.id, "a tensor by a recipe lies below another one")
                # What is read for it goes through the same buffers.
                chain = [(above, bytes(held)) for above, held in chain]
                parent = self._predicted(tensor, self, checked=thorough)[start : start + length]
                checked = checked and thorough
                break
            if not tensor.parents or len(chain) > _DEEPEST:
                raise DamagedTensorError(
                    tensor.id,
                    f"the tensor {tensor.id.hex()[:16]}… is told from one that is not named",
                    piece=segment.piece,
                )
            tensor = self.tensor(tensor.parents[0])
            if tensor.span(number)[1] != length:
                raise DamagedTensorError(tensor.id, f"the tensor {tensor.id.hex()[:16]}… has blocks of another length")
        # Of two buffers one is read from while the other is written to.
        for level, (above, stored) in enumerate(reversed(chain)):
            target = out if level == len(chain) - 1 else self._buffer(1 + level % 2, length)
            try:
                codec.decode(stored, target, parent=parent)
            except codec.DamagedError as error:
                raise self._undecoded(above, number, error) from error
            parent = target
        return checked

    def _culprit(self, tensor: StoredTensor, number: int) -> DamagedTensorError:
        """Which tensor of the chain is not what it was, going down from the one that was asked for."""
        below = tensor
        while below.parents and below.recipe is None:
            parent = self.tensor(below.parents[0])
            out = memoryview(bytearray(parent.span(number)[1]))
            try:
                self._decode(parent, number, out, thorough=True)
            except DamagedTensorError as error:
                return error
            if self._is_right(parent, number, out):
                break
            below = parent
        piece = self._located(below, number)[0].piece
        return DamagedTensorError(
            below.id,
            f"block {number} of the tensor {below.id.hex()[:16]}… in {piece} is not what was stored",
            piece=piece,
        )

    def _located(self, tensor: StoredTensor, number: int) -> tuple[Segment, int]:
        try:
            return tensor.locate(number)
        except LookupError as error:
            raise DamagedTensorError(
                tensor.id, f"block {number} of the tensor {tensor.id.hex()[:16]}… is missing from the store"
            ) from error

    def _undecoded(self, tensor: StoredTensor, number: int, error: codec.DamagedError) -> DamagedTensorError:
        return DamagedTensorError(
            tensor.id,
            f"block {number} of the tensor {tensor.id.hex()[:16]}… does not decode: {error.message}",
            piece=self._located(tensor, number)[0].piece,
        )

    def _read_into(self, tensor: StoredTensor, segment: Segment, at: int, out: memoryview) -> None:
        try:
            self.pieces.read_into(segment.piece, segment.starts[at], out)
        except StoreError as error:
            raise self._unread(tensor, segment, at, error) from error

    def _unread(self, tensor: StoredTensor, segment: Segment, at: int, error: StoreError) -> StoreError:
        if self.pieces.is_cut(segment.piece, segment.starts[at + 1]):
            return DamagedTensorError(tensor.id, f"the piece {segment.piece} was cut", piece=segment.piece)
        return error

    def _buffer(self, number: int, length: int) -> memoryview:
        """One of this thread's buffers."""
        held: dict[int, bytearray] = self._scratch.__dict__.setdefault("held", {})
        if len(held.get(number, b"")) < length:
            held[number] = bytearray(max(length, codec.BLOCK))
        return memoryview(held[number])[:length]
