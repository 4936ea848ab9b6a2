"""Writing into the working directory: room looked for first, a full disk said plainly, nothing half-written kept."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pressroom.kernel import StoreError, StoreFullError


def room_for(directory: Path, size: int, *, what: str) -> None:
    """Raise StoreFullError where `directory` has no room for `size` more bytes."""
    free = shutil.disk_usage(directory).free
    if size > free:
        raise full(what, directory, needed=size)


@contextmanager
def written(path: Path, mode: str = "wb") -> Iterator[BinaryIO]:
    """Open a file for writing; what was written of it is removed where the disk fills up."""
    try:
        with path.open(mode) as out:
            yield out  # type: ignore[misc]  # the modes used are binary
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = path.stat().st_size
            path.unlink(missing_ok=True)
            raise full(path.name, path.parent, needed=needed) from error
        raise StoreError(f"{path} cannot be written: {error.strerror}", hint="Check its permissions.") from error


def full(what: str, directory: Path, *, needed: int) -> StoreFullError:
    """What to raise where `directory` has no room for so many bytes of something."""
    free = shutil.disk_usage(directory).free
    return StoreFullError(
        f"no room for {what} in {directory}: it needs {needed:,} bytes or more and {free:,} are free",
        hint="Make room (`press list`, `press rm REF`) and run the same command again.",
        needed=needed,
        free=free,
    )
