"""Versions in the database and their bytes in the store."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pressroom.kernel import InUseError, NotFoundError, Ref, RefError, StoreError, Workspace, did_you_mean, is_name
from pressroom.registry import _tables as tables
from pressroom.registry.base import KINDS, Figure, FileEntry, Version, is_inner_path, manifest_digest
from pressroom.store import Store, open_store

# Held while rows and bytes are brought together or taken apart, so that no byte goes between the look and the row.
_BLOBS_LOCK = "registry-blobs"


class Registry:
    """The versions of one workspace. Thread-safe; several processes may use it at once.

    `holders` are asked before a version is removed; one that returns a sentence keeps it. Upper layers add theirs.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._database = workspace.database
        self._database.migrate("registry", tables.MIGRATIONS)
        self.store: Store = open_store(workspace)
        self.holders: list[Callable[[Version], str | None]] = [self._parent_of]

    def register(
        self,
        name: str,
        files: Sequence[FileEntry],
        *,
        kind: str = "base",
        parent: str | None = None,
        source: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> Version:
        """Make these files the newest version of `name`; equal files under that name are the version they were before.

        Raises:
            RefError: the name is not one.
            StoreError: bytes of a file are not held, or not as many as said.
            ValueError: no files, two of one path, a path that leaves the version, or a kind that does not exist.
        """
        if not is_name(name):
            raise RefError(
                f"{name!r} cannot name a version",
                hint="Names use letters, digits, '.', '_' and '-', and start with a letter or a digit: --as NAME.",
                asked=name,
            )
        if kind not in KINDS:
            raise ValueError(f"there is no kind {kind!r}; there are {', '.join(KINDS)}")
        if not files or len({entry.path for entry in files}) != len(files):
            raise ValueError(f"a version has files, each path once; got {[entry.path for entry in files]}")
        for entry in files:
            if not is_inner_path(entry.path):
                raise ValueError(f"the path of a file is relative, plain and uses '/'; got {entry.path!r}")
        digest = manifest_digest(files)
        with self._workspace.lock(_BLOBS_LOCK, purpose=f"register {name}", wait_s=None):
            for entry in files:
                held = self.store.size(entry.blob)
                if held != entry.size:
                    raise StoreError(
                        f"{entry.path} of {name} is not held: {entry.size} bytes are needed, found {held or 'none'}",
                        hint="Pull it again.",
                        blob=entry.blob,
                    )
            number = self._insert(name, digest, files, kind, parent, source, metadata or {})
        return self.get(Ref(name, str(number)))

    def get(self, ref: Ref | str) -> Version:
        """The version a reference means; without number and digest the newest.

        Raises:
            RefError: it is not a reference, or its digest is the beginning of several.
            NotFoundError: nothing answers to it; the message names the nearest.
        """
        ref = Ref.parse(ref) if isinstance(ref, str) else ref
        found = [version for version in self._select(ref.name) if _matches(version, ref)]
        if not found:
            raise self._not_found(ref)
        if ref.version is None and ref.digest and len(found) > 1:
            raise RefError(
                f"{ref} is ambiguous: it means {', '.join(f'{v.name}:{v.number}' for v in found)}",
                hint="Write more digits of the digest.",
                asked=str(ref),
            )
        return found[-1]

    def list(self, name: str | None = None) -> list[Version]:
        """Every version, or those of one name, in the order of names and numbers.

        Raises:
            NotFoundError: nothing has that name.
        """
        found = self._select(name)
        if name is not None and not found:
            raise self._not_found(Ref(name))
        return [*found]

    def add_figures(self, ref: Ref | str, figures: Iterable[Figure]) -> None:
        """Put figures on the sheet of a version, in place of those of the same name. Raises NotFoundError."""
        version = self.get(ref)
        of_version = (tables.figures.c.name == version.name) & (tables.figures.c.number == version.number)
        with self._database.begin() as connection:
            for figure in figures:
                same = of_version & (tables.figures.c.figure == figure.name)
                values = {
                    "value": figure.value,
                    "unit": figure.unit,
                    "how": figure.how,
                    "measured_on": figure.where,
                    "at": figure.at or time.time(),
                }
                if connection.execute(tables.figures.update().where(same).values(values)).rowcount:
                    continue
                count = sa.select(sa.func.count()).select_from(tables.figures).where(of_version)
                connection.execute(
                    tables.figures.insert().values(
                        name=version.name,
                        number=version.number,
                        figure=figure.name,
                        place=connection.scalar(count),
                        **values,
                    )
                )

    def delete(self, ref: Ref | str) -> int:
        """Remove a version, and the bytes nothing else refers to; returns how many bytes became free.

        Raises:
            NotFoundError: there is none.
            InUseError: something holds it; the message says what.
        """
        with self._workspace.lock(_BLOBS_LOCK, purpose=f"remove {ref}", wait_s=None):
            version = self.get(ref)
            for holder in self.holders:
                reason = holder(version)
                if reason:
                    raise InUseError(
                        f"{version.name}:{version.number} cannot be removed: {reason}",
                        hint="Remove or change what holds it first.",
                        ref=str(version.ref),
                    )
            with self._database.begin() as connection:
                for table in (tables.pulls, tables.figures, tables.files, tables.versions):
                    connection.execute(
                        table.delete().where((table.c.name == version.name) & (table.c.number == version.number))
                    )
                digest = tables.versions.c.digest
                again = connection.scalar(sa.select(digest).where(digest == version.digest).limit(1))
            # The row goes first: bytes without a row are collected some day, a row without bytes would be a lie.
            if again is None:
                shutil.rmtree(self._cached(version), ignore_errors=True)
            return self._collect({entry.blob for entry in version.files})

    def collect(self, blobs: Iterable[str] | None = None) -> int:
        """Let go of bytes that no version refers to, left by a run that was cut; returns how many bytes.

        With `blobs` only those are looked at. Whoever has put bytes and not registered them yet may lose them, is told
        so by `register`, and puts them again.
        """
        with self._workspace.lock(_BLOBS_LOCK, purpose="collect unused bytes", wait_s=None):
            return self._collect(set(blobs) if blobs is not None else {blob.digest for blob in self.store.list()})

    def remember_pull(self, asked: str, version: Version) -> None:
        """Keep that a source, known by the digest `asked` of its text, brought this version."""
        same = (tables.pulls.c.asked == asked) & (tables.pulls.c.name == version.name)
        values = {"number": version.number, "at": time.time()}
        with self._database.begin() as connection:
            if not connection.execute(tables.pulls.update().where(same).values(**values)).rowcount:
                connection.execute(tables.pulls.insert().values(asked=asked, name=version.name, **values))

    def pulled(self, asked: str, name: str | None = None) -> Version | None:
        """What that source brought when it was last asked, under `name` or any; None where it is not here any more."""
        query = sa.select(tables.pulls).where(tables.pulls.c.asked == asked).order_by(tables.pulls.c.at.desc())
        with self._database.reading() as connection:
            rows = connection.execute(query if name is None else query.where(tables.pulls.c.name == name)).all()
        for row in rows:
            version = next((v for v in self._select(row.name) if v.number == row.number), None)
            if version is not None and self.holds(version):
                return version
        return None

    def holds(self, version: Version) -> bool:
        """Whether the store has every byte of the version."""
        return all(self.store.size(entry.blob) == entry.size for entry in version.files)

    def materialise(self, version: Version) -> Path:
        """A path that an engine loads: the one file of a version, or a folder with all of them under their own names.

        Raises:
            NotFoundError: bytes of it are gone.
        """
        if len(version.files) == 1:
            return self.store.path(version.files[0].blob)
        folder = self._cached(version)
        if folder.is_dir():
            if _is_whole(folder, version):
                return folder
            shutil.rmtree(folder, ignore_errors=True)
        building = self._workspace.path("cache") / f".{version.digest}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            for entry in version.files:
                target = building / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                held = self.store.path(entry.blob)
                try:
                    target.hardlink_to(held)
                except OSError:  # another file system, or one without hard links
                    target.symlink_to(held)
            building.rename(folder)
        except OSError as error:
            if not _is_whole(folder, version):  # else somebody was faster: the same files
                raise StoreError(
                    f"the files of {version.name}:{version.number} cannot be laid out in {folder}: {error.strerror}",
                    hint="Check that the disk has room.",
                ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return folder

    def _cached(self, version: Version) -> Path:
        return self._workspace.path("cache") / version.digest

    def _collect(self, candidates: set[str]) -> int:
        with self._database.reading() as connection:
            used = set(connection.scalars(sa.select(tables.files.c.blob).distinct()))
        freed = 0
        for digest in sorted(candidates - used):
            size = self.store.size(digest) or 0
            if self.store.delete(digest):
                freed += size
        return freed

    def _insert(
        self,
        name: str,
        digest: str,
        files: Sequence[FileEntry],
        kind: str,
        parent: str | None,
        source: str,
        metadata: dict[str, Any],
    ) -> int:
        with self._database.begin() as connection:
            if connection.dialect.name == "postgresql":
                # A database may be shared by workspaces whose locks know nothing of each other.
                connection.execute(sa.text("LOCK TABLE names IN SHARE ROW EXCLUSIVE MODE"))
            same = (tables.versions.c.name == name) & (tables.versions.c.digest == digest)
            known = connection.scalar(sa.select(tables.versions.c.number).where(same))
            if known is not None:
                return int(known)
            last = connection.scalar(sa.select(tables.names.c.last_number).where(tables.names.c.name == name))
            number = (last or 0) + 1
            if last is None:
                connection.execute(tables.names.insert().values(name=name, last_number=number))
            else:
                connection.execute(tables.names.update().where(tables.names.c.name == name).values(last_number=number))
            connection.execute(
                tables.versions.insert().values(
                    name=name,
                    number=number,
                    digest=digest,
                    kind=kind,
                    parent=parent,
                    source=source,
                    created=time.time(),
                    metadata=metadata,
                )
            )
            for entry in files:
                connection.execute(
                    tables.files.insert().values(
                        name=name, number=number, path=entry.path, blob=entry.blob, size=entry.size
                    )
                )
        return number

    def _select(self, name: str | None) -> Sequence[Version]:
        def of(table: sa.Table, *order: sa.ColumnElement[Any]) -> sa.Select[Any]:
            query = sa.select(table).order_by(table.c.name, table.c.number, *order)
            return query if name is None else query.where(table.c.name == name)

        with self._database.reading() as connection:
            rows = connection.execute(of(tables.versions)).all()
            files: dict[tuple[str, int], list[FileEntry]] = {}
            for row in connection.execute(of(tables.files, tables.files.c.path)):
                files.setdefault((row.name, row.number), []).append(
                    FileEntry(path=row.path, blob=row.blob, size=row.size)
                )
            figures: dict[tuple[str, int], list[Figure]] = {}
            for row in connection.execute(of(tables.figures, tables.figures.c.place)):
                figures.setdefault((row.name, row.number), []).append(
                    Figure(
                        name=row.figure, value=row.value, unit=row.unit, how=row.how, where=row.measured_on, at=row.at
                    )
                )
        return [
            Version(
                name=row.name,
                number=row.number,
                digest=row.digest,
                kind=row.kind,
                parent=row.parent,
                source=row.source,
                created=row.created,
                metadata=row.metadata,
                files=tuple(files.get((row.name, row.number), ())),
                sheet=tuple(figures.get((row.name, row.number), ())),
            )
            for row in rows
        ]

    def _not_found(self, ref: Ref) -> NotFoundError:
        with self._database.reading() as connection:
            names = list(connection.scalars(sa.select(tables.versions.c.name).distinct()))
        if ref.name not in names:
            hint = did_you_mean(ref.name, names, otherwise="`press list` shows what is registered.")
            return NotFoundError(f"there is no model called {ref.name!r}", hint=hint, asked=str(ref), known=names)
        numbers = [str(version.number) for version in self._select(ref.name)]
        if ref.version is not None and ref.number is None:
            return NotFoundError(
                f"{ref.name} has no alias {ref.version!r}",
                hint=f"No aliases are set; its versions are {', '.join(numbers)}.",
                asked=str(ref),
            )
        return NotFoundError(f"{ref} does not exist", hint=f"{ref.name} has {', '.join(numbers)}.", asked=str(ref))

    def _parent_of(self, version: Version) -> str | None:
        """The version that names this one as its parent, unless equal files stay under another number or name."""
        everything = self._select(None)
        if any(o.digest == version.digest and o.ref != version.ref for o in everything):
            return None
        child = next((o for o in everything if o.parent == version.digest), None)
        return f"it is the parent of {child.name}:{child.number}" if child is not None else None


def _is_whole(folder: Path, version: Version) -> bool:
    try:
        return all((folder / entry.path).stat().st_size == entry.size for entry in version.files)
    except OSError:
        return False


def _matches(version: Version, ref: Ref) -> bool:
    if ref.version is not None and ref.number != version.number:
        return False
    return ref.digest is None or version.digest.startswith(ref.digest)
