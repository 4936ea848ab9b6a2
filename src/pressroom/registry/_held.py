"""Which of the files that a publisher declares are here already."""

from __future__ import annotations

import hashlib
import threading
from functools import cached_property
from pathlib import PurePosixPath

from pressroom.kernel import Events, PressroomError, Progress
from pressroom.registry.registry import Registry
from pressroom.registry.sources._checks import Declared, digest_of

# Larger files have a SHA-256 on every hub; git names are for the small ones.
_MOST_GIT = 64 << 20


def text_digest(*parts: object) -> str:
    """What the registry remembers a text by: it may hold what nobody else should read."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


class Held:
    """Asked for a declared file, answers with the digest under which the store has it, or None. What is found is read
    once and held against its digest, so that a damaged file is fetched anew, and kept from collection for a day.
    Thread-safe."""

    def __init__(self, registry: Registry, events: Events) -> None:
        self._registry = registry
        self._events = events
        self._read = 0
        self._lock = threading.Lock()

    def __call__(self, declared: Declared, path: str) -> str | None:
        with self._lock:
            found = self._found(declared, path)
        if found is None:
            return None
        try:
            self._registry.lease([found])
            self._registry.store.verify(found)
        except PressroomError:  # damaged, or gone this moment
            return None
        with self._lock:
            self._read += self._registry.store.size(found) or 0
            self._events.emit(Progress("checking what is here", self._read))
        return found

    def _found(self, declared: Declared, path: str) -> str | None:
        store = self._registry.store
        if declared.text:
            version = self._registry.pulled(text_digest(declared.text))
            entries = version.files if version else ()
            return next((e.blob for e in entries if (e.path, e.size) == (path, declared.size)), None)
        if declared.sha256 is not None:
            known = self._registry.by_sha256(declared.sha256)
            if known is not None:
                return known if declared.size in (None, store.size(known)) else None
            if declared.size is not None:
                # Of those with as many bytes one may be it, whose SHA-256 nobody has asked for yet.
                same_size = (blob for blob in self._by_size.get(declared.size, {}) if store.size(blob) is not None)
                return next((blob for blob in same_size if self._registry.sha256(blob) == declared.sha256), None)
        if declared.git is not None and declared.size is not None and declared.size <= _MOST_GIT:
            for blob, names in self._by_size.get(declared.size, {}).items():
                if PurePosixPath(path).name in names and store.size(blob) is not None:
                    with store.open(blob) as file:
                        if digest_of(file, declared.size, git=True) == declared.git:
                            return blob
        return None

    @cached_property
    def _by_size(self) -> dict[int, dict[str, set[str]]]:
        """Digests of the files of all versions by their size, each with the names it has."""
        found: dict[int, dict[str, set[str]]] = {}
        for version in self._registry.list():
            for entry in version.files:
                names = found.setdefault(entry.size, {}).setdefault(entry.blob, set())
                names.add(PurePosixPath(entry.path).name)
        return found
