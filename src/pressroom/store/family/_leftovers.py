"""Files that are being made: each is locked by its maker, so that what a killed one left is known and removed."""

from __future__ import annotations

import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_log = logging.getLogger(__name__)

SUFFIX = ".part"


@contextmanager
def making(directory: Path) -> Iterator[tuple[int, Path]]:
    """A new hidden file in the directory, open for reading and writing; it is removed unless it was renamed.

    Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fd, path = _locked(directory)
    try:
        yield fd, path
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(fd)


def sweep(directory: Path, *, dry_run: bool = False) -> int:
    """Remove what killed makers left in the directory; returns the bytes."""
    freed = 0
    for path in directory.glob(f".*{SUFFIX}"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                freed += os.fstat(fd).st_blocks * 512
                if not dry_run:
                    path.unlink(missing_ok=True)
            finally:
                os.close(fd)
        except (FileNotFoundError, BlockingIOError):
            continue  # its maker has just ended, or still lives
        except OSError as error:
            _log.warning("%s is left over and cannot be removed: %s", path, error.strerror)
    return freed


def _locked(directory: Path) -> tuple[int, Path]:
    while True:
        path = directory / f".{uuid.uuid4().hex}{SUFFIX}"
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
