"""Opening a file that a stranger named: a regular one, or an error; never a wait."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from pressroom.kernel.errors import NotFoundError, StoreError


def open_regular(path: Path) -> BinaryIO:
    """The file, unbuffered, for reading.

    Raises:
        NotFoundError: there is none.
        StoreError: it is not a regular file, or cannot be read.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for somebody to write to it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no file {path}", hint="Check the path.", path=str(path)) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoreError(f"{path} is not a regular file", hint="Name a file.", path=str(path))
    return os.fdopen(fd, "rb", buffering=0)


def unreadable(path: Path, error: OSError) -> StoreError:
    """What to raise when reading fails."""
    return StoreError(
        f"{path} cannot be read: {error.strerror or error}", hint="Check its permissions and the disk.", path=str(path)
    )
