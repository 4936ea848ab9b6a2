"""The store in a bucket: `s3://bucket/prefix`. Its index, locks and cache are in the workspace."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from pressroom.kernel.settings import StorageSettings
from pressroom.kernel.workspace import DIRECTORY
from pressroom.store.family import FamilyStore
from pressroom.store.places import open_place


class Backend(FamilyStore):
    def __init__(self, url: str, *, root: Path, storage: StorageSettings | None = None) -> None:
        place = open_place(url, root)
        # Of its own for each bucket: what one of them holds says nothing about another.
        home = root / DIRECTORY / "stores" / blake3(url.encode()).hexdigest()[:16]
        super().__init__(place, home=home, cache=root / DIRECTORY / "cache" / "files", storage=storage, shared=True)
