"""Looking into archives and compressed files far enough to know whether a pickle is inside. Nothing is unpacked.

Every loop is bounded: a decompressor gives its first bytes, an archive its first members.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from pressroom.store.formats._pickle import is_pickle_name, looks_pickled

HEAD = 4096
_MOST_MEMBERS = 10_000
_MOST_DIRECTORY = 16 << 20
_END_OF_DIRECTORY = b"PK\x05\x06"
_LONGEST_COMMENT = 65_535
_TAR_BLOCK = 512
# A field of a NumPy header that holds Python objects, stored as a pickle: '|O', or 'O8' inside a record.
_OBJECTS = re.compile(rb"""['"][|<>=]?O\d*['"]""")

#: First bytes of the compressions that wrap pickles, by the name we call them.
COMPRESSIONS = {
    "gzip": b"\x1f\x8b",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\x00",
    "lzma": b"\x5d\x00\x00",
    "lz4": b"\x04\x22\x4d\x18",
    "zstd": b"\x28\xb5\x2f\xfd",
}


def numpy_objects(head: bytes) -> bool:
    """Whether the header of a `.npy` file says that it holds objects. `head` begins at the start of the file."""
    wide = head[6:7] > b"\x01"
    length = int.from_bytes(head[8:12] if wide else head[8:10], "little")
    return _OBJECTS.search(head[8 : 12 + length]) is not None


def compression(head: bytes) -> str | None:
    """The compression that a file of these first bytes has, if any."""
    for name, magic in COMPRESSIONS.items():
        if head.startswith(magic):
            return name
    # zlib has no magic number, but its first two bytes are a multiple of 31, and the first says "deflate, 32 kB".
    if len(head) > 2 and head[0] == 0x78 and head[1] in (0x01, 0x5E, 0x9C, 0xDA):
        return "zlib"
    return None


def inflated(kind: str, head: bytes) -> bytes:
    """The first bytes of what is compressed in a file that begins with `head`; empty where they cannot be told."""
    import bz2
    import lzma
    import zlib

    openers: dict[str, Callable[[], bytes]] = {
        "gzip": lambda: zlib.decompressobj(wbits=31).decompress(head, HEAD),
        "zlib": lambda: zlib.decompressobj().decompress(head, HEAD),
        "bzip2": lambda: bz2.BZ2Decompressor().decompress(head, HEAD),
        # The limit on memory is for the decoder's dictionary, whose size the file claims.
        "xz": lambda: lzma.LZMADecompressor(memlimit=256 << 20).decompress(head, HEAD),
        "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=256 << 20).decompress(head, HEAD),
        "lz4": lambda: _first_literals(head),
    }
    try:
        return openers[kind]() if kind in openers else b""
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
        return b""


def _first_literals(head: bytes) -> bytes:
    """The first bytes of an LZ4 frame: its first block begins with bytes that stand as they are."""
    flags = head[4] if len(head) > 4 else 0
    block = 6 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0) + 1
    if len(head) < block + 6:
        return b""
    if head[block + 3] & 0x80:  # this block is not compressed
        return head[block + 4 :]
    token, start = head[block + 4] >> 4, block + 5
    if token == 15:
        while start < len(head):
            start += 1
            token += head[start - 1]
            if head[start - 1] != 255:
                break
    return head[start : start + token]


def zip_holds_pickle(path: Path) -> bool:
    """Whether a zip has a member that is a pickle by name or content (PyTorch: `data.pkl`; NumPy: objects)."""
    import zipfile
    import zlib

    if not _small_directory(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist()[:_MOST_MEMBERS]:
                if is_pickle_name(member.filename):
                    return True
                with archive.open(member) as file:
                    if _pickled(file.read(HEAD)):
                        return True
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        ValueError,  # also a name that is not UTF-8
        RuntimeError,  # encrypted, or a compression this Python lacks (NotImplementedError)
        struct.error,
        OverflowError,
    ):
        return False
    return False


def _small_directory(path: Path) -> bool:
    """Whether the table of contents is one that `zipfile` may hold in memory; it reads it whole."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_COMMENT - 22))
        tail = file.read()
    at = tail.rfind(_END_OF_DIRECTORY)
    if at < 0 or len(tail) < at + 22:
        return False
    # With 64-bit sizes this field is all ones, and the table is long, as a rule: such a zip is not looked into.
    length: int = struct.unpack_from("<I", tail, at + 12)[0]
    return length <= _MOST_DIRECTORY


def is_tar(head: bytes) -> bool:
    """Whether these first bytes are a tar header: its checksum is right."""
    if len(head) < _TAR_BLOCK or not head[0]:
        return False
    claimed = _octal(head[148:156])
    return claimed is not None and claimed == sum(head[:148]) + 8 * 32 + sum(head[156:_TAR_BLOCK])


def tar_holds_pickle(path: Path) -> bool:
    """Whether a tar has a member that is a pickle by name or content (PyTorch before 0.1.10: `pickle`)."""
    return any(_pickle_member(name) or _pickled(head) for name, head in _members(path))


def tar_begins_with_pickle(head: bytes) -> bool:
    """The same of the first member alone, where no more than the first bytes of the tar are at hand."""
    return is_tar(head) and (_pickle_member(_member_name(head)) or _pickled(head[_TAR_BLOCK:]))


def _pickle_member(name: str) -> bool:
    return name.rpartition("/")[2] == "pickle" or is_pickle_name(name)


def _member_name(header: bytes) -> str:
    return header[:100].split(b"\0")[0].decode("utf-8", errors="replace")


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        for _ in range(_MOST_MEMBERS):
            header = file.read(_TAR_BLOCK)
            length = _octal(header[124:136]) if is_tar(header) else None
            if length is None:
                return
            start = file.tell()
            yield _member_name(header), file.read(min(length, HEAD))
            file.seek(start + -(-length // _TAR_BLOCK) * _TAR_BLOCK)


def _octal(field: bytes) -> int | None:
    text = field.strip(b" \0")
    return int(text, 8) if re.fullmatch(rb"[0-7]+", text) else None


def _pickled(head: bytes) -> bool:
    return looks_pickled(head) or (head.startswith(b"\x93NUMPY") and numpy_objects(head))
