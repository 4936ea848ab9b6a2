"""Versions as one file, for a machine without a network: written here, verified and registered there.

The format is in `_archive.py`. Both ways need a few MiB of memory, whatever the size.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pressroom.kernel import (
    DigestMismatchError,
    NotFoundError,
    PressroomError,
    Progress,
    StoreError,
    StoreFullError,
    Workspace,
)
from pressroom.kernel.disk import sync, sync_directory
from pressroom.registry._archive import LENGTH, MAGIC, TRAILER, header_of
from pressroom.registry._archive_reading import CHUNK, Archive, exactly, headed, new_hasher, opened, verified
from pressroom.registry._killed import sweep, under_way
from pressroom.registry.base import Version
from pressroom.registry.registry import Registry
from pressroom.store import Blob

SUFFIX = ".pressroom"

_UNDER_WAY = "partial"


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """One version of an archive: what it was called there, and what it is here. `known`: it was here before."""

    there: Version
    here: Version
    known: bool


def export_archive(
    workspace: Workspace, refs: Iterable[str], directory: Path, *, with_parents: bool = False
) -> Archive:
    """Write these versions into one file in `directory`, named after the first; it is there whole or not at all.

    `with_parents` takes every ancestor along that is registered here. The file holds versions, sheets, tags and
    descriptions, not aliases.

    Raises:
        NotFoundError: there is no such version, or its bytes are gone.
        DigestMismatchError: bytes in the store are damaged; `press verify` says more.
        StoreFullError: no room.
        StoreError: the directory cannot be written.
    """
    registry = Registry(workspace)
    versions = _ordered(registry, [registry.get(ref) for ref in refs], with_parents=with_parents)
    header, blobs = header_of(versions)
    size = len(MAGIC) + LENGTH.size + len(header) + sum(blob.size for blob in blobs) + TRAILER
    first = versions[-1] if with_parents else versions[0]
    stem = f"{first.name.replace('/', '--')}-{first.number}" + (f"+{len(versions) - 1}" if len(versions) > 1 else "")
    target = directory / f"{stem}{SUFFIX}"
    partial = under_way(directory, stem, _UNDER_WAY)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        sweep(directory, _UNDER_WAY)
        with partial.open("xb") as file:
            hasher = new_hasher()
            done = 0
            for chunk in _written(registry, header, blobs):
                hasher.update(chunk)
                file.write(chunk)
                done += len(chunk)
                workspace.events.emit(Progress(f"writing {target.name}", done, size))
            file.write(hasher.digest())
            file.flush()
            sync(file.fileno())
        workspace.events.emit(Progress(f"writing {target.name}", size, size))
        partial.replace(target)
        sync_directory(directory)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(
                f"{directory} has no room for the {size} bytes of {target.name}", hint="Free some, or take another."
            ) from error
        raise StoreError(
            f"{target} cannot be written: {error.strerror}", hint="Choose another directory.", path=str(target)
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return Archive(path=target, size=size, digest=hasher.hexdigest(), versions=tuple(versions), blobs=tuple(blobs))


def verify_archive(workspace: Workspace, path: Path) -> Archive:
    """Read all of an archive and hold it against every digest in it. Nothing is written but temporary headers.

    Raises:
        NotFoundError: there is no such file.
        ArchiveError: it is cut, altered, has something behind its end, or is no archive.
        UnsafeWeightsError, WeightsError: a file in it is a pickle, or weights whose header lies.
    """
    with opened(path) as file:
        archive = headed(path, file)
        verified(workspace, archive, file)
    return archive


def import_archive(workspace: Workspace, path: Path) -> list[Imported]:
    """Register the versions of an archive, once all of it was verified.

    Bytes that are held already and whole are not written again; damaged ones are mended. A version keeps its number
    where that is above every number its name ever had here, else it gets the next one; equal files under that name are
    the version they are, and get the figures and tags they lack.

    Raises:
        As `verify_archive`, and then nothing was changed; StoreFullError and StoreError as the store does.
    """
    registry = Registry(workspace)
    with opened(path) as file:
        archive = headed(path, file)
        verified(workspace, archive, file)
        # From here on nobody collects them; registering ends it, and so does time.
        registry.lease(blob.digest for blob in archive.blobs)
        total = sum(blob.size for blob in archive.blobs)
        task, done = f"keeping {path.name}", 0
        file.seek(archive.size - TRAILER - total)
        for blob in archive.blobs:
            if _is_whole(registry, blob):
                file.seek(blob.size, os.SEEK_CUR)
            else:
                chunks = _told(workspace, Progress(task, done, total), exactly(file, blob.size, path))
                registry.store.put(chunks, expected=blob.digest, size=blob.size)
            done += blob.size
            workspace.events.emit(Progress(task, done, total))
    return [_registered(registry, version) for version in archive.versions]


def _is_whole(registry: Registry, blob: Blob) -> bool:
    """Whether the store has these bytes, and not damaged: damaged ones are written again."""
    if registry.store.size(blob.digest) != blob.size:
        return False
    try:
        registry.store.verify(blob.digest)
    except PressroomError:
        return False
    return True


def _told(workspace: Workspace, before: Progress, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks, with how far the whole is after each; the last word belongs to who knows that they are kept."""
    done = before.done
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if before.total is None or done < before.total:
            workspace.events.emit(replace(before, done=done))


def _registered(registry: Registry, there: Version) -> Imported:
    try:
        same = [version for version in registry.list(there.name) if version.digest == there.digest]
    except NotFoundError:
        same = []
    known = same[0] if same else None
    figures = {figure.name for figure in known.sheet} if known else set()
    tags = known.tags if known else {}
    here = registry.register(
        there.name,
        there.files,
        kind=there.kind,
        parent=there.parent,
        source=there.source,
        metadata=there.metadata,
        tags={tag: value for tag, value in there.tags.items() if tag not in tags},
        description="" if known and known.description else there.description,
        run="" if known and known.run else there.run,
        figures=[figure for figure in there.sheet if figure.name not in figures],
        number=there.number,
        created=there.created,
    )
    return Imported(there=there, here=here, known=known is not None)


def _ordered(registry: Registry, wanted: Sequence[Version], *, with_parents: bool) -> list[Version]:
    """Without repeats, parents before their children, so that an import finds what a difference is taken from."""
    chosen = {(version.name, version.number): version for version in wanted}
    by_digest: dict[str, Version] = {}
    for version in registry.list():
        by_digest.setdefault(version.digest, version)
    waiting = [*wanted] if with_parents else []
    while waiting:
        parent = by_digest.get(waiting.pop().parent or "")
        if parent is not None and not any(version.digest == parent.digest for version in chosen.values()):
            chosen[parent.name, parent.number] = parent
            waiting.append(parent)
    depths: dict[str, int] = {}
    for version in chosen.values():
        depth, seen, above = 0, {version.digest}, version.parent
        while above in by_digest and above not in seen:
            seen.add(above)
            depth, above = depth + 1, by_digest[above].parent
        depths[version.digest] = depth
    return sorted(chosen.values(), key=lambda version: (depths[version.digest], version.name, version.number))


def _written(registry: Registry, header: bytes, blobs: Sequence[Blob]) -> Iterator[bytes]:
    yield MAGIC + LENGTH.pack(len(header)) + header
    for blob in blobs:
        hasher, read = new_hasher(), 0
        with registry.store.open(blob.digest) as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
                read += len(chunk)
                if read > blob.size:
                    break
                yield chunk
        if read != blob.size or f"blake3-{hasher.hexdigest()}" != blob.digest:
            raise DigestMismatchError(
                f"{blob.digest[:19]}… in the store is damaged, and is not exported",
                hint="`press verify` says which versions have it.",
                blob=blob.digest,
            )
