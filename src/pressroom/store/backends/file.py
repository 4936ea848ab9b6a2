"""The store in a directory: `file://path`, relative to the workspace, or absolute.

blobs/ab/blake3-ab…   a file kept whole           packs/   coded tensors
files/ab/blake3-ab…   what a file is made of      raw/     files of weights kept whole
index.db, *.lock      what is where, and who is at work
tmp/, spool/          what is being put; each file is locked by its writer
"""

from __future__ import annotations

from pathlib import Path

from pressroom.kernel.settings import StorageSettings
from pressroom.kernel.workspace import DIRECTORY
from pressroom.store.family import FamilyStore
from pressroom.store.places.file import Backend as FilePlace


class Backend(FamilyStore):
    def __init__(self, url: str, *, root: Path, storage: StorageSettings | None = None) -> None:
        place = FilePlace(url, root=root)
        super().__init__(place, home=place.directory, cache=root / DIRECTORY / "cache" / "files", storage=storage)
