"""The contract of the store: bytes by digest, whole or not at all.

Promises every backend keeps:
- `put` returns only when the bytes are durable (synced) under their digest; a reader never sees half of them, also
  after `kill -9` or a power cut. Putting what is already held costs a hash and no space.
- The digest is BLAKE3 over the content, written `blake3-<64 hex digits>`. Every method refuses with a StoreError what
  is not written so, before it becomes part of a path or a URL.
- Any number of threads and processes may read and put at once.
- `delete` is the only way a file goes; whoever calls it has made sure that nothing refers to it. `sweep` gives back the
  space, and nobody who reads meanwhile is stopped.
- What was put is given back bit for bit, however it lies in the store.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pressroom.kernel.errors import NotFoundError, StoreError
from pressroom.store._opening import open_regular, unreadable
from pressroom.store.recipe import Recipe

if TYPE_CHECKING:
    from pressroom.store._tensors import Tensors

_DIGEST = re.compile(r"blake3-[0-9a-f]{64}")
# Large enough that hashing with several threads pays, small enough to stay in the cache on its way to the disk.
_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """Some bytes that are held: `digest` is `blake3-<64 hex>`, `size` in bytes."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a store holds, in bytes: `logical` as files, `stored` in its place; a sweep would free `reclaimable`."""

    files: int
    logical: int
    stored: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes of a deleted file that stay, because the files `needed_by` are stored as differences from them.

    `digest` is '' where it is not known any more which file they came with.
    """

    digest: str
    size: int
    needed_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did, or would do: bytes given back, bytes that had to be moved for it, and what had to stay."""

    freed: int
    rewritten: int
    kept: tuple[Kept, ...] = ()


class Store(ABC):
    """Bytes by digest. Made from a URL by `pressroom.store.open_store`.

    A backend is one file under `store/backends/`, named like its scheme, with a subclass called `Backend` that is made
    as `Backend(url, root=directory of the workspace, storage=settings of [storage])` and raises SettingsError for a URL
    it cannot use. The methods with a body here are right for a store that keeps every file whole.
    """

    @abstractmethod
    def put(self, chunks: Iterable[bytes], *, expected: str | None = None, size: int | None = None) -> Blob:
        """Keep the bytes. `expected` is the digest they must have, `size` how many they must be.

        Raises:
            DigestMismatchError: they are not what was declared; nothing is kept.
            StoreFullError: no room; nothing is kept. With `size` given this is said before the first byte is written.
            StoreError: the place cannot be written.
        """

    def put_file(
        self,
        path: Path,
        *,
        expected: str | None = None,
        near: Sequence[str] = (),
        recipe: Recipe | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Blob:
        """Keep the bytes of a local file, which must hold still meanwhile.

        `near`: digests of files it is likely derived from; `recipe`: how it was made from them. Both may save space and
        change nothing else. `progress` is told how many more bytes are done.

        Raises:
            NotFoundError: there is no such file.
            StoreError: it is not a regular file, cannot be read, or changed while it was read; nothing is kept.
            DigestMismatchError, StoreFullError: as for `put`.
        """
        with open_regular(path) as file:
            before = os.fstat(file.fileno())
            chunks = _still_chunks(path, file, before)
            told = chunks if progress is None else _told(chunks, progress)
            return self.put(told, expected=expected, size=before.st_size)

    @abstractmethod
    def open(self, digest: str) -> BinaryIO:
        """The bytes as a seekable binary stream. Raises NotFoundError."""

    @abstractmethod
    def path(self, digest: str) -> Path:
        """A local read-only file with exactly these bytes, for engines that want a path. Raises NotFoundError."""

    @abstractmethod
    def size(self, digest: str) -> int | None:
        """How many bytes, or None where the digest is not held."""

    def tensors(self, digest: str) -> Tensors:
        """The tensors of a file of weights by name, as NumPy arrays; nothing is read before it is asked for.

        Raises:
            NotFoundError: the file is not held.
            WeightsError: it is not weights.
        """
        from pressroom.store._tensors import tensors_of_file

        return tensors_of_file(self.path(digest), name=digest)

    @abstractmethod
    def verify(self, digest: str) -> None:
        """Read every byte again. Raises DigestMismatchError when they changed, NotFoundError when they are gone."""

    @abstractmethod
    def list(self) -> Iterator[Blob]:
        """Everything held, in no order."""

    @abstractmethod
    def delete(self, digest: str) -> bool:
        """Let go of the file; False where it was not held."""

    def cost(self, digest: str) -> int:
        """Bytes the store would get back if only this file went. Raises NotFoundError."""
        size = self.size(digest)
        if size is None:
            raise not_held(digest)
        return size

    def usage(self) -> Usage:
        """How much is held, and in how many bytes."""
        sizes = [blob.size for blob in self.list()]
        return Usage(len(sizes), sum(sizes), sum(sizes), 0)

    def sweep(self, *, dry_run: bool = False) -> Swept:
        """Give back the space of what was deleted, and of what killed processes left. Who reads meanwhile reads on.

        Raises:
            LockedError: somebody has been putting files for longer than it is worth waiting for.
        """
        return Swept(0, 0)

    @abstractmethod
    def close(self) -> None: ...


def is_digest(text: str) -> bool:
    """Whether the text is written as a digest of the store."""
    return _DIGEST.fullmatch(text) is not None


def checked_digest(text: str) -> str:
    """The text, where it is written as a digest; backends call this before they make a path or a URL of it.

    Raises:
        StoreError: it is not.
    """
    if not is_digest(text):
        raise StoreError(
            f"{text!r} is not a digest of the store",
            hint="A digest is blake3- and 64 hexadecimal digits in lower case.",
            asked=text,
        )
    return text


def not_held(digest: str) -> NotFoundError:
    """What to raise where a digest is asked for that is not held."""
    return NotFoundError(
        f"the store does not hold {digest}", hint="Pull the model that it belongs to again.", asked=digest
    )


def _told(chunks: Iterable[bytes], progress: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        progress(len(chunk))


def _still_chunks(path: Path, file: BinaryIO, before: os.stat_result) -> Iterator[bytes]:
    read = 0
    while read <= before.st_size:  # a file that grows for ever is not read for ever
        try:
            chunk = file.read(_CHUNK)
        except OSError as error:
            raise unreadable(path, error) from error
        if not chunk:
            break
        read += len(chunk)
        if read <= before.st_size:
            yield chunk
    after = os.fstat(file.fileno())
    if read != before.st_size or after.st_size != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise StoreError(
            f"{path} changed while it was read", hint="Wait until nothing writes to it, then try again.", path=str(path)
        )
