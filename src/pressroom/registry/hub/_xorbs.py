"""What a Xet client sends: xorbs, which are chunks of files, and shards, which say what files are made of.

The formats are those of the Xet protocol, version 1. Both are read with every length checked: they come from strangers.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pressroom.registry.hub._lz4 import Lz4Error, decompress_frame
from pressroom.registry.hub._refusals import bad_request

MOST_XORB = 80 << 20  # 64 MiB of chunks, and what is behind them
MOST_SHARD = 80 << 20
_MOST_CHUNK = 128 << 10
_MOST_CHUNKS = 64 << 10
_CHUNK_HEAD = 8
_FOOTER = b"XETBLOB"

_SHARD_TAG = b"HFRepoMetaData\0UigEj{\x81W\x83\xa5\xbd\xd9\\\xcd\xd1J\xa9"
_SHARD_HEAD = 48
_ENTRY = struct.Struct("<4Q4I")
_LAST = (0xFFFFFFFFFFFFFFFF,) * 4
_VERIFICATION = 1 << 31
_METADATA = 1 << 30
_MOST_FILES = 100_000


@dataclass(slots=True)
class Xorb:
    """Where the chunks of a xorb are in its file (`starts`, of their heads), and how long each is unpacked."""

    starts: array[int]
    lengths: array[int]

    @classmethod
    def read(cls, path: Path) -> Xorb:
        """Look at the chunks' heads.

        Raises:
            HubError: 400, it is not a xorb.
        """
        starts, lengths = array("Q"), array("L")
        size = path.stat().st_size
        with path.open("rb") as file:
            place = 0
            while place < size:
                head = os.pread(file.fileno(), _CHUNK_HEAD, place)
                if head[: len(_FOOTER)] == _FOOTER:
                    break
                packed, scheme, unpacked = _chunk_head(head)
                if place + _CHUNK_HEAD + packed > size or scheme > 2 or len(starts) >= _MOST_CHUNKS:
                    raise bad_request("a chunk of the xorb leaves it, or is packed in an unknown way")
                starts.append(place)
                lengths.append(unpacked)
                place += _CHUNK_HEAD + packed
        if not starts:
            raise bad_request("the xorb has no chunk")
        return cls(starts, lengths)


def read_chunk(fd: int, start: int) -> bytes:
    """A chunk, unpacked. Raises HubError (400) where it is damaged."""
    packed, scheme, unpacked = _chunk_head(os.pread(fd, _CHUNK_HEAD, start))
    data = os.pread(fd, packed, start + _CHUNK_HEAD)
    if scheme == 0:
        if len(data) != unpacked:
            raise bad_request("a chunk of the xorb is not as long as it says")
        return data
    try:
        data = decompress_frame(data, unpacked)
    except Lz4Error as error:
        raise bad_request(f"a chunk of the xorb is damaged: {error}") from error
    return _regrouped(data) if scheme == 2 else data


def _chunk_head(head: bytes) -> tuple[int, int, int]:
    """Packed length, the way it is packed, and unpacked length."""
    if len(head) != _CHUNK_HEAD or head[0] != 0:
        raise bad_request("the xorb is cut short, or of an unknown version")
    packed, unpacked = int.from_bytes(head[1:4], "little"), int.from_bytes(head[5:8], "little")
    if not 0 < unpacked <= _MOST_CHUNK or packed > 2 * _MOST_CHUNK:
        raise bad_request(f"a chunk of the xorb is empty, or over {_MOST_CHUNK} bytes")
    return packed, head[4], unpacked


def _regrouped(data: bytes) -> bytes:
    """Bytes that were sorted into four groups by their place, each fourth to each, in their own order again."""
    out = bytearray(len(data))
    start = 0
    for group in range(4):
        count = (len(data) - group + 3) // 4
        out[group::4] = data[start : start + count]
        start += count
    return bytes(out)


@dataclass(frozen=True, slots=True)
class Term:
    """Chunks `start` to `end` (without it) of a xorb, `length` bytes in all."""

    xorb: str
    start: int
    end: int
    length: int


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file that a shard describes: its SHA-256, and the terms it is made of."""

    sha256: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        return sum(term.length for term in self.terms)


def shard_files(data: bytes) -> Iterator[ShardFile]:
    """The files of a shard.

    Raises:
        HubError: 400, it is not a shard, or does not say the SHA-256 of a file.
    """
    if data[: len(_SHARD_TAG)] != _SHARD_TAG or len(data) < _SHARD_HEAD:
        raise bad_request("this is not a shard of the Xet protocol")
    place, count = _SHARD_HEAD, 0
    while True:
        *file_hash, flags, terms, _, _ = _entry(data, place)
        place += _ENTRY.size
        if tuple(file_hash) == _LAST:
            return
        count += 1
        if count > _MOST_FILES:
            raise bad_request(f"the shard has more than {_MOST_FILES:,} files")
        found = []
        for _ in range(terms):
            *xorb, _, length, start, end = _entry(data, place)
            place += _ENTRY.size
            if not start < end:
                raise bad_request("a term of the shard has no chunks")
            found.append(Term(_hex(xorb), start, end, length))
        if flags & _VERIFICATION:
            place += terms * _ENTRY.size
        if not flags & _METADATA:
            raise bad_request("the shard does not say the SHA-256 of a file")
        sha256 = _entry(data, place)[:4]
        place += _ENTRY.size
        yield ShardFile(_hex(sha256), tuple(found))


def _entry(data: bytes, place: int) -> tuple[int, ...]:
    if place + _ENTRY.size > len(data):
        raise bad_request("the shard is cut short")
    return _ENTRY.unpack_from(data, place)


def _hex(words: tuple[int, ...] | list[int]) -> str:
    """A hash as text, in the order of the protocol: each 8 bytes as one number."""
    return "".join(f"{word:016x}" for word in words)
