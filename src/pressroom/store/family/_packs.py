"""Packs: pieces of up to 256 MiB that hold coded blocks, one behind the other, and say themselves what they hold.

    "PRpack1\\n"   blocks …   footer   its offset, its length (64 bits each), its BLAKE3, "PRpackE\\n"

The footer is JSON, deflated: for every tensor the rows of the index, so that the index can be made again from the packs
alone. A pack never changes once it has its name.
"""

from __future__ import annotations

import base64
import json
import struct
import uuid
import zlib
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from blake3 import blake3

from pressroom.kernel.errors import NotFoundError, StoreError
from pressroom.store.family._objects import Block, Segment, Stored, StoredTensor, pack_blocks, unpack_blocks
from pressroom.store.places.base import Place, Writer

FOLDER = "packs/"
LARGEST = 256 << 20

_HEAD = b"PRpack1\n"
_TAIL = struct.Struct("<QQ32s8s")
_END = b"PRpackE\n"
# A pack of nothing but the smallest tensors has a footer as long as itself.
_MOST_FOOTER = 1 << 30


class BadPackError(StoreError):
    """A pack whose footer cannot be read."""


class PackWriter:
    """Writes blocks into as many packs as they need. Use it with `with`: without `keep` all of them are taken back."""

    def __init__(self, place: Place, *, largest: int = LARGEST) -> None:
        self._place = place
        self._largest = largest
        self._open: tuple[AbstractContextManager[Writer], Writer] | None = None
        self._name = ""
        self._at = 0
        self._rows: list[dict[str, Any]] = []
        self._kept = False
        self._copy = b""
        self._first = 0
        self._blocks: list[Block] = []
        self._segments: list[Segment] = []
        #: The packs that are durable.
        self.packs: list[Stored] = []

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._open is not None:
            self._open[0].__exit__(kind, error, trace)
            self._open = None
        if not self._kept:
            for pack in self.packs:
                try:
                    self._place.delete(pack.name)
                except StoreError:
                    break  # the next sweep finds it: nothing refers to it

    def begin(self, copy: bytes, *, first: int = 0) -> None:
        """The blocks that follow belong to this copy of a tensor, from its block `first` on."""
        self._copy, self._first, self._blocks, self._segments = copy, first, [], []

    def block(self, data: bytes, block: Block) -> None:
        """The stored bytes of the next block."""
        if self._open is not None and self._at + len(data) > self._largest:
            self._cut(None)
            self._close()
        if self._open is None:
            self._name = f"{FOLDER}{uuid.uuid4().hex}"
            context = self._place.write()
            self._open = (context, context.__enter__())
            self._open[1].write(_HEAD)
            self._at = len(_HEAD)
            self._rows = []
        self._open[1].write(data)
        self._at += len(data)
        self._blocks.append(block)

    def end(self, tensor: StoredTensor) -> tuple[Segment, ...]:
        """Where the blocks since `begin` lie. What the tensor is stands in the footer of the last pack."""
        assert self._blocks
        self._cut(tensor)
        return tuple(self._segments)

    def _cut(self, tensor: StoredTensor | None) -> None:
        if not self._blocks:
            return
        length = sum(block.stored for block in self._blocks)
        segment = Segment(first=self._first, piece=self._name, offset=self._at - length, blocks=tuple(self._blocks))
        self._rows.append(_row(self._copy, segment, tensor))
        self._segments.append(segment)
        self._first += len(self._blocks)
        self._blocks = []

    def close(self) -> None:
        """Make the last pack durable."""
        self._close()

    def keep(self) -> None:
        """From here on somebody refers to the packs: they stay, whatever comes."""
        self._kept = True

    def _close(self) -> None:
        if self._open is None:
            return
        context, writer = self._open
        footer = zlib.compress(json.dumps(self._rows, separators=(",", ":")).encode(), 6)
        writer.write(footer)
        writer.write(_TAIL.pack(self._at, len(footer), blake3(footer).digest(), _END))
        writer.commit(self._name)
        self.packs.append(Stored(self._name, self._at + len(footer) + _TAIL.size, self._at - len(_HEAD)))
        self._open = None
        context.__exit__(None, None, None)


class Row(NamedTuple):
    """What a footer says of a tensor: blocks of one copy, and with the last of them what the tensor is."""

    copy: bytes
    segment: Segment
    tensor: StoredTensor | None


def read_footer(place: Place, name: str, size: int) -> list[Row]:
    """The tensors, or parts of them, that a pack holds.

    Raises:
        BadPackError: the pack was cut or altered.
        NotFoundError: it is gone.
    """
    try:
        if size < len(_HEAD) + _TAIL.size:
            raise ValueError(f"it has {size} bytes")
        start, length, digest, end = _TAIL.unpack(place.read(name, size - _TAIL.size, _TAIL.size))
        if end != _END or start + length + _TAIL.size != size or length > _MOST_FOOTER:
            raise ValueError("its last bytes are not those of a pack")
        footer = place.read(name, start, length)
        if blake3(footer).digest() != digest:
            raise ValueError("its table was altered")
        rows = json.loads(zlib.decompress(footer))
        return [_parsed(name, row) for row in rows]
    except NotFoundError:
        raise
    except (ValueError, KeyError, TypeError, zlib.error, struct.error, StoreError) as error:
        raise BadPackError(
            f"the pack {name} cannot be read: {error}",
            hint="The disk is failing or something else wrote to the store: run `press verify`.",
            piece=name,
        ) from error


def _row(copy: bytes, segment: Segment, tensor: StoredTensor | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "copy": copy.hex(),
        "first": segment.first,
        "offset": segment.offset,
        "blocks": base64.b64encode(pack_blocks(segment.blocks)).decode(),
    }
    if tensor is not None:
        row["tensor"] = {
            "id": tensor.id.hex(),
            "dtype": tensor.dtype,
            "row": tensor.row,
            "nbytes": tensor.nbytes,
            "block": tensor.block,
            "parents": [parent.hex() for parent in tensor.parents],
            "recipe": tensor.recipe,
        }
    return row


def _parsed(name: str, row: dict[str, Any]) -> Row:
    blocks = unpack_blocks(base64.b64decode(row["blocks"], validate=True))
    segment = Segment(first=int(row["first"]), piece=name, offset=int(row["offset"]), blocks=blocks)
    copy = bytes.fromhex(row["copy"])
    said = row.get("tensor")
    if said is None:
        return Row(copy, segment, None)
    tensor = StoredTensor(
        id=bytes.fromhex(said["id"]),
        dtype=str(said["dtype"]),
        row=int(said["row"]),
        nbytes=int(said["nbytes"]),
        block=int(said["block"]),
        parents=tuple(bytes.fromhex(parent) for parent in said["parents"]),
        recipe=said["recipe"],
        copy=copy,
    )
    return Row(copy, segment, tensor)
