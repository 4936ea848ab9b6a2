"""Versions in the database and their bytes in the store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pressroom.kernel import InUseError, NotFoundError, Ref, RefError, StoreError, Workspace, is_name
from pressroom.registry import _hashes, _layout, _pulls, _rows
from pressroom.registry import _tables as tables
from pressroom.registry.aliases import Aliases, holding
from pressroom.registry.base import (
    KINDS,
    Figure,
    FileEntry,
    Move,
    Version,
    clashing,
    is_file_path,
    is_version_digest,
    manifest_digest,
)
from pressroom.store import Blob, Store, open_store

# Held while rows and bytes are brought together or taken apart, so that no byte goes between the look and the row.
_BLOBS_LOCK = "registry-blobs"


class Registry:
    """The versions of one workspace. Thread-safe; several processes may use it at once.

    `holders` are asked before a version is removed; one that returns a sentence keeps it. Upper layers add theirs.
    `aliases` has the floors.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._database = workspace.database
        self._database.migrate("registry", tables.MIGRATIONS)
        self.store: Store = open_store(workspace)
        self.aliases = Aliases(workspace)
        self.holders: list[Callable[[Version], str | None]] = [self._parent_of, holding]

    def register(
        self,
        name: str,
        files: Sequence[FileEntry],
        *,
        kind: str = "base",
        parent: str | None = None,
        source: str = "",
        metadata: dict[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        description: str = "",
        run: str = "",
        figures: Iterable[Figure] = (),
        number: int = 0,
        created: float = 0.0,
    ) -> Version:
        """Make these files the newest version of `name`; equal files under that name are the version they were before.

        All of it is one transaction. Of a version that was there before, tags, figures, description and run are set
        where they are given here, and nothing else changes. `number` is taken where it is above every number the name
        ever had, else the next one; `created` is for what was made elsewhere.

        Raises:
            RefError: the name is not one.
            StoreError: bytes of a file are not held, or not as many as said.
            AnnotationError: a tag, the description or the run cannot be kept.
            ValueError: no files, two of one path, a path that leaves the version or that no file system keeps, a kind
                that does not exist, a parent that is no digest, or a figure that cannot be kept.
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
            if not is_file_path(entry.path):
                raise ValueError(f"the path of a file is relative, plain and uses '/'; got {entry.path!r}")
        if clash := clashing(entry.path for entry in files):
            raise ValueError(f"{clash[0]!r} and {clash[1]!r} cannot lie side by side on every file system")
        if parent is not None and not is_version_digest(parent):
            raise ValueError(f"a parent is the digest of a version, sha256- and 64 hexadecimal digits; got {parent!r}")
        self._workspace.keep_reserve()
        tags = dict(tags or {})
        sheet = _rows.checked_figures(figures)
        _rows.checked_words(tags, description, run)
        digest = manifest_digest(files)
        made = Version(
            name=name,
            number=number,
            digest=digest,
            kind=kind,
            files=tuple(files),
            parent=parent if parent != digest else None,  # equal files are no step
            source=source,
            created=created,
            metadata=metadata or {},
        )
        with self._workspace.lock(_BLOBS_LOCK, purpose=f"register {name}", wait_s=None):
            for entry in files:
                held = self.store.size(entry.blob)
                if held != entry.size:
                    raise StoreError(
                        f"{entry.path} of {name} is not held: {entry.size} bytes are needed, found {held or 'none'}",
                        hint="Pull it again.",
                        blob=entry.blob,
                    )
            with self._database.begin() as connection:
                number = _rows.insert_version(connection, made)
                _rows.set_figures(connection, name, number, sheet)
                _rows.set_words(connection, name, number, tags, description or None, run or None)
                tables.release(connection, (entry.blob for entry in files))
        return self.get(Ref(name, str(number)))

    def get(self, ref: Ref | str) -> Version:
        """The version a reference means, by number, alias or digest; with none of these the newest.

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

    def names_ever(self) -> Sequence[str]:
        """Every name that a version was ever registered under here, also where all of its versions are gone."""
        with self._database.reading() as connection:
            return [*connection.scalars(sa.select(tables.names.c.name).order_by(tables.names.c.name))]

    def add_figures(self, ref: Ref | str, figures: Iterable[Figure]) -> None:
        """Put figures on the sheet of a version, in place of those of the same name.

        Raises:
            NotFoundError: there is no such version.
            ValueError: a value is no number (NaN, infinity): JSON and databases have none of these.
        """
        version = self.get(ref)
        sheet = _rows.checked_figures(figures)
        with self._database.begin() as connection:
            _rows.set_figures(connection, version.name, version.number, sheet)

    def annotate(
        self,
        ref: Ref | str,
        *,
        tags: Mapping[str, str | None] | None = None,
        description: str | None = None,
        run: str | None = None,
    ) -> Version:
        """Set tags (None takes one away), the description and the run of a version; what is not given stays.

        Raises:
            NotFoundError: there is no such version.
            AnnotationError: one of them cannot be kept.
        """
        version = self.get(ref)
        _rows.checked_words(tags or {}, description, run)
        with self._database.begin() as connection:
            _rows.set_words(connection, version.name, version.number, tags or {}, description, run)
        return self.get(version.ref)

    def promote(self, ref: Ref | str, alias: str, *, why: str = "", key: str | None = None) -> Move:
        """Let an alias point to a version; `key` is the secret of who asks. Raises as `Aliases.promote` does."""
        return self.aliases.promote(self.get(ref), alias, why=why, key=key)

    def demote(self, name: str, alias: str, *, why: str = "", key: str | None = None) -> Move:
        """Let an alias point to nothing. Raises as `Aliases.demote` does."""
        return self.aliases.demote(name, alias, why=why, key=key)

    def history(self, name: str | None = None, alias: str | None = None) -> Sequence[Move]:
        """Every move and refusal of a model and an alias, oldest first.

        Raises:
            NotFoundError: there is neither a model of that name nor a trace of one.
        """
        found = self.aliases.history(name, alias)
        if name is not None and not found:
            self.list(name)
        return found

    def delete(self, ref: Ref | str) -> int:
        """Remove a version, and the bytes nothing else refers to; returns how many bytes were let go of.

        Raises:
            NotFoundError: there is none.
            InUseError: something holds it; the message says what.
        """
        with self._workspace.lock(_BLOBS_LOCK, purpose=f"remove {ref}", wait_s=None):
            version = self.get(ref)
            for holder in self.holders:
                reason = holder(version)
                if reason:
                    raise _held(version, reason)
            with self._database.begin() as connection:
                # Between the look and here somebody may have promoted it, who holds another lock.
                pointing = tables.pointing_to(connection, version.name, version.number)
                if pointing:
                    raise _held(version, f"{version.name}:{pointing[0]} points to it")
                _rows.remove_version(connection, version)
                digest = tables.versions.c.digest
                again = connection.scalar(sa.select(digest).where(digest == version.digest).limit(1))
            # The row goes first: bytes without a row are collected some day, a row without bytes would be a lie.
            if again is None:
                _layout.forget(self._workspace, version.digest)
            return self._collect({entry.blob for entry in version.files})

    def loose(self) -> Sequence[Blob]:
        """Bytes in the store that no version refers to and no lease keeps."""
        with self._database.reading() as connection:
            used = tables.used_blobs(connection)
        return [blob for blob in self.store.list() if blob.digest not in used]

    def collect(self, blobs: Iterable[str] | None = None, *, needed: Collection[str] | None = None) -> int:
        """Let go of bytes that no version refers to, left by a run that was cut; returns how many bytes.

        With `blobs` only those are looked at; without, folders laid out for engines go with them where their version
        or the process that made them is gone, and with `needed` (digests of versions) those that `leftovers` names
        then. Whoever has put bytes and not registered them yet may lose them, is told
        so by `register`, and puts them again; a `lease` keeps them.
        """
        with self._workspace.lock(_BLOBS_LOCK, purpose="collect unused bytes", wait_s=None):
            if blobs is not None:
                return self._collect(set(blobs))
            for folder in self.leftovers(needed):
                shutil.rmtree(folder, ignore_errors=True)
            return self._collect({blob.digest for blob in self.store.list()})

    def leftovers(self, needed: Collection[str] | None = None) -> Sequence[Path]:
        """Folders laid out for engines whose version, or the process that made them, is not there any more.

        With `needed`, also those of versions that are not among these digests and were not asked for within the hour.
        """
        return _layout.leftovers(self._workspace, {version.digest for version in self._select(None)}, needed)

    def lease(self, blobs: Iterable[str], *, seconds: float = 86_400.0) -> None:
        """Keep these bytes from `collect` for so long, whether they are held already or come soon.

        For whoever puts now and registers later; registering ends the lease.
        """
        with (
            self._workspace.lock(_BLOBS_LOCK, purpose="keep bytes for later", wait_s=None),
            self._database.begin() as connection,
        ):
            tables.lease(connection, blobs, until=time.time() + seconds)

    def sha256(self, blob: str) -> str:
        """SHA-256 of bytes of the store as hex; read once, then kept. Raises NotFoundError."""
        return _hashes.sha256(self._database, self.store, blob)

    def by_sha256(self, sha256: str) -> str | None:
        """The digest of the bytes with this SHA-256, where they are held and `sha256` was once asked or told."""
        return _hashes.by_sha256(self._database, self.store, sha256)

    def remember_sha256(self, blob: str, sha256: str) -> None:
        """Keep what somebody who read the bytes anyway found. Raises ValueError where it is no SHA-256."""
        _hashes.remember(self._database, blob, sha256)

    def remember_pull(self, asked: str, version: Version) -> None:
        """Keep that a source, known by the digest `asked` of its text, brought this version."""
        with self._database.begin() as connection:
            _pulls.remember(connection, asked, version)

    def pulled(self, asked: str, name: str | None = None) -> Version | None:
        """What that source brought when it was last asked, under `name` or any; None where it is not here any more."""
        with self._database.reading() as connection:
            numbers = _pulls.brought(connection, asked, name)
        for called, number in numbers:
            version = next((v for v in self._select(called) if v.number == number), None)
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
        return _layout.lay_out(self._workspace, self.store, version)

    def _collect(self, candidates: set[str]) -> int:
        with self._database.reading() as connection:
            used = tables.used_blobs(connection)
        freed = 0
        for digest in sorted(candidates - used):
            size = self.store.size(digest) or 0
            if self.store.delete(digest):
                freed += size
                _hashes.forget(self._database, digest)
        return freed

    def _select(self, name: str | None) -> Sequence[Version]:
        with self._database.reading() as connection:
            return _rows.read_versions(connection, name)

    def _not_found(self, ref: Ref) -> NotFoundError:
        with self._database.reading() as connection:
            return _rows.not_found(connection, ref)

    def _parent_of(self, version: Version) -> str | None:
        """The version that names this one as its parent, unless equal files stay under another number or name."""
        everything = self._select(None)
        if any(o.digest == version.digest and o.ref != version.ref for o in everything):
            return None
        child = next((o for o in everything if o.parent == version.digest), None)
        return f"it is the parent of {child.name}:{child.number}" if child is not None else None


def _held(version: Version, reason: str) -> InUseError:
    return InUseError(
        f"{version.name}:{version.number} cannot be removed: {reason}",
        hint="Remove or change what holds it first.",
        ref=str(version.ref),
        holder=reason,
    )


def _matches(version: Version, ref: Ref) -> bool:
    if ref.version is not None and ref.number != version.number and ref.version not in version.aliases:
        return False
    return ref.digest is None or version.digest.startswith(ref.digest)
