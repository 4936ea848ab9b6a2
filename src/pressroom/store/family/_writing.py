"""A file of weights taken in: front to back in one pass, its tensors found again or coded, all of it kept or nothing.

Durable in this order: the packs, one transaction of the index, the manifest. Whoever is killed before the manifest has
its name leaves space that a sweep gives back, and nothing that is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from blake3 import blake3

from pressroom.kernel.errors import DigestMismatchError, NotFoundError, StoreError
from pressroom.store import codec
from pressroom.store._hashing import digest_of
from pressroom.store.base import Blob
from pressroom.store.family import _manifests as manifests
from pressroom.store.family import _parents as parents
from pressroom.store.family import _plain as plain
from pressroom.store.family import _queries as queries
from pressroom.store.family import _sketch as sketches
from pressroom.store.family._adding import TensorAdder
from pressroom.store.family._guessing import guessed
from pressroom.store.family._manifests import Manifest, row_of
from pressroom.store.family._objects import Stored, tensor_id
from pressroom.store.family._parts import Parts
from pressroom.store.family._rebuilding import read_manifest
from pressroom.store.family._source import Source
from pressroom.store.formats import TensorInfo
from pressroom.store.places.base import Writer
from pressroom.store.recipe import Recipe
from pressroom.store.recipes import checked

# A file that would become at most so much smaller is kept as it is: it can be mapped, and its path costs nothing;
_WORTH_CODING = 0.04
_TRIED = 4
# unless so much of it is held already.
_WORTH_SHARING = 0.2


@dataclass(frozen=True)
class Wish:
    """What is said of a file that is put."""

    expected: str | None = None
    near: tuple[str, ...] = ()
    recipe: Recipe | None = None
    progress: Callable[[int], None] = lambda _: None


def take_in(parts: Parts, source: Source, wish: Wish) -> Blob:
    """Keep the file.

    Raises:
        DigestMismatchError: it is not what was declared; nothing is kept.
        StoreFullError: no room; nothing is kept.
        StoreError: it changed meanwhile, the recipe is not one, or the store failed.
    """
    with parts.putting():
        if parts.shared:
            parts.index.refresh()  # other machines may have put a parent, or the very tensors
        tensors = source.info.tensors
        try:
            sketch = sketches.take(source.fd, tensors)
            probe = sketches.probe(source.fd, source.size)
        except OSError as error:
            raise StoreError(f"{source.path} cannot be read: {error.strerror}", hint="Check the disk.") from error
        relatives = parts.index.read(lambda c: parents.related(c, tensors, sketch, wish.near))
        draft = Manifest(
            digest="", size=source.size, format=source.info.format, tensors=tensors, ids=(), gaps=b"", whole=False,
            probe=probe, sketch=sketch,
        )  # fmt: skip
        recipes = [checked(wish.recipe)] if wish.recipe is not None else guessed(parts, source, wish.near)
        if not recipes and not relatives and not _worth_coding(parts, source):
            return _whole(parts, source, wish, draft)
        return _in_parts(parts, source, wish, draft, TensorAdder(parts, source, relatives, recipes))


def is_sound(parts: Parts, digest: str) -> bool:
    """Whether the file is held in parts, and nothing that it is made of is known to be damaged."""
    try:
        manifest = read_manifest(parts.place, digest)
    except (NotFoundError, StoreError):
        return False
    if parts.index.read(lambda c: queries.is_flagged(c, digest)):
        return False
    found = parts.index.file_tensors(manifest)
    complete = all(i in found for i, t in zip(manifest.ids, manifest.tensors, strict=True) if t.nbytes)
    if not complete or not all(tensor.sound for tensor in found.values()):
        return False
    return not manifest.whole or parts.place.size(manifests.whole_name_of(digest)) == manifest.size


def _in_parts(parts: Parts, source: Source, wish: Wish, draft: Manifest, adder: TensorAdder) -> Blob:
    hasher = blake3() if source.known is None else None
    gaps = bytearray()
    with adder:
        for offset, length, number in manifests.parts(source.info.tensors, source.size):
            if number is not None:
                adder.add(number, hasher, wish.progress)
                continue
            gap = bytearray(length)
            source.read(offset, memoryview(gap))
            if hasher is not None:
                hasher.update(gap)
            gaps += gap
            wish.progress(length)
        adder.drain()
        digest = _checked(source, wish, hasher)
        if is_sound(parts, digest):
            return _put_by_another(parts, digest, source)
        packs = adder.finish()
        manifest = replace(draft, digest=digest, ids=adder.ids, gaps=bytes(gaps))

        def commit() -> None:
            parts.index.commit(packs, adder.stored, manifest)
            adder.kept()  # from here on another process may tell its tensors from these

        _announce(parts, manifest, commit)
    return Blob(digest, source.size)


def _put_by_another(parts: Parts, digest: str, source: Source) -> Blob:
    plain.settle(parts.place, manifests.name_of(digest))
    return Blob(digest, source.size)


def _whole(parts: Parts, source: Source, wish: Wish, draft: Manifest) -> Blob:
    """Keep the file as it is, with its tensors in the index, so that others are found in it and told from it."""
    hasher = blake3() if source.known is None else None
    ids: list[bytes] = []
    blocks: list[tuple[int, bytes]] = []
    with parts.place.write(size=source.size) as writer:
        buffer = memoryview(bytearray(codec.BLOCK))
        for offset, length, number in manifests.parts(source.info.tensors, source.size):
            step = codec.BLOCK if number is None else _block_length(source.info.tensors[number])
            digests = [
                blake3(data).digest() if number is not None else b""
                for data in _copied(source, writer, offset, length, step, buffer, hasher, wish)
            ]
            if number is not None:
                ids.append(tensor_id(digests))
                blocks.append((step, b"".join(digests)))
        digest = _checked(source, wish, hasher)
        if is_sound(parts, digest):
            return _put_by_another(parts, digest, source)
        name = manifests.whole_name_of(digest)
        manifest = replace(draft, digest=digest, ids=tuple(ids), whole=True, blocks=tuple(blocks))
        plain.keep(parts.place, writer, name, digest)
    parts.place.put(name + manifests.TABLE, manifests.pack_manifest(replace(manifest, sketch=b"")))
    stored, piece = list(manifest.stored_tensors()), Stored(name, source.size, manifest.tensor_bytes)
    _announce(parts, manifest, lambda: parts.index.commit([piece], stored, manifest))
    return Blob(digest, source.size)


def _copied(
    source: Source,
    writer: Writer,
    offset: int,
    length: int,
    step: int,
    buffer: memoryview,
    hasher: blake3 | None,
    wish: Wish,
) -> Iterator[memoryview]:
    for at in range(0, length, step):
        data = buffer[: min(step, length - at)]
        source.read(offset + at, data)
        if hasher is not None:
            hasher.update(data)
        writer.write(data)
        yield data
        wish.progress(len(data))


def _announce(parts: Parts, manifest: Manifest, commit: Callable[[], None]) -> None:
    """The manifest has its room before the index says anything, and its name after that."""
    data = manifests.pack_manifest(manifest)
    name = manifests.name_of(manifest.digest)
    with parts.place.write(size=len(data)) as writer:
        writer.write(data)
        commit()
        if parts.place.size(name) is not None:
            parts.place.delete(name)
        writer.commit(name)


def _checked(source: Source, wish: Wish, hasher: blake3 | None) -> str:
    """The digest of the file, once it is what was declared and what it was when it was opened."""
    source.check()
    digest = digest_of(hasher) if hasher is not None else source.known
    assert digest is not None
    if wish.expected is not None and digest != wish.expected:
        raise mismatch(digest, wish.expected)
    return digest


def mismatch(found: str, expected: str) -> DigestMismatchError:
    """What to raise where a file is not the one that was declared."""
    return DigestMismatchError(
        f"the bytes are {found}, and {expected} was declared",
        hint="The transfer was altered, or the declared digest is of something else.",
        expected=expected,
        found=found,
    )


def _worth_coding(parts: Parts, source: Source) -> bool:
    """Whether coding would save enough, or enough of the file is held already."""
    tensors = [tensor for tensor in source.info.tensors if tensor.nbytes]
    total = sum(tensor.nbytes for tensor in tensors)
    raw = coded = 0
    at, wanted = 0, [total * (2 * n + 1) // (2 * _TRIED) for n in range(_TRIED)]
    for tensor in tensors:
        while wanted and wanted[0] < at + tensor.nbytes:
            step = _block_length(tensor)
            start = (wanted.pop(0) - at) // step * step
            data = memoryview(bytearray(min(step, tensor.nbytes - start)))
            source.read(tensor.offset + start, data)
            raw += len(data)
            coded += len(codec.encode(data, dtype=tensor.dtype, row=row_of(tensor)))
        at += tensor.nbytes
    if not raw or coded <= (1 - _WORTH_CODING) * raw:
        return True
    return _shared(parts, source, tensors) >= _WORTH_SHARING * total


def _shared(parts: Parts, source: Source, tensors: Sequence[TensorInfo]) -> int:
    """Bytes of tensors that seem to be held already, by their first blocks."""
    lengths = parts.index.read(queries.lengths)
    shared = 0
    for tensor in tensors:
        if tensor.nbytes in lengths:
            first = memoryview(bytearray(min(_block_length(tensor), tensor.nbytes)))
            source.read(tensor.offset, first)
            digest = blake3(first).digest()
            if parts.index.read(lambda c, d=digest, n=tensor.nbytes: queries.like(c, d, n)):  # type: ignore[misc]
                shared += tensor.nbytes
    return shared


def _block_length(tensor: TensorInfo) -> int:
    return codec.block_length(tensor.dtype, row_of(tensor))
