"""The contract of the store: bytes by digest, whole or not at all.

Promises every backend keeps:
- `put` returns only when the bytes are durable (synced) under their digest; a reader never sees half of them, also
  after `kill -9` or a power cut. Putting what is already held costs a hash and no space.
- The digest is BLAKE3 over the content, written `blake3-<64 hex digits>`.
- Any number of threads and processes may read and put at once.
- `delete` is the only way bytes go; whoever calls it has made sure that nothing refers to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Blob:
    """Some bytes that are held: `digest` is `blake3-<64 hex>`, `size` in bytes."""

    digest: str
    size: int


class Store(ABC):
    """Bytes by digest. Made from a URL by `pressroom.store.open_store`."""

    @abstractmethod
    def put(self, chunks: Iterable[bytes], *, expected: str | None = None, size: int | None = None) -> Blob:
        """Keep the bytes. `expected` is the digest they must have, `size` how many they must be.

        Raises:
            DigestMismatchError: they are not what was declared; nothing is kept.
            StoreFullError: no room; nothing is kept. With `size` given this is said before the first byte is written.
            StoreError: the place cannot be written.
        """

    @abstractmethod
    def open(self, digest: str) -> BinaryIO:
        """The bytes as a seekable binary stream. Raises NotFoundError."""

    @abstractmethod
    def path(self, digest: str) -> Path:
        """A local read-only file with exactly these bytes, for engines that want a path. Raises NotFoundError."""

    @abstractmethod
    def size(self, digest: str) -> int | None:
        """How many bytes, or None where the digest is not held."""

    @abstractmethod
    def verify(self, digest: str) -> None:
        """Read every byte again. Raises DigestMismatchError when they changed, NotFoundError when they are gone."""

    @abstractmethod
    def list(self) -> Iterator[Blob]:
        """Everything held, in no order."""

    @abstractmethod
    def delete(self, digest: str) -> bool:
        """Let go of the bytes; False where they were not held."""

    @abstractmethod
    def close(self) -> None: ...
