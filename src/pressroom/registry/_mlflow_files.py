"""Files of MLflow in the store, found by their paths."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import sqlalchemy as sa

from pressroom.kernel import NotFoundError, StoreError
from pressroom.registry import _mlflow_tables as tables
from pressroom.registry._mlflow_place import VERSIONS, Place, checked_path
from pressroom.registry.base import FileEntry, Version
from pressroom.store import Blob

# The lock that `Registry` holds while rows and bytes are brought together.
_BLOBS_LOCK = "registry-blobs"
_TRIES = 3
_CHUNK = 4 << 20

Put = Callable[[], Blob]


class Files:
    """The files below a place: artifacts, which come and go, or the files of a version, which stay as they are."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._store = place.registry.store
        self._database = place.workspace.database

    def list(self, folder: str = "") -> Sequence[FileEntry]:
        """Every file below a folder, its path relative to the place."""
        whole = _joined(self._place.path, checked_path(folder))
        found: Sequence[FileEntry]
        if _is_version(whole):
            found = self._of_version(whole)
        else:
            query = sa.select(tables.artifacts).where(tables.below(whole)).order_by(tables.artifacts.c.path)
            with self._database.reading() as connection:
                found = [FileEntry(path=r.path, blob=r.blob, size=r.size) for r in connection.execute(query)]
        skipped = len(self._place.path) + 1 if self._place.path else 0
        return [FileEntry(path=each.path[skipped:], blob=each.blob, size=each.size) for each in found]

    def find(self, path: str) -> FileEntry | None:
        """The file at this path, relative to the place."""
        whole = _joined(self._place.path, checked_path(path))
        if _is_version(whole):
            folder = whole.rpartition("/")[0]
            return next((each for each in self._of_version(folder) if each.path == whole), None)
        query = sa.select(tables.artifacts).where(tables.artifacts.c.path == whole)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return FileEntry(path=row.path, blob=row.blob, size=row.size) if row is not None else None

    def open(self, path: str) -> BinaryIO:
        """Raises NotFoundError."""
        found = self.find(path)
        if found is None:
            raise NotFoundError(f"there is no artifact {path!r} in {self._place.uri(self._place.path)}", asked=path)
        return self._store.open(found.blob)

    def copy(self, path: str, target: Path) -> None:
        """Write a file to `target`, which has it whole or not at all. Raises NotFoundError."""
        part = target.with_name(target.name + ".part")
        try:
            with self.open(path) as source, part.open("wb") as file:
                while chunk := source.read(_CHUNK):
                    file.write(chunk)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def put(self, puts: Mapping[str, Put]) -> Sequence[FileEntry]:
        """Keep files, all of them under their paths or none of them.

        `puts` has for each path what keeps the bytes and says under which digest; it may be called again.

        Raises:
            StoreError: the bytes cannot be kept.
        """
        wholes = {path: _joined(self._place.path, checked_path(path)) for path in puts}
        if any(_is_version(whole) or not whole for whole in wholes.values()):
            raise StoreError(
                "the files of a version do not change", hint="Log them to a run, and register that.", asked=[*puts]
            )
        kept = {path: self._leased(put) for path, put in puts.items()}
        for _ in range(_TRIES):
            if self._written({wholes[path]: blob for path, blob in kept.items()}):
                return [FileEntry(path=path, blob=blob.digest, size=blob.size) for path, blob in kept.items()]
            for path, blob in kept.items():
                if self._store.size(blob.digest) != blob.size:
                    kept[path] = self._leased(puts[path])
        raise StoreError("bytes that were just put are gone again", hint="Does another program delete in the store?")

    def delete(self, path: str = "") -> int:
        """Let go of a file or a folder; returns how many bytes nothing else refers to."""
        whole = _joined(self._place.path, checked_path(path))
        if _is_version(whole):
            raise StoreError("the files of a version do not change", hint="Remove the version: press rm.", asked=whole)
        meant = tables.below(whole) | (tables.artifacts.c.path == whole)
        with self._database.begin() as connection:
            blobs = set(connection.scalars(sa.select(tables.artifacts.c.blob).where(meant)))
            connection.execute(tables.artifacts.delete().where(meant))
        return self._place.registry.collect(blobs) if blobs else 0

    def _leased(self, put: Put) -> Blob:
        """Put, and kept from collection until there is a row for it."""
        for _ in range(_TRIES):
            blob = put()
            self._place.registry.lease([blob.digest])
            if self._store.size(blob.digest) == blob.size:  # collected between the two lines above
                return blob
        raise StoreError("bytes that were just put are gone again", hint="Does another program delete in the store?")

    def _written(self, blobs: Mapping[str, Blob]) -> bool:
        """Whether all are held, and have their rows now. Files take the place of folders only when these are empty."""
        with self._place.workspace.lock(_BLOBS_LOCK, purpose="keep artifacts", wait_s=None):
            if any(self._store.size(blob.digest) != blob.size for blob in blobs.values()):
                return False
            with self._database.begin() as connection:
                for path in blobs:
                    self._check_kind(connection, path)
                rows = ((path, blob.digest, blob.size) for path, blob in blobs.items())
                tables.put(connection, rows, at=time.time())
        return True

    def _check_kind(self, connection: sa.Connection, path: str) -> None:
        """A name is a file or a folder, not both: no disk could hold that when it is downloaded."""
        above = [path[:at] for at, letter in enumerate(path) if letter == "/"]
        in_the_way = connection.scalar(
            sa.select(tables.artifacts.c.path).where(tables.below(path) | tables.artifacts.c.path.in_(above)).limit(1)
        )
        if in_the_way is not None:
            raise StoreError(
                f"{path!r} cannot be kept: {in_the_way!r} is there, and a name is a file or a folder",
                hint="Use another name, or delete what is there first.",
            )

    def _of_version(self, whole: str) -> Sequence[FileEntry]:
        _, digest, *rest = whole.split("/", 2)
        version = next((v for v in self._place.registry.list() if v.digest == digest), None)
        if version is None:
            raise NotFoundError(f"no version has the digest {digest}", hint="`press list` shows what is registered.")
        folder = rest[0] + "/" if rest else ""
        base = f"{VERSIONS}/{digest}"
        return [
            FileEntry(path=f"{base}/{entry.path}", blob=entry.blob, size=entry.size)
            for entry in sorted(version.files, key=lambda entry: entry.path)
            if entry.path.startswith(folder)
        ]


def version_path(version: Version) -> str:
    """Where the files of a version are, as a path of artifacts."""
    return f"{VERSIONS}/{version.digest}"


def _joined(place: str, path: str) -> str:
    return f"{place}/{path}" if place and path else place or path


def _is_version(whole: str) -> bool:
    return whole.startswith(f"{VERSIONS}/sha256-")
