"""Versions as paths that an engine loads: folders of links under `.pressroom/cache/`."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pressroom.kernel import StoreError, Workspace
from pressroom.kernel.machine import is_running
from pressroom.registry.base import Version
from pressroom.store import Store

# What `lay_out` makes: a folder, and while it builds one a hidden one behind which stand its process and a moment.
_FOLDER = re.compile(r"sha256-[0-9a-f]{64}")
# Between asking for a path and opening it lies the start of an engine, and a measurement starts several.
_FRESH_S = 3600.0
_BUILDING = re.compile(r"\.(sha256-[0-9a-f]{64})-(\d{1,9})-\d+")


def lay_out(workspace: Workspace, store: Store, version: Version) -> Path:
    """The one file of a version where it lies, or a folder with all of them under their own names.

    Raises:
        NotFoundError: bytes of it are gone.
        StoreError: the folder cannot be made.
    """
    if len(version.files) == 1:
        return store.path(version.files[0].blob)
    folder = workspace.path("cache") / version.digest
    if folder.is_dir():
        if _is_whole(folder, version):
            with suppress(OSError):
                os.utime(folder)  # it counts as used now
            return folder
        shutil.rmtree(folder, ignore_errors=True)
    building = workspace.path("cache") / f".{version.digest}-{os.getpid()}-{time.monotonic_ns()}"
    try:
        for entry in version.files:
            target = building / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            held = store.path(entry.blob)
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


def forget(workspace: Workspace, digest: str) -> None:
    """Remove the folder of a version, with what a killed process began of it: hard links would keep the bytes."""
    cache = workspace.path("cache")
    for folder in (cache / digest, *cache.glob(f".{digest}-*")):
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(workspace: Workspace, digests: Collection[str], needed: Collection[str] | None = None) -> list[Path]:
    """Folders of no version of these digests, and those that a process began which is not there any more.

    With `needed`, also those of versions that are not among these and were not asked for within the last hour: their
    links keep rebuilt files from leaving the cache.
    """
    found = []
    for folder in sorted(workspace.path("cache").iterdir()):
        building = _BUILDING.fullmatch(folder.name)
        if building is not None:
            if building[1] not in digests or not is_running(int(building[2])):
                found.append(folder)
        elif _FOLDER.fullmatch(folder.name):
            idle = needed is not None and folder.name not in needed and time.time() - _used(folder) > _FRESH_S
            if folder.name not in digests or idle:
                found.append(folder)
    return found


def _used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # gone this moment
        return time.time()


def _is_whole(folder: Path, version: Version) -> bool:
    try:
        return all((folder / entry.path).stat().st_size == entry.size for entry in version.files)
    except OSError:
        return False
