"""Files that only their maker knows: locked while it lives, so that what a killed one left is known and removed."""

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
    """A new hidden file, open for reading and writing and locked until its descriptor is closed. Raises OSError."""
    while True:
        path = directory / f".{uuid.uuid4().hex}{_SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # A sweep may have come between the two lines above and taken the file for a dead maker's.
            if os.fstat(fd).st_nlink:
                return fd, path
        except BaseException:
            with suppress(OSError):
                path.unlink()
            os.close(fd)
            raise
        os.close(fd)


@contextmanager
def making(directory: Path) -> Iterator[tuple[int, Path]]:
    """A file of `temporary` in a directory that is made if it is not there; it is removed unless it was renamed.

    Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fd, path = temporary(directory)
    try:
        yield fd, path
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(fd)


@contextmanager
def left_over(path: Path) -> Iterator[int | None]:
    """Holds a file of `temporary` whose maker is gone; None where the maker lives, or the file is gone, too.

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


def sweep(directory: Path, *, dry_run: bool = False) -> int:
    """Remove what killed makers left; returns the bytes. What cannot be removed takes room and does no other harm."""
    freed = 0
    for path in paths(directory):
        try:
            with left_over(path) as fd:
                if fd is not None:
                    freed += os.fstat(fd).st_blocks * 512
                    if not dry_run:
                        path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s is left over and cannot be removed: %s", path, error.strerror)
    return freed
