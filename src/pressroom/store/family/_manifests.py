"""Manifests: what a file of weights is made of. The piece `files/ab/<digest>` being there means that the file is held.

    "PRfile1\\n"   BLAKE3 of all that follows   three lengths (64 bits)   table   gaps   sketch

Each part is deflated. The table is JSON: the tensors in the order of the file with their places and identities. Gaps
are the bytes of the file that belong to no tensor: header, padding, tail. The sketch is a sample of the weights, by
which a child finds its parent.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from blake3 import blake3

from pressroom.kernel.errors import StoreError
from pressroom.store.base import is_digest
from pressroom.store.family._objects import CHECK, DIGEST, Block, Segment, StoredTensor
from pressroom.store.formats import TensorInfo

FOLDER = "files/"
WHOLE_FOLDER = "raw/"
TABLE = ".table"

_HEAD = b"PRfile1\n"
_LENGTHS = struct.Struct("<QQQ")
_START = len(_HEAD) + 32 + _LENGTHS.size


class BadManifestError(StoreError):
    """A manifest that was cut or altered."""


@dataclass(frozen=True)
class Manifest:
    """A file in parts: `tensors` by rising offset, each with the identity of its content in `ids`.

    `gaps` are the bytes outside of tensors, in order. `whole`: the file lies in one piece; there are no `gaps`, and
    `blocks` are, for every tensor, the length of its blocks and their digests one behind the other.
    `probe` is a digest over samples of the file, by which one that cannot be held is known early.
    """

    digest: str
    size: int
    format: str
    tensors: tuple[TensorInfo, ...]
    ids: tuple[bytes, ...]
    gaps: bytes
    whole: bool
    probe: bytes
    sketch: bytes
    blocks: tuple[tuple[int, bytes], ...] = ()

    @property
    def tensor_bytes(self) -> int:
        """How much of the file is tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def stored_tensors(self) -> Iterator[StoredTensor]:
        """The tensors of a file stored whole, as they lie in its piece. It is only ever stored in this one way, so the
        copies are named by the file.
        """
        piece = whole_name_of(self.digest)
        series = blake3(self.digest.encode()).digest(length=8)
        rows = zip(self.tensors, self.ids, self.blocks, strict=True)
        for number, (info, identity, (length, digests)) in enumerate(rows):
            raws = [digests[at : at + DIGEST] for at in range(0, len(digests), DIGEST)]
            stored = [min(length, info.nbytes - n * length) for n in range(len(raws))]
            blocks = tuple(Block(size, raw[:CHECK], raw) for size, raw in zip(stored, raws, strict=True))
            if blocks:
                yield StoredTensor(
                    id=identity,
                    dtype=info.dtype,
                    row=row_of(info),
                    nbytes=info.nbytes,
                    block=length,
                    segments=(Segment(0, piece, info.offset, blocks, plain=True),),
                    copy=series + number.to_bytes(4, "little"),
                )

    def parts(self) -> Iterator[tuple[int, int, int | None]]:
        """The file front to back: offset, length, and the number of the tensor (None: a gap)."""
        yield from parts(self.tensors, self.size)


def parts(tensors: tuple[TensorInfo, ...], size: int) -> Iterator[tuple[int, int, int | None]]:
    """As `Manifest.parts`. Raises ValueError where tensors overlap or lie outside of the file."""
    at = 0
    for number, tensor in enumerate(tensors):
        if tensor.offset < at or tensor.nbytes < 0:
            raise ValueError(f"the tensor {tensor.name!r} overlaps the one before it")
        if tensor.offset > at:
            yield at, tensor.offset - at, None
        yield tensor.offset, tensor.nbytes, number
        at = tensor.offset + tensor.nbytes
    if at > size:
        raise ValueError(f"the tensors end at byte {at}, the file at byte {size}")
    if at < size:
        yield at, size - at, None


def row_of(info: TensorInfo) -> int:
    """Elements of the innermost dimension, as the codec is told; 0 for a single number."""
    return info.shape[-1] if info.shape else 0


def name_of(digest: str) -> str:
    """The piece that is the manifest of a file."""
    return f"{FOLDER}{digest[7:9]}/{digest}"


def whole_name_of(digest: str) -> str:
    """The piece that is a file of weights stored whole. Beside it, with `TABLE` behind the name, lies what is in it:
    a manifest without a sketch, which stays when the file is deleted and others need its tensors.
    """
    return f"{WHOLE_FOLDER}{digest[7:9]}/{digest}"


def pack_manifest(manifest: Manifest) -> bytes:
    """The manifest as it is stored."""
    table = {
        "file": manifest.digest,
        "size": manifest.size,
        "format": manifest.format,
        "whole": manifest.whole,
        "probe": manifest.probe.hex(),
        "gaps": len(manifest.gaps),
        "sketch": len(manifest.sketch),
        "blocks": [[length, base64.b64encode(digests).decode()] for length, digests in manifest.blocks],
        "tensors": [
            [t.name, t.dtype, t.shape, t.offset, t.nbytes, identity.hex()]
            for t, identity in zip(manifest.tensors, manifest.ids, strict=True)
        ],
    }
    sections = [
        zlib.compress(json.dumps(table, separators=(",", ":")).encode(), 9),
        zlib.compress(manifest.gaps, 9),
        zlib.compress(manifest.sketch, 6),
    ]
    rest = b"".join([_LENGTHS.pack(*map(len, sections)), *sections])
    return _HEAD + blake3(rest).digest() + rest


def unpack_manifest(data: bytes, digest: str) -> Manifest:
    """What `pack_manifest` made for the file `digest`.

    Raises:
        BadManifestError: it was cut or altered, or is another file's.
    """
    try:
        if data[: len(_HEAD)] != _HEAD or len(data) < _START:
            raise ValueError("it does not begin as one")
        if blake3(data[len(_HEAD) + 32 :]).digest() != data[len(_HEAD) : len(_HEAD) + 32]:
            raise ValueError("it was altered")
        lengths = _LENGTHS.unpack_from(data, len(_HEAD) + 32)
        if _START + sum(lengths) != len(data):
            raise ValueError("it was cut")
        ends = [_START + sum(lengths[:n]) for n in range(4)]
        table = json.loads(zlib.decompress(data[ends[0] : ends[1]]))
        if table["file"] != digest or not is_digest(digest):
            raise ValueError(f"it is that of {table['file']}")
        rows = table["tensors"]
        manifest = Manifest(
            digest=digest,
            size=int(table["size"]),
            format=str(table["format"]),
            tensors=tuple(
                TensorInfo(name=name, dtype=dtype, shape=tuple(shape), offset=offset, nbytes=nbytes)
                for name, dtype, shape, offset, nbytes, _ in rows
            ),
            ids=tuple(bytes.fromhex(row[5]) for row in rows),
            gaps=_inflated(data[ends[1] : ends[2]], int(table["gaps"])),
            whole=bool(table["whole"]),
            probe=bytes.fromhex(table["probe"]),
            sketch=_inflated(data[ends[2] : ends[3]], int(table["sketch"])),
            blocks=tuple((int(n), base64.b64decode(digests, validate=True)) for n, digests in table["blocks"]),
        )
        gaps = sum(length for _, length, number in manifest.parts() if number is None)
        if len(manifest.gaps) != (0 if manifest.whole else gaps):
            raise ValueError("its parts are not the whole file")
    except (ValueError, KeyError, TypeError, zlib.error, struct.error, RecursionError) as error:
        raise BadManifestError(
            f"the manifest of {digest} cannot be read: {error}",
            hint="The disk is failing or something else wrote to the store. Pull the model again: that puts it right.",
            digest=digest,
            piece=name_of(digest),
        ) from error
    return manifest


def _inflated(data: bytes, length: int) -> bytes:
    inflater = zlib.decompressobj()
    found = inflater.decompress(data, length + 1)
    if len(found) != length:
        raise ValueError("a part of it has another length")
    return found
