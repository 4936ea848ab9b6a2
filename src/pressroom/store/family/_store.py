"""The store in front of its parts: what is put where, and how it is given back."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pressroom.kernel.errors import DigestMismatchError, NotFoundError, StoreError, WeightsError
from pressroom.kernel.settings import StorageSettings
from pressroom.store import _temporary
from pressroom.store._hashing import file_digest
from pressroom.store._opening import open_regular
from pressroom.store.base import Blob, Store, Swept, Usage, checked_digest, is_digest, not_held
from pressroom.store.family import _manifests as manifests
from pressroom.store.family import _plain as plain
from pressroom.store.formats import WeightsInfo, inspect
from pressroom.store.places.base import Place
from pressroom.store.recipe import Recipe

if TYPE_CHECKING:
    from pressroom.store._tensors import Tensors
    from pressroom.store.family._cache import Cache
    from pressroom.store.family._parts import Parts
    from pressroom.store.family._source import Source
    from pressroom.store.family._writing import Wish

# Below this a manifest, its rows and the heads of blocks take about what is saved.
_LEAST_WEIGHTS = 64 << 10
_HEAD = 16
# Ranges of a piece that are fetched at once over a network.
_FETCHES = 8


class FamilyStore(Store):
    """A store over any place: weights are kept by tensor, near their parents' where they have any; the rest whole.

    `home` is a local directory for the index and the locks, `cache` one for rebuilt files. Neither is made before
    something is written to it. `shared`: other machines may use the same place. Opening costs nothing; NumPy and SQLite
    are loaded for the first weights.
    """

    def __init__(
        self, place: Place, *, home: Path, cache: Path, storage: StorageSettings | None = None, shared: bool = False
    ) -> None:
        self._place = place
        self._home = home
        self._cache = cache
        self._storage = StorageSettings() if storage is None else storage
        self._shared = shared
        self._made: Parts | None = None

    def put(self, chunks: Iterable[bytes], *, expected: str | None = None, size: int | None = None) -> Blob:
        if expected is not None:
            checked_digest(expected)
        from pressroom.store._receiving import receive

        if expected is not None and (
            self._sound(expected) or plain.is_right(self._place, plain.name_of(expected), expected)
        ):
            # No byte is written, so this works on a full disk, too.
            return self._settled(receive(chunks, expected=expected, size=size))
        with self._place.write(size=size) as writer:  # says that there is no room before the first byte is asked for
            head, chunks = _looked_at(chunks)
            if not _like_weights(head) or (size is not None and size < _LEAST_WEIGHTS):
                return plain.put(self._place, writer, chunks, expected=expected, size=size)
        return self._put_spooled(chunks, expected, size)

    def put_file(
        self,
        path: Path,
        *,
        expected: str | None = None,
        near: Sequence[str] = (),
        recipe: Recipe | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Blob:
        if expected is not None:
            checked_digest(expected)
        with open_regular(path) as file:
            info = self._weights(path)
            if info is not None:
                from pressroom.store.family._writing import Wish

                wish = Wish(expected, tuple(near), recipe, progress or (lambda _: None))
                return self._take_in(file.fileno(), path, info, wish)
        return super().put_file(path, expected=expected, progress=progress)

    def open(self, digest: str) -> BinaryIO:
        name = plain.name_of(checked_digest(digest))
        size = self._place.size(name)
        if size is None:
            return self._open_parts(digest)
        path = self._place.local(name)
        if path is None:
            from pressroom.store.family._stream import PartsStream, PieceParts

            return cast(BinaryIO, PartsStream(PieceParts(self._place, name, size)))
        return _opened(path, digest)

    def path(self, digest: str, *, fast: bool = False) -> Path:
        """As `Store.path`. What is stored in parts is rebuilt once into the cache; with `fast`, what comes out is not
        held against its digest where all of the stored bytes were held against their checks.
        """
        name = plain.name_of(checked_digest(digest))
        size = self._place.size(name)
        if size is not None:
            return self._place.local(name) or self._fetched(digest, name, size)
        from pressroom.store.family._restoring import Reader

        manifest = self._manifest(digest)
        if manifest.whole:
            name = manifests.whole_name_of(digest)
            try:
                local = self._place.local(name)
            except NotFoundError as error:
                raise _piece_gone(digest, name) from error
            return local or self._fetched(digest, name, manifest.size)
        found = self._parts.cache.find(digest, manifest.size)
        if found is None:
            reader = Reader(self._parts, manifest, fast=fast)
            found = self._parts.cache.make(digest, manifest.size, reader.into_file)
        return found

    def read_into(self, digest: str, out: Any, *, fast: bool = False) -> None:
        """The whole file into a writable buffer of exactly its size, on several threads, past the cache of files.

        Raises:
            ValueError: the buffer has another size.
            NotFoundError, StoreError: as for `open`.
        """
        view = memoryview(out).cast("B")
        size = self.size(digest)
        if size is None:
            raise not_held(digest)
        if len(view) != size:
            raise ValueError(f"{digest} has {size} bytes, and the buffer {len(view)}")
        if self._place.size(plain.name_of(digest)) is not None:
            self._place.read_into(plain.name_of(digest), 0, view)
            return
        from pressroom.store.family._restoring import Reader

        manifest = self._manifest(digest)
        if manifest.whole:
            self._place.read_into(manifests.whole_name_of(digest), 0, view)
        else:
            Reader(self._parts, manifest, fast=fast).into(view)

    def tensors(self, digest: str) -> Tensors:
        if self._place.size(plain.name_of(checked_digest(digest))) is not None:
            return super().tensors(digest)
        from pressroom.store.family._restoring import Reader

        return Reader(self._parts, self._manifest(digest)).tensors()

    def size(self, digest: str) -> int | None:
        size = self._place.size(plain.name_of(checked_digest(digest)))
        if size is None and self._place.size(manifests.name_of(digest)) is not None:
            size = self._size_in_parts(digest)
        return size

    def verify(self, digest: str) -> None:
        if self._place.size(plain.name_of(checked_digest(digest))) is not None:
            plain.verify(self._place, digest)
            return
        from pressroom.store.family import _checking

        if self._place.size(manifests.name_of(digest)) is None:
            raise not_held(digest)
        _checking.verify(self._parts, digest)
        rebuilt = self._parts.cache.directory / digest
        if rebuilt.exists() and file_digest(rebuilt)[0] != digest:
            self._parts.cache.drop(digest)

    def list(self) -> Iterator[Blob]:
        seen: set[str] = set()
        for name, size in self._place.list(plain.FOLDER):
            digest = name.rpartition("/")[2]
            if is_digest(digest) and name == plain.name_of(digest):
                seen.add(digest)
                yield Blob(digest, size)
        for name, _ in self._place.list(manifests.FOLDER):
            digest = name.rpartition("/")[2]
            if is_digest(digest) and name == manifests.name_of(digest) and digest not in seen:
                held = self._size_in_parts(digest)
                if held is not None:
                    yield Blob(digest, held)

    def delete(self, digest: str) -> bool:
        gone = self._place.delete(plain.name_of(checked_digest(digest)))
        if self._place.delete(manifests.name_of(digest)):
            gone = True
            from pressroom.store.family import _filling as filling

            self._parts.index.write(lambda c: filling.forget_file(c, digest))
        if gone:
            self._cached.drop(digest)
        return gone

    def cost(self, digest: str) -> int:
        size = self._place.size(plain.name_of(checked_digest(digest)))
        if size is not None:
            return size
        manifest = self._place.size(manifests.name_of(digest))
        if manifest is None:
            raise not_held(digest)
        from pressroom.store.family import _costs

        return manifest + _costs.marginal(self._parts, digest)

    def usage(self) -> Usage:
        blobs = list(self.list())
        folders = (plain.FOLDER, manifests.FOLDER, manifests.WHOLE_FOLDER, "packs/")
        stored = sum(size for folder in folders for _, size in self._place.list(folder))
        reclaimable = 0
        if self._has_parts():
            from pressroom.store.family import _sweeping

            reclaimable = _sweeping.reclaimable(self._parts)
        return Usage(len(blobs), sum(blob.size for blob in blobs), stored, reclaimable)

    def sweep(self, *, dry_run: bool = False) -> Swept:
        if not self._has_parts():
            return Swept(0, 0)
        from pressroom.store.family import _sweeping

        freed = _temporary.sweep(self._home / "spool", dry_run=dry_run)
        freed += self._cached.sweep(lambda digest: self.size(digest) is not None, dry_run=dry_run)
        swept = _sweeping.sweep(self._parts, dry_run=dry_run)
        return Swept(freed + swept.freed, swept.rewritten, swept.kept)

    def rebuild_index(self) -> None:
        """Make the index anew from what lies in the place. Nobody puts meanwhile."""
        with self._parts.sweeping():
            self._parts.index.rebuild()

    def close(self) -> None:
        if self._made is not None:
            self._made.index.close()
        self._place.close()

    @property
    def _parts(self) -> Parts:
        if self._made is None:
            from pressroom.store.family._index import Index
            from pressroom.store.family._parts import Parts

            self._made = Parts(
                place=self._place,
                index=Index(self._home / "index.db", self._place),
                cache=self._cached,
                home=self._home,
                chains=self._storage.chains,
                threads=self._storage.threads,
                shared=self._shared,
            )
        return self._made

    @property
    def _cached(self) -> Cache:
        from pressroom.store.family._cache import Cache

        return Cache(self._cache, self._storage.cache_bytes)

    def _has_parts(self) -> bool:
        """Whether anything but whole files was ever put: a store that was only looked at stays as it is."""
        folders = (manifests.FOLDER, manifests.WHOLE_FOLDER, "packs/")
        return (self._home / "index.db").exists() or any(True for folder in folders for _ in self._place.list(folder))

    def _weights(self, path: Path) -> WeightsInfo | None:
        """What the header says, where the file is worth keeping by tensor."""
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size < _LEAST_WEIGHTS or not _like_weights(file.read(_HEAD)):
                return None
        try:
            info = inspect(path)
            for _ in manifests.parts(info.tensors, path.stat().st_size):
                pass
        except (WeightsError, ValueError):
            return None  # whoever asks for weights hears of it; bytes are bytes
        return info

    def _put_spooled(self, chunks: Iterable[bytes], expected: str | None, size: int | None) -> Blob:
        """What may be weights goes through a local file: their tensors are read more than once."""
        from pressroom.store.family._spool import spooled
        from pressroom.store.family._writing import Wish

        with spooled(chunks, self._home / "spool", expected=expected, size=size) as (fd, path, blob):
            info = self._weights(path)
            if info is not None:
                return self._take_in(fd, path, info, Wish(expected=expected), known=blob.digest)
            with self._place.write(size=blob.size) as writer:
                return plain.put(self._place, writer, _blocks(path), expected=blob.digest, size=blob.size)

    def _take_in(self, fd: int, path: Path, info: WeightsInfo, wish: Wish, *, known: str | None = None) -> Blob:
        from pressroom.store.family import _writing
        from pressroom.store.family._source import Source

        source = Source(fd, path, os.fstat(fd), info, known)
        source.check_path()
        digest = known or self._perhaps_held(source, wish)
        if digest is not None and self._sound(digest):
            return self._settled(Blob(digest, source.size))
        blob = _writing.take_in(self._parts, source, wish)
        if self._place.size(plain.name_of(blob.digest)) is not None:
            self._place.delete(plain.name_of(blob.digest))  # as an earlier version kept it
        return blob

    def _perhaps_held(self, source: Source, wish: Wish) -> str | None:
        """The digest of the file, unless it is clear without reading it that it is not held."""
        from pressroom.store.family import _queries as queries
        from pressroom.store.family import _sketch as sketches
        from pressroom.store.family._writing import mismatch

        try:
            probe = sketches.probe(source.fd, source.size)
            if not self._parts.index.read(lambda c: queries.known_probe(c, source.size, probe)):
                return None
            digest = source.hashed(wish.progress)
        except OSError as error:
            raise StoreError(f"{source.path} cannot be read: {error.strerror}", hint="Check the disk.") from error
        source.check()
        if wish.expected is not None and digest != wish.expected:
            raise mismatch(digest, wish.expected)
        return digest

    def _sound(self, digest: str) -> bool:
        if self._place.size(manifests.name_of(digest)) is None:
            return False
        from pressroom.store.family._writing import is_sound

        return is_sound(self._parts, digest)

    def _settled(self, blob: Blob) -> Blob:
        for name in (manifests.name_of(blob.digest), plain.name_of(blob.digest)):
            if self._place.size(name) is not None:
                plain.settle(self._place, name)
        return blob

    def _manifest(self, digest: str) -> manifests.Manifest:
        size = self._place.size(manifests.name_of(digest))
        if size is None:
            raise not_held(digest)
        try:
            return manifests.unpack_manifest(self._place.read(manifests.name_of(digest), 0, size), digest)
        except NotFoundError as error:  # deleted at this moment
            raise not_held(digest) from error

    def _size_in_parts(self, digest: str) -> int | None:
        from pressroom.store.family import _queries as queries

        if self._parts.index.exists():
            row = self._parts.index.read(lambda c: queries.file_row(c, digest))
            if row is not None:
                return row[1]
        try:
            return self._manifest(digest).size
        except NotFoundError:
            return None
        except manifests.BadManifestError:
            return 0  # it is held, and verifying says what is the matter

    def _open_parts(self, digest: str) -> BinaryIO:
        from pressroom.store.family._restoring import Reader
        from pressroom.store.family._stream import FileParts, PartsStream, PieceParts

        manifest = self._manifest(digest)
        if not manifest.whole:
            rebuilt = self._cached.find(digest, manifest.size)
            if rebuilt is not None:
                return _opened(rebuilt, digest)
            return cast(BinaryIO, PartsStream(FileParts(Reader(self._parts, manifest))))
        name = manifests.whole_name_of(digest)
        try:
            path = self._place.local(name)
        except NotFoundError as error:
            raise _piece_gone(digest, name) from error
        if path is not None:
            return _opened(path, digest)
        return cast(BinaryIO, PartsStream(PieceParts(self._place, name, manifest.size)))

    def _fetched(self, digest: str, name: str, size: int) -> Path:
        """A piece of a place without files, in the cache."""
        from pressroom.store.family._restoring import copy_piece

        def fill(fd: int) -> None:
            copy_piece(self._place, name, size, fd, _FETCHES)
            found = file_digest(Path(f"/dev/fd/{fd}"))[0]
            if found != digest:
                raise _altered(digest, found)

        return self._cached.make(digest, size, fill)


def _looked_at(chunks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, and all of them again."""
    source = iter(chunks)
    taken: list[bytes] = []
    head = b""
    while len(head) < _HEAD:
        chunk = next(source, None)
        if chunk is None:
            break
        taken.append(chunk)
        head += chunk[:_HEAD]
    return head[:_HEAD], itertools.chain(taken, source)


def _like_weights(head: bytes) -> bool:
    """Whether a file that begins so may be GGUF or safetensors."""
    return head.startswith(b"GGUF") or head[8:9] == b"{"


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block


def _opened(path: Path, digest: str) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise not_held(digest) from error
    except OSError as error:
        raise StoreError(
            f"the store failed: {path} cannot be read: {error.strerror}", hint="Check its permissions.", path=str(path)
        ) from error


def _piece_gone(digest: str, name: str) -> StoreError:
    return StoreError(
        f"the piece {name}, which is {digest}, is missing",
        hint="Something else wrote to the store: pull the model again.",
        digest=digest,
        piece=name,
    )


def _altered(digest: str, found: str) -> DigestMismatchError:
    return DigestMismatchError(
        f"the bytes kept as {digest} changed: they are {found} now",
        hint="Something else wrote to the store. Pull the model again.",
        digest=digest,
        found=found,
    )
