"""Where the store's parts lie: named, immutable pieces of bytes, in a directory or in a bucket.

Promises every place keeps:
- A piece has its name only when it is whole and durable; a reader never sees half of one, also after `kill -9`.
- A name, once given, always means the same bytes: putting it again changes nothing that a reader could see.
- Any number of threads and processes may read and put at once.

Names are relative POSIX paths of letters, digits, '.', '_' and '-', made by the store itself.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pressroom.kernel.errors import StoreError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


class Writer(Protocol):
    """A piece on its way: nobody sees it before `commit`."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises StoreFullError where there is no room, StoreError where the place fails."""

    def commit(self, name: str) -> None:
        """Make what was written durable under `name`. To be called once; without it nothing is kept."""


class Place(ABC):
    """Made as `Place(url, root=directory of the workspace)` by the file of the scheme under `store/places/`."""

    @abstractmethod
    def write(self, *, size: int | None = None) -> AbstractContextManager[Writer]:
        """A writer; leaving the block without `commit` drops what was written. `size` is how many bytes will come.

        Raises:
            StoreFullError: with `size` given, before the first byte, where there is no room for it.
        """

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Keep these bytes under the name, durable when this returns."""
        with self.write(size=len(data)) as writer:
            writer.write(data)
            writer.commit(name)

    @abstractmethod
    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly so many bytes from there.

        Raises:
            NotFoundError: there is no such piece.
            StoreError: it is shorter than that, or the place fails for longer than it is worth waiting for.
        """

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """As `read`, into a buffer that is there already."""
        out[:] = self.read(name, offset, len(out))

    @abstractmethod
    def local(self, name: str) -> Path | None:
        """A read-only local file that is this piece, for mapping; None where the place has no files.

        Raises:
            NotFoundError: there is no such piece.
        """

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of the piece, or None where there is none."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Name and size of every whole piece whose name starts so, in no order."""

    @abstractmethod
    def delete(self, name: str) -> bool:
        """Let go of the piece; False where there was none. Who has it open reads on."""

    @abstractmethod
    def close(self) -> None: ...


def checked_name(name: str) -> str:
    """The name, where it is one; places call this before they make a path or a URL of it.

    Raises:
        StoreError: it is not.
    """
    if _NAME.fullmatch(name) is None:
        raise StoreError(
            f"{name!r} cannot name a piece of the store",
            hint="Names are relative paths of letters, digits, '.', '_' and '-'; no part begins with '.' or '-'.",
            asked=name,
        )
    return name
