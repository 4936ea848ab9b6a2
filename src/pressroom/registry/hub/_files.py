"""What a client wants to know of a file: whether it counts as large, its git object id, its SHA-256.

Large files (weights, and what is over 10 MiB) are what the Hub keeps in LFS: their ETag is their SHA-256. The others
are git blobs, and their ETag is the git object id. SHA-256 of a file that nobody hashed yet takes a read of it, once.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import sqlalchemy as sa

from pressroom.kernel import Workspace
from pressroom.registry import _tables as tables
from pressroom.registry.base import FileEntry
from pressroom.registry.registry import Registry

#: Larger files are never sent within a commit.
MOST_REGULAR = 10 << 20
_WEIGHTS = frozenset(
    (".arrow", ".gguf", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".parquet", ".safetensors", ".tflite")
)
_REMEMBERED = 16_384
# What may be hashed while others wait for a thread.
_QUICK = 64 << 20
_CHUNK = 1 << 20


def is_large(path: str, size: int) -> bool:
    """Whether a file of this name and size counts as large. An empty one never does."""
    return size > MOST_REGULAR or (size > 0 and PurePosixPath(path).suffix.lower() in _WEIGHTS)


@dataclass(frozen=True, slots=True)
class Facts:
    """`oid` is the git object id: of the file, or of the LFS pointer to a large one, whose SHA-256 is `sha256`."""

    entry: FileEntry
    oid: str
    sha256: str | None = None
    pointer_size: int = 0

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


class Files:
    """Finds the facts of files. Thread-safe; remembers what it read."""

    def __init__(self, workspace: Workspace, registry: Registry) -> None:
        self._database = workspace.database
        self._registry = registry
        self._lock = threading.Lock()
        self._oids: OrderedDict[str, str] = OrderedDict()
        self._hashing: dict[str, threading.Lock] = {}

    def quick(self, entries: Iterable[FileEntry]) -> bool:
        """Whether the facts of these need little reading."""
        large = [entry for entry in entries if is_large(entry.path, entry.size)]
        known = self._known(entry.blob for entry in large)
        return sum(entry.size for entry in large if entry.blob not in known) <= _QUICK

    def facts(self, entries: Iterable[FileEntry]) -> list[Facts]:
        """The facts, in the order of the entries. Raises NotFoundError where bytes are gone."""
        listed = list(entries)
        known = self._known(entry.blob for entry in listed if is_large(entry.path, entry.size))
        found = []
        for entry in listed:
            if is_large(entry.path, entry.size):
                sha256 = known.get(entry.blob) or self.sha256(entry.blob)
                pointer = _pointer(sha256, entry.size)
                found.append(Facts(entry, git_oid(pointer), sha256, len(pointer)))
            else:
                found.append(Facts(entry, self._oid(entry)))
        return found

    def sha256(self, blob: str) -> str:
        """As the registry's, but two who ask at once read it once."""
        with self._lock:
            mine = self._hashing.setdefault(blob, threading.Lock())
        try:
            with mine:
                return self._registry.sha256(blob)
        finally:
            with self._lock:
                self._hashing.pop(blob, None)

    def _known(self, blobs: Iterable[str]) -> dict[str, str]:
        wanted = sorted(set(blobs))
        found: dict[str, str] = {}
        with self._database.reading() as connection:
            for start in range(0, len(wanted), 500):  # SQLite takes a bounded number of parameters
                some = tables.hashes.c.blob.in_(wanted[start : start + 500])
                found.update((row.blob, row.sha256) for row in connection.execute(sa.select(tables.hashes).where(some)))
        return found

    def _oid(self, entry: FileEntry) -> str:
        with self._lock:
            known = self._oids.get(entry.blob)
        if known is not None:
            return known
        hasher = hashlib.sha1(b"blob %d\0" % entry.size, usedforsecurity=False)
        with self._registry.store.open(entry.blob) as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
        with self._lock:
            self._oids[entry.blob] = hasher.hexdigest()
            if len(self._oids) > _REMEMBERED:
                self._oids.popitem(last=False)
        return hasher.hexdigest()


def git_oid(content: bytes) -> str:
    """The object id that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    """What git keeps of a file in LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
