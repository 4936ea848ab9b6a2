"""Files that only their writer knows: locked while it lives, so that what a killed one left is known and removed."""

from __future__ import annotations

import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_log = logging.getLogger(__name__)

_SUFFIX = ".part"


def temporary(directory: Path) -> tuple[int, Path]:
    """A new file, open for reading and writing and locked until its descriptor is closed. Raises OSError."""
    while True:
        path = directory / f"{uuid.uuid4().hex}{_SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # A sweep may have come between the two lines above and taken the file for a dead writer's.
            if os.fstat(fd).st_nlink:
                return fd, path
        except BaseException:
            with suppress(OSError):
                path.unlink()
            os.close(fd)
            raise
        os.close(fd)


@contextmanager
def left_over(path: Path) -> Iterator[int | None]:
    """Holds a file of `temporary` whose writer is gone; None where the writer lives, or the file is gone, too.

    Raises OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield fd
    finally:
        os.close(fd)


def paths(directory: Path) -> list[Path]:
    """The files of `temporary` in there, of the living and of the dead."""
    return list(directory.glob(f"*{_SUFFIX}"))


def sweep(directory: Path) -> None:
    """Remove what killed writers left. What cannot be removed takes room and does no other harm."""
    for path in paths(directory):
        try:
            with left_over(path) as fd:
                if fd is not None:
                    path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s is left over and cannot be removed: %s", path, error.strerror)
