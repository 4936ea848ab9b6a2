"""An archive that somebody brought: how long it must be, and every byte of it against what its header says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from pressroom.kernel import NotFoundError, Progress, Workspace
from pressroom.registry._archive import LENGTH, MAGIC, MOST_HEADER, TRAILER, parse_header
from pressroom.registry.base import ArchiveError, Version
from pressroom.store import Blob, inspect, sniff

CHUNK = 4 << 20
# What of a file is looked at to tell what it is: more than the longest header that is read.
_LOOKED_AT = 128 << 20
_MOST_THREADS = 4
# "PRESSROOM-ARCHIVE ", behind which stands the format.
_UP_TO_FORMAT = 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A file of versions: `size` in bytes, `digest` the BLAKE3 over it as hex, as its last 32 bytes say."""

    path: Path
    size: int
    digest: str
    versions: tuple[Version, ...]
    blobs: tuple[Blob, ...]


def new_hasher() -> blake3:
    return blake3(max_threads=min(_MOST_THREADS, os.cpu_count() or 1))


def opened(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}", hint="`press export` writes one.", asked=str(path)) from error
    except OSError as error:
        hint = "Name a file that `press export` wrote."
        raise ArchiveError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    if not file.seekable():
        file.close()
        raise ArchiveError(f"{path} is not a regular file", hint="Copy it to the disk first: it is read twice.")
    return file


def headed(path: Path, file: BinaryIO) -> Archive:
    """What the header says, once it is known that the file is as long as it must be."""
    actual = os.fstat(file.fileno()).st_size
    begins = file.read(len(MAGIC) + LENGTH.size)
    if len(begins) < len(MAGIC) + LENGTH.size or not begins.startswith(MAGIC):
        raise _no_archive(path, begins)
    length = LENGTH.unpack_from(begins, len(MAGIC))[0]
    if length > MOST_HEADER or len(begins) + length + TRAILER > actual:
        raise _cut(path, actual, f"its header alone takes {length}")
    versions, blobs = parse_header(file.read(length))
    size = len(begins) + length + sum(blob.size for blob in blobs) + TRAILER
    if size != actual:
        raise _cut(path, actual, f"it must have {size}")
    file.seek(-TRAILER, os.SEEK_END)
    said = file.read(TRAILER).hex()
    return Archive(path=path, size=size, digest=said, versions=tuple(versions), blobs=tuple(blobs))


def verified(workspace: Workspace, archive: Archive, file: BinaryIO) -> None:
    file.seek(0)
    task, done = f"verifying {archive.path.name}", 0
    whole = new_hasher()
    for chunk in exactly(file, archive.size - TRAILER - sum(b.size for b in archive.blobs), archive.path):
        whole.update(chunk)
    names = {entry.blob: entry.path for version in archive.versions for entry in version.files}
    for blob in archive.blobs:
        start, hasher = file.tell(), new_hasher()
        for chunk in exactly(file, blob.size, archive.path):
            hasher.update(chunk)
            whole.update(chunk)
            done += len(chunk)
            workspace.events.emit(Progress(task, done, archive.size))
        if f"blake3-{hasher.hexdigest()}" != blob.digest:
            raise ArchiveError(
                f"{names[blob.digest]} in {archive.path} is not what its digest says: it was altered",
                hint="Fetch or write the archive again. Nothing of it was registered.",
                blob=blob.digest,
            )
        _judge(workspace, file, start, blob, names[blob.digest])
    if whole.hexdigest() != archive.digest:
        raise ArchiveError(
            f"{archive.path} is not what its last bytes say: its header or end was altered",
            hint="Fetch or write the archive again. Nothing of it was registered.",
        )
    workspace.events.emit(Progress(task, archive.size, archive.size))


def _judge(workspace: Workspace, file: BinaryIO, start: int, blob: Blob, name: str) -> None:
    """Refuse pickles and weights whose header lies, as a pull does. Leaves the file where the blob ends.

    Looked at is a copy as long as the file, of which only the beginning takes room: of what has its table of contents
    at the end (archives), all of it.
    """
    file.seek(start)
    with tempfile.NamedTemporaryFile(dir=workspace.path("tmp"), prefix="import-") as copy:
        head = file.read(min(blob.size, 4096))
        wanted = blob.size if head.startswith(b"PK") or head[257:262] == b"ustar" else min(blob.size, _LOOKED_AT)
        copy.write(head)
        for chunk in exactly(file, wanted - len(head), Path(name)):
            copy.write(chunk)
        copy.truncate(blob.size)
        copy.flush()
        if sniff(Path(copy.name), name) in ("pickle", "gguf", "safetensors"):
            inspect(Path(copy.name), name=name)
    file.seek(start + blob.size)


def exactly(file: BinaryIO, count: int, path: Path) -> Iterator[bytes]:
    while count:
        chunk = file.read(min(count, CHUNK))
        if not chunk:
            raise ArchiveError(f"{path} became shorter while it was read", hint="Wait until nothing writes to it.")
        count -= len(chunk)
        yield chunk


def _no_archive(path: Path, begins: bytes) -> ArchiveError:
    if begins.startswith(MAGIC[:_UP_TO_FORMAT]):
        return ArchiveError(
            f"{path} is an archive in a format that this Pressroom does not read, or was cut short or altered",
            hint="It was written by a newer Pressroom: upgrade. Otherwise fetch or write the archive again.",
        )
    shown = begins[:12].decode("ascii", errors="replace")
    what = f"it begins with {shown!r}" if shown.isascii() and shown.isprintable() else "it begins with other bytes"
    return ArchiveError(
        f"{path} is not an archive of Pressroom: {what if begins else 'it is empty'}",
        hint="Name a file that `press export` wrote; models that something else wrote come in with `press pull`.",
    )


def _cut(path: Path, actual: int, said: str) -> ArchiveError:
    return ArchiveError(
        f"{path} has {actual} bytes, and {said}: it was cut short, or something was put behind it",
        hint="Fetch or write the archive again. Nothing of it was registered.",
        path=str(path),
        size=actual,
    )
