"""An open file of weights that is taken in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pressroom.kernel.errors import StoreError
from pressroom.store._hashing import digest_of, new_hasher
from pressroom.store._opening import unreadable
from pressroom.store.formats import WeightsInfo

_STEP = 2 << 20


@dataclass(frozen=True)
class Source:
    """`info` is what its header says, `known` its digest where that was found while it was written.

    Read by calls and not mapped: a file that is cut short while it is mapped ends the process.
    """

    fd: int
    path: Path
    before: os.stat_result
    info: WeightsInfo
    known: str | None = None

    @property
    def size(self) -> int:
        return self.before.st_size

    def read(self, offset: int, out: memoryview) -> None:
        """Exactly these bytes. Raises StoreError where the file became shorter or cannot be read."""
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self.fd, [out[done:]], offset + done)
            except OSError as error:
                raise unreadable(self.path, error) from error
            if not count:
                raise self.changed()
            done += count

    def hashed(self, progress: Callable[[int], None]) -> str:
        """The digest of the file. Raises OSError and StoreError."""
        hasher = new_hasher(self.size)
        buffer = memoryview(bytearray(min(self.size, _STEP)))
        for at in range(0, self.size, _STEP):
            block = buffer[: min(_STEP, self.size - at)]
            self.read(at, block)
            hasher.update(block)
            progress(len(block))
        return digest_of(hasher)

    def check_path(self) -> None:
        """Raises StoreError where another file took the place of the one that is open while its header was read."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise self.changed() from error
        if (found.st_dev, found.st_ino) != (self.before.st_dev, self.before.st_ino):
            raise self.changed()

    def check(self) -> None:
        """Raises StoreError where the file was written to since it was opened."""
        after = os.fstat(self.fd)
        if (after.st_size, after.st_mtime_ns) != (self.before.st_size, self.before.st_mtime_ns):
            raise self.changed()

    def changed(self) -> StoreError:
        """What to raise where the file is not what it was."""
        return StoreError(
            f"{self.path} changed while it was read",
            hint="Wait until nothing writes to it, then try again.",
            path=str(self.path),
        )
