"""The plain files of a version, for tools that know nothing of the registry: bit for bit what was registered."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pressroom.kernel import DigestMismatchError, Progress, Ref, StoreError, StoreFullError, Workspace
from pressroom.kernel.disk import sync, sync_directory
from pressroom.registry._archive_reading import CHUNK, new_hasher
from pressroom.registry._killed import sweep, under_way
from pressroom.registry.base import FileEntry, Version
from pressroom.registry.registry import Registry

# What a run works in; behind the name stands its process.
_UNDER_WAY = "getting"
_MOST_NAMES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What was written for a version into `directory`: the paths of the files that are new there, and of those that
    were there already, with the same bytes."""

    version: Version
    directory: Path
    written: tuple[str, ...]
    kept: tuple[str, ...]


def give_files(workspace: Workspace, ref: Ref | str, directory: Path, *, force: bool = False) -> Given:
    """Write the files of a version into `directory`, which is made if it is not there, under their own paths.

    Each is held against its digest while it is written, and none takes its place before all of them are whole, so that
    a run that fails changes nothing. A file that is there with the same bytes stays; one with other bytes is refused,
    and replaced with `force`. What else lies in the directory stays.

    Raises:
        RefError, NotFoundError: there is no such version, or its bytes are gone.
        DigestMismatchError: bytes in the store are damaged; `press verify` says more.
        StoreFullError: no room.
        StoreError: something is in the way, or the directory cannot be written.
    """
    registry = Registry(workspace)
    version = registry.get(ref)
    name = f"{version.name}:{version.number}"
    with _said(directory, name):
        made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        sweep(directory, _UNDER_WAY)
        wanted = _wanted(directory, version, force=force)
        staging = under_way(directory, f"{version.name.replace('/', '--')}-{version.number}", _UNDER_WAY)
        try:
            _room(directory, sum(entry.size for entry in wanted), name)
            done, total = 0, sum(entry.size for entry in wanted)
            for entry in wanted:
                for count in _copied(registry, entry, staging / entry.path):
                    done += count
                    workspace.events.emit(Progress(f"writing {name}", done, total))
            for entry in wanted:
                target = directory / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                (staging / entry.path).replace(target)
            for folder in {directory, *((directory / entry.path).parent for entry in wanted)}:
                sync_directory(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if made:
                with suppress(OSError):  # it has files now
                    directory.rmdir()
    written = {entry.path for entry in wanted}
    paths = [entry.path for entry in version.files]
    return Given(
        version=version,
        directory=directory,
        written=tuple(path for path in paths if path in written),
        kept=tuple(path for path in paths if path not in written),
    )


def _wanted(directory: Path, version: Version, *, force: bool) -> list[FileEntry]:
    """The files that are not there yet. Raises StoreError where something is in the way."""
    inside = directory.resolve()
    wanted, others = [], []
    for entry in version.files:
        target = directory / entry.path
        if not target.parent.resolve().is_relative_to(inside):
            raise StoreError(
                f"{target.parent} is a link that leaves {directory}",
                hint="Name another directory, or remove the link.",
                path=str(target.parent),
            )
        for above in target.relative_to(directory).parents:
            folder = directory / above
            if folder.exists() and not folder.is_dir():
                raise StoreError(
                    f"{folder} is a file, and {version.name}:{version.number} has a folder of that name",
                    hint="Name another directory.",
                    path=str(folder),
                )
        if target.is_symlink() or target.exists():
            if _same(target, entry):
                continue
            if target.is_dir() and not target.is_symlink():
                raise StoreError(
                    f"{target} is a folder, and {version.name}:{version.number} has a file of that name",
                    hint="Name another directory.",
                    path=str(target),
                )
            others.append(entry.path)
        wanted.append(entry)
    if others and not force:
        more = f" and {len(others) - _MOST_NAMES} more" if others[_MOST_NAMES:] else ""
        raise StoreError(
            f"{directory} has other files of these names: {', '.join(others[:_MOST_NAMES])}{more}",
            hint="Name another directory, or replace them with --force. Nothing was written.",
            path=str(directory),
            files=others,
        )
    return wanted


def _same(path: Path, entry: FileEntry) -> bool:
    """Whether a file, and no link to one, has the bytes already."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.size:
        return False
    hasher = new_hasher()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return f"blake3-{hasher.hexdigest()}" == entry.blob


def _copied(registry: Registry, entry: FileEntry, target: Path) -> Iterator[int]:
    """Write one file, and say after each piece how long it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    hasher, read = new_hasher(), 0
    with registry.store.open(entry.blob) as file, target.open("xb") as out:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            out.write(chunk)
            read += len(chunk)
            yield len(chunk)
        out.flush()
        sync(out.fileno())
    if read != entry.size or f"blake3-{hasher.hexdigest()}" != entry.blob:
        raise DigestMismatchError(
            f"{entry.path} is damaged in the store, and is not given",
            hint="`press verify` says which versions have it; pull or import one of them again.",
            blob=entry.blob,
        )


@contextmanager
def _said(directory: Path, name: str) -> Iterator[None]:
    """Say plainly what the disk refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(directory, name) from error
        raise StoreError(
            f"the files of {name} cannot be written into {directory}: {error.strerror}",
            hint="Name a directory that you may write to.",
            path=str(directory),
        ) from error


def _room(directory: Path, size: int, name: str) -> None:
    free = shutil.disk_usage(directory).free
    if size > free:
        raise _full(directory, name, needed=size, free=free)


def _full(directory: Path, name: str, **facts: int) -> StoreFullError:
    numbers = f": they take {facts['needed']:,} bytes and {facts['free']:,} are free" if facts else ""
    return StoreFullError(
        f"{directory} has no room for the files of {name}{numbers}",
        hint="Free some, or name a directory on another disk. Nothing of them was written.",
        path=str(directory),
        **facts,
    )
