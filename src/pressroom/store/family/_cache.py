"""Rebuilt files: each is made once, for whoever needs a path, and the longest unused go when there is no more room.

A file in use stays: one that somebody has open or mapped (where the system can say so), one with a second name (a
folder laid out for an engine links to it), and one that was asked for within the last ten minutes, because a path that
was given out is opened a moment later.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pressroom.kernel.errors import StoreError, StoreFullError
from pressroom.store import _temporary
from pressroom.store._room import FULL, free_bytes
from pressroom.store.base import is_digest

_log = logging.getLogger(__name__)

_FRESH_S = 600.0


class Cache:
    """Whole files by digest in one directory, at most `limit` bytes of them together. Nothing is made before use."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory = directory
        self.limit = limit

    def held(self) -> list[str]:
        """The digests of the files that are there."""
        try:
            return [path.name for path in self.directory.iterdir() if is_digest(path.name)]
        except OSError:
            return []

    def find(self, digest: str, size: int, *, use: bool = True) -> Path | None:
        """The file, where it is there and as long as it must be; with `use` it counts as used now."""
        path = self.directory / digest
        try:
            found = path.stat()
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return None
        if use:
            with suppress(OSError):  # on a disk that may only be read nothing is removed either
                os.utime(path)
        return path

    def make(self, digest: str, size: int, fill: Callable[[int], None]) -> Path:
        """The file, filled by `fill(file descriptor)` where it is not there yet.

        Raises:
            StoreFullError: there is no room for it, also without the others.
            StoreError: the directory cannot be written.
        """
        found = self.find(digest, size)
        if found is not None:
            return found
        path = self.directory / digest
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            with _temporary.making(self.directory) as (fd, temporary):
                os.truncate(fd, size)
                fill(fd)
                os.fchmod(fd, 0o444)
                temporary.rename(path)
        except OSError as error:
            raise self._failed(error, size) from error
        return path

    def drop(self, digest: str) -> int:
        """Let go of a file; returns its bytes. Who has it open reads on."""
        path = self.directory / digest
        try:
            size = path.stat().st_size
            path.unlink()
        except OSError:
            return 0
        return size

    def sweep(self, keep: Callable[[str], bool], *, dry_run: bool = False) -> int:
        """Remove files that `keep` does not want, and what killed makers left; returns the bytes."""
        freed = _temporary.sweep(self.directory, dry_run=dry_run)
        for digest in self.held():
            if not keep(digest):
                with suppress(OSError):
                    freed += (self.directory / digest).stat().st_size
                if not dry_run:
                    self.drop(digest)
        return freed

    def _make_room(self, size: int) -> None:
        _temporary.sweep(self.directory)
        files = []
        for digest in self.held():
            with suppress(OSError):
                found = (self.directory / digest).stat()
                files.append((found.st_mtime, digest, found))
        held = sum(found.st_size for _, _, found in files)
        for used, digest, found in sorted(files, key=lambda file: file[:2]):
            if held + size <= self.limit and self._free() >= size:
                break
            if time.time() - used < _FRESH_S or found.st_nlink > 1 or _is_open(self.directory / digest):
                continue
            _log.info("%s leaves the cache", digest)
            held -= self.drop(digest)
        if (free := self._free()) < size:
            raise self._full(size, free)

    def _free(self) -> int:
        return free_bytes(self.directory)

    def _failed(self, error: OSError, size: int) -> StoreError:
        if error.errno in FULL:
            return self._full(size, self._free())
        return StoreError(
            f"the file cannot be rebuilt in {self.directory}: {error.strerror or error}",
            hint="Check that the directory may be written by this user.",
            path=str(self.directory),
        )

    def _full(self, size: int, free: int) -> StoreFullError:
        return StoreFullError(
            f"{size} bytes are needed to rebuild a file in {self.directory}, and {free} are free",
            hint="Make room on that disk, or stop what runs from there.",
            needed=size,
            free=free,
            path=str(self.directory),
        )


def _is_open(path: Path) -> bool:
    """Whether a process has the file open or mapped, where the system can say so: a lease is for a sole holder."""
    lease, exclusive = getattr(fcntl, "F_SETLEASE", None), fcntl.F_WRLCK
    if lease is None:
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.fcntl(fd, lease, exclusive)
        fcntl.fcntl(fd, lease, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(fd)
    return False
