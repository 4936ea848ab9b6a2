"""Zip and tar files, read without trusting a name in them.

Nothing is written to a path made from a member's name: members are streamed to numbered files in the working directory.
An archive with one bad member is refused whole, because whoever made that member made the others too.
"""

from __future__ import annotations

import base64
import bz2
import csv
import gzip
import hashlib
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from pressroom.kernel import Events, Progress, SourceError
from pressroom.registry.base import is_inner_path
from pressroom.registry.sources._bounded import Bounded
from pressroom.registry.sources._naming import shown
from pressroom.registry.sources._space import room_for, written
from pressroom.registry.sources.base import Found

_CHUNK = 1 << 20
# More members than any model has; a directory of millions is there to keep a reader busy.
_MOST_MEMBERS = 100_000
# The table of contents of a zip, which is read in one piece: a hundred thousand members take as much.
_MOST_DIRECTORY = 16 << 20
# All headers of a tar; one of them (Linux takes 64 kB of extended attributes of a file); and the fields that one says
# for all members, because each member gets a copy of them.
_MOST_HEADERS = 64 << 20
_MOST_HEADER = 128 << 10
_MOST_FIELDS = 100
# Weights shrink to a half at best. What grows to more than this, and to more than 1 GiB, is made to fill a disk.
_MOST_GROWTH = 200
_NO_BOMB = 1 << 30
_COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_RECORD = re.compile(r"[^/]+\.dist-info/RECORD")
_MOST_RECORD = 50_000_000

#: What the libraries raise when the bytes are not what they should be. RuntimeError: a zip member that is encrypted.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    RuntimeError,
)


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file in an archive: its name, its declared size in bytes, and how to read it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


class Archive:
    """A checked archive; use it with `with`.

    Raises SourceError on entering when it is not a readable zip or tar, or a member of it is not a plain file that
    stays inside.
    """

    def __init__(self, path: Path, *, name: str) -> None:
        self._path = path
        self._name = name
        self._held = ExitStack()
        self._bounds: Bounded
        self.members: dict[str, Member] = {}

    def __enter__(self) -> Archive:
        try:
            most = max(_NO_BOMB, _MOST_GROWTH * self._path.stat().st_size)
            total = 0
            # Its beginning decides, as it does where pickles are looked for: a tar may end with a zip.
            for member in self._zip() if _head(self._path).startswith(b"PK") else self._tar():
                total += member.size
                if member.name in self.members:
                    raise self._bad(member.name, "is there twice")
                if len(self.members) >= _MOST_MEMBERS:
                    raise self._bad(member.name, f"is one of more than {_MOST_MEMBERS}")
                if total > most:
                    raise self._bad(member.name, f"makes it grow to more than {_MOST_GROWTH} times its size")
                self.members[member.name] = member
            self._bounds.free()
        except DAMAGE as error:
            self._held.close()
            raise SourceError(
                f"{self._name} cannot be read as an archive: {error}", hint="It may be cut or altered: fetch it again."
            ) from error
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def extract(
        self, names: dict[str, str], workdir: Path, events: Events, *, recorded: bool = False
    ) -> tuple[Found, ...]:
        """Stream members (name → path in the version) to numbered files in `workdir`, checked against their declared
        sizes and, in a wheel, against the hashes of its RECORD. With `recorded` there must be one.

        Raises:
            SourceError: a member is longer or shorter than declared, damaged, or not the one that RECORD names.
            StoreFullError: no room.
        """
        declared = self._record()
        if recorded and declared is None:
            raise SourceError(
                f"{self._name} has no RECORD that its files could be held against",
                hint="Its publisher should build it anew; a wheel has one.",
            )
        total = sum(self.members[name].size for name in names)
        room_for(workdir, total, what=self._name)
        found = []
        done = 0
        for number, (name, path) in enumerate(names.items()):
            local = workdir / f"member-{number}"
            digest = hashlib.sha256()
            with written(local) as out:
                for chunk in self._chunks(self.members[name]):
                    out.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    events.emit(Progress(f"unpacking {PurePosixPath(name).name}", done, total))
            if declared is not None and declared.get(name) != digest.hexdigest():
                local.unlink()
                raise SourceError(
                    f"{name} in {self._name} is not what its RECORD says: SHA-256 {digest.hexdigest()}, declared "
                    f"{declared.get(name, 'none')}",
                    hint="It was altered or cut: fetch it again, and do not use this copy.",
                )
            found.append(Found(path=path, local=local))
        return tuple(found)

    def _chunks(self, member: Member) -> Iterator[bytes]:
        """The bytes of a member, as many as it declares."""
        count = 0
        try:
            with member.open() as stream:
                while chunk := stream.read(_CHUNK):
                    count += len(chunk)
                    if count > member.size:
                        break
                    yield chunk
        except DAMAGE as error:
            raise self._bad(member.name, f"is damaged: {error}") from error
        if count != member.size:
            raise self._bad(
                member.name, f"declares {member.size} bytes and has {'more' if count > member.size else count}"
            )

    def _zip(self) -> Iterator[Member]:
        file = self._held.enter_context(self._path.open("rb"))
        self._bounds = Bounded(file, 2 * _MOST_DIRECTORY, at_once=_MOST_DIRECTORY)
        archive = self._held.enter_context(zipfile.ZipFile(cast("IO[bytes]", self._bounds)))
        for info in archive.infolist():
            name = self._inside(info.orig_filename)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise self._bad(name, "is a link or a device")
            if info.is_dir():
                continue
            if info.flag_bits & 0x1:
                raise self._bad(name, "is encrypted")

            def open_member(info: zipfile.ZipInfo = info) -> IO[bytes]:
                return archive.open(info)

            yield Member(name, info.file_size, open_member)

    def _tar(self) -> Iterator[Member]:
        file = self._held.enter_context(_decompressed(self._path))
        self._bounds = Bounded(file, _MOST_HEADERS, at_once=_MOST_HEADER)
        archive = self._held.enter_context(tarfile.TarFile(fileobj=cast("IO[bytes]", self._bounds)))
        for info in archive:
            if len(archive.pax_headers) > _MOST_FIELDS:
                raise self._bad(info.name, "is given more fields than any file has")
            if info.isdir() and info.name == ".":
                continue
            name = self._inside(info.name)
            if info.isdir():
                continue
            if not info.isreg():
                raise self._bad(name, "is a link or a device")

            def open_member(info: tarfile.TarInfo = info) -> IO[bytes]:
                stream = archive.extractfile(info)
                assert stream is not None, "a regular file"
                return stream

            yield Member(name, info.size, open_member)

    def _inside(self, name: str) -> str:
        """The name in the one plain way of writing it: `./a//b` and `a/b` are the same file."""
        plain = str(PurePosixPath(name))
        if not name or not is_inner_path(plain):
            raise self._bad(name, "would be written outside of it")
        return plain

    def _record(self) -> dict[str, str] | None:
        """The SHA-256 hex digests that a wheel's RECORD declares; None where this is no wheel."""
        records = [name for name in self.members if _RECORD.fullmatch(name)]
        if len(records) != 1 or self.members[records[0]].size > _MOST_RECORD:
            return None
        text = b"".join(self._chunks(self.members[records[0]])).decode("utf-8", errors="replace")
        declared = {}
        try:
            for row in csv.reader(io.StringIO(text)):
                if len(row) >= 2 and row[1].startswith("sha256="):
                    encoded = row[1].removeprefix("sha256=")
                    declared[row[0]] = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
        except (csv.Error, ValueError) as error:
            raise self._bad(records[0], f"is no list of hashes: {error}") from error
        return declared

    def _bad(self, member: str, why: str) -> SourceError:
        return SourceError(
            f"{self._name} is refused: its member '{shown(member)}' {why}",
            hint="An honest archive has plain files that stay inside it. Do not use this one.",
            member=shown(member),
        )


def is_compressed_tar(path: Path) -> bool:
    """Whether what is compressed in a file is a tar, by its first header.

    Raises one of `DAMAGE` where that cannot be read.
    """
    with _decompressed(path) as file:
        head = file.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _decompressed(path: Path) -> IO[bytes]:
    head = _head(path)
    for magic, opener in _COMPRESSED.items():
        if head.startswith(magic):
            return cast("IO[bytes]", opener(path))
    return path.open("rb")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)
