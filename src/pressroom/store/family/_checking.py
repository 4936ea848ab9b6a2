"""Every byte of a file read and held against what was stored; what is damaged is named, with all who need it."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat

from blake3 import blake3

from pressroom.kernel.errors import DigestMismatchError, NotFoundError, StoreError
from pressroom.store._hashing import digest_of
from pressroom.store.family import _filling as filling
from pressroom.store.family import _plain as plain
from pressroom.store.family import _queries as queries
from pressroom.store.family._decoding import DamagedTensorError
from pressroom.store.family._manifests import BadManifestError, Manifest, whole_name_of
from pressroom.store.family._objects import StoredTensor, check_of
from pressroom.store.family._packs import BadPackError, read_footer
from pressroom.store.family._parts import Parts
from pressroom.store.family._rebuilding import read_manifest
from pressroom.store.family._restoring import Reader

_log = logging.getLogger(__name__)

_SHOWN = 3


@dataclass
class _Damage:
    """What was found: messages, the pieces and tensors to blame."""

    words: list[str] = field(default_factory=list)
    pieces: set[str] = field(default_factory=set)
    ids: set[bytes] = field(default_factory=set)
    names: list[str] = field(default_factory=list)
    found: str = ""

    def add(self, words: str, *, piece: str = "", identity: bytes | None = None, name: str = "") -> None:
        if words not in self.words:
            self.words.append(words)
        if piece:
            self.pieces.add(piece)
        if identity is not None:
            self.ids.add(identity)
        if name and name not in self.names:
            self.names.append(name)


def verify(parts: Parts, digest: str) -> None:
    """Read every byte of a file that is held in parts.

    Raises:
        NotFoundError: it is not held.
        DigestMismatchError: something of it is damaged or missing. `facts` name the `tensors` of this file, the
            `pieces` they lie in and the `files` that need them; putting the file again stores these parts anew.
        StoreError: the store cannot be read.
    """
    try:
        manifest = read_manifest(parts.place, digest)
    except BadManifestError as error:
        raise DigestMismatchError(
            error.message, hint=error.hint, digest=digest, found="", tensors=[], pieces=[error.facts["piece"]],
            files=[digest],
        ) from error  # fmt: skip
    damage = _whole(parts, manifest) if manifest.whole else _in_parts(parts, manifest)
    if damage is None:
        if not manifest.whole:
            _check_ends(parts, manifest)
        return
    try:
        if damage.ids:
            parts.index.write(lambda c: filling.flag(c, damage.ids))
        else:
            parts.index.write(lambda c: filling.flag_file(c, digest))
    except StoreError as error:  # on a disk that may only be read nothing can be mended either
        _log.warning("the damage cannot be noted: %s", error.message)
    files = parts.index.read(lambda c: queries.affected(c, damage.ids)) if damage.ids else []
    others = [file for file in files if file != digest]
    more = f" (and {len(damage.words) - _SHOWN} more)" if len(damage.words) > _SHOWN else ""
    need = f"; {len(others)} other files need it" if others else ""
    raise DigestMismatchError(
        f"{digest} is damaged: {'; '.join(damage.words[:_SHOWN])}{more}{need}",
        hint="The disk is failing or something else wrote to the store. Pull the model again: that puts the right "
        "bytes in their place, for all of these files.",
        digest=digest,
        found=damage.found,
        tensors=damage.names,
        pieces=sorted(damage.pieces),
        files=[digest, *others],
    )


def _check_ends(parts: Parts, manifest: Manifest) -> None:
    """Whether the tables at the ends of the packs are whole, too: nothing needs them before the index is lost.

    Raises:
        DigestMismatchError: one is not. The packs are marked to be written anew from the index by the next sweep.
    """
    tensors = parts.index.file_tensors(manifest)
    names = {segment.piece for tensor in tensors.values() for segment in tensor.segments if not segment.plain}
    bad = {}
    for name in sorted(names):
        try:
            read_footer(parts.place, name, parts.place.size(name) or 0)
        except BadPackError as error:
            bad[name] = error.message
    if not bad:
        return
    parts.index.write(lambda c: filling.taint(c, bad))
    raise DigestMismatchError(
        f"{manifest.digest} can be read, but not without the index: {'; '.join(list(bad.values())[:_SHOWN])}",
        hint="The disk is failing or something else wrote to it. Run `press gc` now: it writes these packs anew.",
        digest=manifest.digest,
        found=manifest.digest,
        tensors=[],
        pieces=sorted(bad),
        files=[manifest.digest],
    )


def _in_parts(parts: Parts, manifest: Manifest) -> _Damage | None:
    """Blocks are decoded on several threads and hashed in order, a few at a time."""
    reader = Reader(parts, manifest, strict=True)
    damage = _Damage()
    gaps = iter(reader.gaps())
    hasher = blake3()

    def work(tensor: StoredTensor, name: str, block: int) -> bytearray:
        out = bytearray(tensor.span(block)[1])
        try:
            reader.decoder.block(tensor.id, block, memoryview(out))
        except DamagedTensorError as error:
            damage.add(f"{error.message} ({name!r})", piece=error.piece, identity=error.id, name=name)
        return out

    # One pool for all of it: each of its threads has memory of its own to decode in.
    with ThreadPoolExecutor(parts.workers) as pool:
        for _, length, number in manifest.parts():
            if number is None:
                hasher.update(next(gaps)[1])
                continue
            info, identity = manifest.tensors[number], manifest.ids[number]
            if not length:
                continue
            try:
                tensor = reader.decoder.tensor(identity)
            except DamagedTensorError as error:
                damage.add(f"{error.message} ({info.name!r})", identity=identity, name=info.name)
                continue
            if tensor.nbytes != length:
                damage.add(f"{info.name!r} has another length", identity=identity, name=info.name)
                continue
            for first in range(0, tensor.count, parts.workers):
                numbers = range(first, min(first + parts.workers, tensor.count))
                for out in pool.map(work, repeat(tensor), repeat(info.name), numbers):
                    hasher.update(out)
    reader.decoder.pieces.close()
    if damage.words:
        return damage
    damage.found = digest_of(hasher)
    if damage.found != manifest.digest:
        damage.add(f"its parts make {damage.found}")
        return damage
    return None


def _whole(parts: Parts, manifest: Manifest) -> _Damage | None:
    piece = whole_name_of(manifest.digest)
    damage = _Damage()
    try:
        damage.found, size = plain.digest(parts.place, piece)
    except NotFoundError:
        damage.add(f"the piece {piece} is missing", piece=piece)
        damage.ids.update(i for i, t in zip(manifest.ids, manifest.tensors, strict=True) if t.nbytes)
        return damage
    if damage.found == manifest.digest:
        return None
    damage.add(f"the bytes of {piece} changed: they are {damage.found} now ({size} bytes)", piece=piece)
    for tensor in manifest.stored_tensors():
        segment = tensor.segments[0]
        for start, block in zip(segment.starts, segment.blocks, strict=False):
            end = start + block.stored
            if end > size or check_of(parts.place.read(piece, start, block.stored)) != block.check:
                damage.ids.add(tensor.id)
    damage.names = [t.name for t, i in zip(manifest.tensors, manifest.ids, strict=True) if i in damage.ids]
    return damage
