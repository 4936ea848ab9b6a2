"""The store in a directory: `file://path`, relative to the workspace, or absolute.

    blobs/ab/blake3-ab…   the bytes, read-only, in 256 folders by the first two digits
    tmp/                  what is being put; each file is locked by its writer

A file enters `blobs/` by a rename, after it was synced. Whoever is killed leaves only a file in `tmp/`, whose lock the
kernel lets go; the next one to open the store removes it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pressroom.kernel.errors import DigestMismatchError, NotFoundError, SettingsError, StoreError, StoreFullError
from pressroom.store._hashing import file_digest
from pressroom.store._receiving import Block, receive
from pressroom.store.base import Blob, Store, checked_digest, is_digest

_log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Backend(Store):
    def __init__(self, url: str, *, root: Path) -> None:
        scheme, _, rest = url.partition("://")
        if scheme != "file" or not rest or "\0" in rest:
            raise SettingsError(
                f"store = {url!r} does not name a directory",
                hint="Write it as file://relative/path or file:///absolute/path.",
                asked=url,
            )
        self._dir = root / rest
        self._blobs = self._dir / "blobs"
        self._tmp = self._dir / "tmp"
        if self._dir.exists() and not self._dir.is_dir():
            raise StoreError(
                f"the store {self._dir} is not a directory",
                hint=f"Move it away, or change the setting store = {url!r}.",
                path=str(self._dir),
            )
        self._sweep()

    def put(self, chunks: Iterable[bytes], *, expected: str | None = None, size: int | None = None) -> Blob:
        if expected is not None and self._holds(checked_digest(expected)):
            # No byte is written, so this works on a full disk, too.
            blob = receive(chunks, expected=expected, size=size)
        else:
            with self._failures(size):
                self._tmp.mkdir(parents=True, exist_ok=True)
                self._room_for(size)
                fd, temporary = self._temporary()
            try:
                blob = receive(chunks, expected=expected, size=size, write=lambda block: self._write(fd, block, size))
                if not self._holds(blob.digest):
                    with self._failures(size):
                        os.fchmod(fd, 0o444)
                        _sync(fd)
                        self._place(blob.digest).parent.mkdir(parents=True, exist_ok=True)
                        # Two who do this at once with equal bytes do no harm: one replaces the other.
                        temporary.rename(self._place(blob.digest))
            finally:
                temporary.unlink(missing_ok=True)
                os.close(fd)
        with self._failures(size):
            # Also where another one put it: that one may not have come to this line yet.
            for directory in (self._place(blob.digest).parent, self._blobs, self._dir):
                _sync_directory(directory)
        return blob

    def open(self, digest: str) -> BinaryIO:
        with self._failures():
            try:
                return self._place(digest).open("rb")
            except FileNotFoundError as error:
                raise _gone(digest) from error

    def path(self, digest: str) -> Path:
        if self.size(digest) is None:
            raise _gone(digest)
        return self._place(digest)

    def size(self, digest: str) -> int | None:
        with self._failures():
            try:
                found = self._place(digest).stat()
            except FileNotFoundError:
                return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def verify(self, digest: str) -> None:
        with self._failures():
            try:
                found, size = file_digest(self._place(digest))
            except FileNotFoundError as error:
                raise _gone(digest) from error
        if found != digest:
            raise DigestMismatchError(
                f"the bytes kept as {digest} changed: they are {found} now ({size} bytes)",
                hint="Something else wrote to the store, or the disk is failing. Pull the model again: that puts the "
                "right bytes in their place.",
                digest=digest,
                found=found,
                size=size,
            )

    def list(self) -> Iterator[Blob]:
        for folder in self._names(self._blobs):
            for name in self._names(self._blobs / folder):
                # None: deleted meanwhile.
                if is_digest(name) and (size := self.size(name)) is not None:
                    yield Blob(name, size)

    def delete(self, digest: str) -> bool:
        place = self._place(digest)
        with self._failures():
            try:
                place.unlink()
            except FileNotFoundError:
                return False
            _sync_directory(place.parent)
        return True

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _place(self, digest: str) -> Path:
        checked_digest(digest)
        return self._blobs / digest[7:9] / digest

    def _names(self, directory: Path) -> Sequence[str]:
        with self._failures():
            try:
                return [path.name for path in directory.iterdir()]
            except (FileNotFoundError, NotADirectoryError):
                return ()

    def _holds(self, digest: str) -> bool:
        """Whether the right bytes are there: what a damaged disk left under the name does not count."""
        try:
            return file_digest(self._place(digest))[0] == digest
        except OSError:
            # Whatever keeps it from being read, putting it anew either mends it or fails with the reason.
            return False

    def _temporary(self) -> tuple[int, Path]:
        while True:
            path = self._tmp / f"{uuid.uuid4().hex}.part"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
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

    def _write(self, fd: int, block: Block, size: int | None) -> None:
        view = memoryview(block)
        with self._failures(size):
            while view:
                view = view[os.write(fd, view) :]

    def _sweep(self) -> None:
        """Remove what killed writers left. What cannot be removed takes room and does no other harm."""
        for path in self._tmp.glob("*.part"):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                finally:
                    os.close(fd)
            except (FileNotFoundError, BlockingIOError):
                continue  # its writer has just ended, or still lives
            except OSError as error:
                _log.warning("%s is left over and cannot be removed: %s", path, error.strerror)

    def _free(self) -> int:
        found = os.statvfs(self._tmp)
        return found.f_bavail * found.f_frsize

    def _room_for(self, size: int | None) -> None:
        if size is not None and (free := self._free()) < size:
            raise StoreFullError(
                f"{self._dir} has {_human(free)} free, and {_human(size)} are needed",
                hint="Make room, remove a model with `press rm`, or point the setting `store` to a larger disk.",
                needed=size,
                free=free,
                path=str(self._dir),
            )

    @contextmanager
    def _failures(self, size: int | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(error, size) from error

    def _failed(self, error: OSError, size: int | None = None) -> StoreError:
        if error.errno in _FULL:
            free = self._free() if self._tmp.is_dir() else 0
            needed = f"; {_human(size)} are needed" if size is not None else ""
            return StoreFullError(
                f"{self._dir} is full ({_human(free)} free{needed}): {error.strerror}",
                hint="Make room, remove a model with `press rm`, or point the setting `store` to a larger disk.",
                needed=size,
                free=free,
                path=str(self._dir),
            )
        return StoreError(
            f"the store {self._dir} failed: {error.strerror or error}",
            hint="Check that the directory is there and may be read and written by this user, or change the setting "
            "`store`.",
            path=str(error.filename or self._dir),
        )


def _sync(fd: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone leaves the bytes in the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _gone(digest: str) -> NotFoundError:
    return NotFoundError(
        f"the store does not hold {digest}", hint="Pull the model that it belongs to again.", asked=digest
    )


def _human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
