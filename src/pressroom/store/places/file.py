"""The place in a directory: `file://path`, relative to the workspace, or absolute.

    NAME                  each piece under its own name, read-only
    tmp/                  what is being written; each file is locked by its writer

A piece gets its name at once and whole, after it was synced. Whoever is killed leaves only a file in `tmp/`, whose lock
the kernel lets go; the next one to open the place removes it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pressroom.kernel.disk import sync, sync_directory
from pressroom.kernel.errors import NotFoundError, SettingsError, StoreError, StoreFullError
from pressroom.store._room import FULL, free_bytes
from pressroom.store._temporary import sweep, temporary
from pressroom.store.places.base import Place, Writer, checked_name

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TMP = "tmp"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


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
        sweep(self._tmp)

    @contextmanager
    def write(self, *, size: int | None = None) -> Iterator[Writer]:
        with self._failures(size):
            make_directory(self._tmp)
            self._room_for(size)
            fd, path = temporary(self._tmp)
        try:
            yield _Writer(self, fd, path, size)
        finally:
            # Before the lock is let go: another process must not find it and take it for a dead writer's.
            path.unlink(missing_ok=True)
            os.close(fd)

    def read(self, name: str, offset: int, length: int) -> bytes:
        with self._failures(), self._opened(name) as fd:
            found = os.pread(fd, length, offset)
            while len(found) < length:  # also where the system gives less than is asked for: 2 GiB at a time
                more = os.pread(fd, length - len(found), offset + len(found))
                if not more:
                    raise _ends(name, fd, offset, length)
                found += more
        return found

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        with self._failures(), self._opened(name) as fd:
            done = 0
            while done < len(out):
                count = os.preadv(fd, [out[done:]], offset + done)
                if not count:
                    raise _ends(name, fd, offset, len(out))
                done += count

    def local(self, name: str) -> Path | None:
        if self.size(name) is None:
            raise _gone(name)
        return self._place(name)

    def size(self, name: str) -> int | None:
        with self._failures():
            try:
                found = self._place(name).stat()
            except _ABSENT:
                return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        if prefix:
            checked_name(prefix.removesuffix("/"))
        top = self.directory / prefix.rpartition("/")[0]
        with self._failures():
            # A folder that cannot be read is an error: taken for empty, it would be a store without its pieces.
            for folder, folders, names in os.walk(top, onerror=_raise):
                at = Path(folder)
                if at == self.directory and _TMP in folders:
                    folders.remove(_TMP)
                for name in names:
                    whole = (at / name).relative_to(self.directory).as_posix()
                    if not whole.startswith(prefix) or not _is_name(whole):
                        continue  # the system's own files are no pieces
                    if (size := self.size(whole)) is not None:  # None: deleted meanwhile
                        yield whole, size

    def delete(self, name: str) -> bool:
        place = self._place(name)
        with self._failures():
            try:
                place.unlink()
            except _ABSENT:
                return False
            sync_directory(place.parent)
        return True

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _place(self, name: str) -> Path:
        if checked_name(name).partition("/")[0] == _TMP:
            raise StoreError(
                f"{name!r} cannot name a piece of the store",
                hint=f"{_TMP}/ is where a directory keeps what is being written.",
                asked=name,
            )
        return self.directory / name

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        try:
            fd = os.open(self._place(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except _ABSENT as error:
            raise _gone(name) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _gone(name)
            yield fd
        finally:
            os.close(fd)

    def _room_for(self, size: int | None) -> None:
        if size is not None and (free := free_bytes(self._tmp)) < size:
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
        if error.errno in FULL:
            free = free_bytes(self._tmp)
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
            self._name(target)
            # Also where another one gave the name: that one may not have come to this line yet.
            for directory in (target.parent, *target.parent.parents):
                sync_directory(directory)
                if directory == self._place.directory:
                    break

    def _name(self, target: Path) -> None:
        """Give the file its name, unless something has it already: that stays as it is."""
        try:
            os.link(self._path, target)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without hard links. Two who come here at once do no harm: a name means the same bytes, and
            # one replaces the other.
            if not target.exists():
                self._path.rename(target)


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing, all of them durable."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def _is_name(text: str) -> bool:
    try:
        checked_name(text)
    except StoreError:
        return False
    return True


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _ends(name: str, fd: int, offset: int, length: int) -> StoreError:
    return StoreError(
        f"{name} has {os.fstat(fd).st_size} bytes, and {length} from {offset} on are asked for",
        hint="The store was altered. `press verify` names what is affected.",
        name=name,
    )


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
