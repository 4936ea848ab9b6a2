"""The files of a journal: one folder a worker, one file a segment, each with all its bytes before the first is used."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import orjson

from pressroom.gateway.ledger._frames import COLUMNS, frame

FOLDER = "ledger"
_SUFFIX = ".journal"
_IDENTITY = "id"
_ZEROS = 1 << 20

#: Gives an open file this many bytes on the disk. Raises OSError.
Allocate = Callable[[int, int], None]


def allocate(fd: int, size: int) -> None:
    """Take room for the whole file now: a full disk is an error here, and not a SIGBUS when a page is written to."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    for offset in range(0, size, _ZEROS):  # macOS
        os.pwrite(fd, bytes(min(_ZEROS, size - offset)), offset)


class Segment:
    """One file, mapped for its writer."""

    __slots__ = ("fd", "map", "number", "path", "size")

    def __init__(self, folder: Path, number: int, size: int, columns: bytes, allocate: Allocate) -> None:
        """Make it. Raises OSError; then there is no file."""
        self.number = number
        self.size = size
        self.path = path_of(folder, number)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            allocate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
            self.map[: len(columns)] = columns
        except BaseException:
            os.close(self.fd)
            self.path.unlink()
            raise

    def is_in_place(self) -> bool:
        """Whether the file still has its name: whoever removes or moves it leaves its writer one that nobody finds."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.fd))  # noqa: PTH116  # as quick as can be
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # nobody knows

    def put_back(self, length: int) -> None:
        """Write the first bytes of it to a file of its name, which is there whole or not at all. Raises OSError."""
        partial = self.path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                file.write(self.map[:length])
                file.flush()
                os.fsync(file.fileno())
            partial.chmod(0o600)
            partial.replace(self.path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


def columns_record(columns: tuple[str, ...]) -> bytes:
    """What a segment begins with: the names of what its rows hold, so that a later version can read them."""
    return frame(COLUMNS, orjson.dumps(list(columns)))


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:010d}{_SUFFIX}"


def numbers(folder: Path) -> list[int]:
    """The segments in a folder, oldest first."""
    try:
        names = os.listdir(folder)  # noqa: PTH208  # names, and many: no Path for each
    except FileNotFoundError:
        return []
    return sorted(int(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX) and name[:-8].isdecimal())


def workers(root: Path) -> list[int]:
    """The workers that have a journal below `.pressroom/ledger`."""
    names = [path.name.partition("-") for path in root.glob("worker-*") if path.is_dir()]
    return sorted(int(number) for _, _, number in names if number.isdecimal())


def folder_of(root: Path, worker: int) -> Path:
    return root / f"worker-{worker}"


def identity_of(folder: Path) -> str | None:
    """By what the database knows the journal in this folder; None where it has none yet."""
    with suppress(FileNotFoundError):
        return (folder / _IDENTITY).read_text(encoding="ascii").strip() or None
    return None


def made_identity(folder: Path, made: str = "") -> str:
    """As `identity_of`; where there is none, it is `made` or a new one from now on. For whoever holds the journal's
    lock. Raises OSError."""
    found = identity_of(folder)
    if found is not None:
        return found
    made = made or secrets.token_hex(16)
    partial = folder / f"{_IDENTITY}.partial"
    partial.write_text(made, encoding="ascii")
    partial.replace(folder / _IDENTITY)
    return made
