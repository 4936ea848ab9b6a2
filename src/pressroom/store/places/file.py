"""The place in a directory: `file://path`, relative to the workspace, or absolute.

    NAME                  each piece under its own name, read-only
    tmp/                  what is being written; each file is locked by its writer

A piece gets its name by a rename, after it was synced. Whoever is killed leaves only a file in `tmp/`, whose lock the
kernel lets go; the next one to open the place removes it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pressroom.kernel.errors import NotFoundError, SettingsError, StoreError, StoreFullError
from pressroom.store.places.base import Place, Writer, checked_name

_log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TMP = "tmp"


class Backend(Place):
    def __init__(self, url: str, *, root: Path) -> None:
        scheme, _, rest = url.partition("://")
        if scheme != "file" or not rest or "\0" in rest:
            raise SettingsError(
                f"store = {url!r} does not name a directory",
                hint="Write it as file://relative/path or file:///absolute/path.",
                asked=url,
            )
        self.directory = root / rest
        self._tmp = self.directory / _TMP
        if self.directory.exists() and not self.directory.is_dir():
            raise StoreError(
                f"the store {self.directory} is not a directory",
                hint=f"Move it away, or change the setting store = {url!r}.",
                path=str(self.directory),
            )
        self._sweep()

    @contextmanager
    def write(self, *, size: int | None = None) -> Iterator[Writer]:
        with self._failures(size):
            self._tmp.mkdir(parents=True, exist_ok=True)
            self._room_for(size)
            fd, path = self._temporary()
        try:
            yield _Writer(self, fd, path, size)
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    def read(self, name: str, offset: int, length: int) -> bytes:
        out = bytearray(length)
        self.read_into(name, offset, memoryview(out))
        return bytes(out)

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        with self._failures():
            try:
                fd = os.open(self._place(name), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise _gone(name) from error
            try:
                done = 0
                while done < len(out):
                    count = os.preadv(fd, [out[done:]], offset + done)
                    if not count:
                        raise StoreError(
                            f"{name} has {offset + done} bytes, and {len(out)} from {offset} on are asked for",
                            hint="The store was altered. `press verify` names what is affected.",
                            name=name,
                        )
                    done += count
            finally:
                os.close(fd)

    def local(self, name: str) -> Path | None:
        if self.size(name) is None:
            raise _gone(name)
        return self._place(name)

    def size(self, name: str) -> int | None:
        with self._failures():
            try:
                found = self._place(name).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        top = self.directory / prefix.rpartition("/")[0]
        with self._failures():
            for folder, _, names in os.walk(top):
                at = Path(folder)
                if at == self._tmp:
                    continue
                for name in names:
                    whole = (at / name).relative_to(self.directory).as_posix()
                    # None: deleted meanwhile.
                    if whole.startswith(prefix) and (size := self.size(whole)) is not None:
                        yield whole, size

    def delete(self, name: str) -> bool:
        place = self._place(name)
        with self._failures():
            try:
                place.unlink()
            except FileNotFoundError:
                return False
            sync_directory(place.parent)
        return True

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _place(self, name: str) -> Path:
        return self.directory / checked_name(name)

    def _temporary(self) -> tuple[int, Path]:
        while True:
            path = self._tmp / f"{uuid.uuid4().hex}.part"
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
                f"{self.directory} has {_human(free)} free, and {_human(size)} are needed",
                hint="Make room, remove a model with `press rm`, or point the setting `store` to a larger disk.",
                needed=size,
                free=free,
                path=str(self.directory),
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
                f"{self.directory} is full ({_human(free)} free{needed}): {error.strerror}",
                hint="Make room, remove a model with `press rm`, or point the setting `store` to a larger disk.",
                needed=size,
                free=free,
                path=str(self.directory),
            )
        return StoreError(
            f"the store {self.directory} failed: {error.strerror or error}",
            hint="Check that the directory is there and may be read and written by this user, or change the setting "
            "`store`.",
            path=str(error.filename or self.directory),
        )


class _Writer:
    def __init__(self, place: Backend, fd: int, path: Path, size: int | None) -> None:
        self._place = place
        self._fd = fd
        self._path = path
        self._size = size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        with self._place._failures(self._size):
            while view:
                view = view[os.write(self._fd, view) :]

    def commit(self, name: str) -> None:
        target = self._place._place(name)
        with self._place._failures(self._size):
            os.fchmod(self._fd, 0o444)
            sync(self._fd)
            target.parent.mkdir(parents=True, exist_ok=True)
            # Two who do this at once with equal bytes do no harm: one replaces the other.
            self._path.rename(target)
            for directory in (target.parent, *target.parent.parents):
                sync_directory(directory)
                if directory == self._place.directory:
                    break


def sync(fd: int) -> None:
    """Hand the file's bytes to the disk itself."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone leaves the bytes in the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _gone(name: str) -> NotFoundError:
    return NotFoundError(
        f"the store does not hold {name.rpartition('/')[2]}",
        hint="Pull the model that it belongs to again.",
        asked=name,
    )


def _human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
