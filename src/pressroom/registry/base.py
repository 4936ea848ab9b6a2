"""The records of the registry: what a version is, what its sheet says, how aliases move, and what goes wrong.

PressroomError
├── AnnotationError   a tag, a description or a run that cannot be kept
├── FloorError        a bound that is not well written, or that nothing can meet
├── PromotionError    an alias may not move so; the refusal is on record
└── ArchiveError      a file of versions that is cut, altered or not one
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pressroom.kernel import PressroomError, Ref

# What a version can be. `data` is a text or a set of rows that figures are measured on or models are trained with: it
# travels like a model, so that a figure can name by digest what it was measured on.
KINDS = ("base", "fine-tune", "adapter", "merged", "quantised", "pruned", "distilled", "ladder", "data")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a version: its relative POSIX `path`, the `blob` digest in the store and its `size` in bytes."""

    path: str
    blob: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured value: with its unit, how it was measured, where, and when (seconds since the epoch)."""

    name: str
    value: float | int | str
    unit: str = ""
    how: str = ""
    where: str = ""
    at: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One version of a model, as registered. `digest` is `sha256-<64 hex>` over the manifest of its files.

    `metadata` is what the weights' header said (architecture, parameters, context_length, …), `source` where they came
    from (with the exact release), `created` in seconds since the epoch. `tags`, `description` and `run` (the id of the
    tracked run that made it) are what people and tools say of it; `aliases` are the names that point to it now, sorted.
    """

    name: str
    number: int
    digest: str
    kind: str
    files: tuple[FileEntry, ...]
    parent: str | None = None
    source: str = ""
    created: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)
    sheet: tuple[Figure, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""
    run: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def ref(self) -> Ref:
        return Ref(self.name, str(self.number), self.digest)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.files)

    @property
    def format(self) -> str:
        """What its files are: `gguf`, `safetensors`, `remote`, …; of what has no such, its kind."""
        return str(self.metadata.get("format", self.kind))

    def figure(self, name: str) -> Figure | None:
        """The figure called `name`, or None where it was not measured."""
        return next((figure for figure in self.sheet if figure.name == name), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One row of the history: what happened to an alias or its floor, or what was refused.

    `action` is one of ACTIONS, `who` a key (`key:NAME`) or the user of this machine (`local:NAME`), `at` in seconds
    since the epoch. `details` holds the checks that were made, and of a refusal the reason.
    """

    at: float
    name: str
    alias: str
    action: str
    who: str
    why: str = ""
    from_number: int | None = None
    from_digest: str | None = None
    to_number: int | None = None
    to_digest: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


ACTIONS = ("promoted", "demoted", "refused", "floor set", "floor removed")


class AnnotationError(PressroomError):
    code = "annotation"


class FloorError(PressroomError):
    code = "floor"


class PromotionError(PressroomError):
    code = "promotion"


class ArchiveError(PressroomError):
    code = "archive"


# As long as the database takes, and one part as long as file systems do.
_MOST_PATH = 500
_MOST_PART = 255
_VERSION_DIGEST = re.compile(r"sha256-[0-9a-f]{64}")


def is_file_path(path: str) -> bool:
    """Whether a file of a version may have this path: it stays inside, and any file system and database can keep it."""
    return (
        is_inner_path(path)
        and re.search(r"[\ud800-\udfff]", path) is None
        and len(path) <= _MOST_PATH
        and all(len(part.encode()) <= _MOST_PART for part in path.split("/"))
    )


def clashing(paths: Iterable[str]) -> tuple[str, str] | None:
    """Two paths that not every file system can hold side by side: of one name where case and the way of writing letters
    do not count, or of which one is a file and the other lies in a folder of that name. None where there are none."""
    plain: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        same = unicodedata.normalize("NFC", path.casefold())
        if same in plain:
            return plain[same], path
        plain[same] = path
        parts = same.split("/")
        folders.update(("/".join(parts[:depth]), path) for depth in range(1, len(parts)))
    return next(((path, folders[same]) for same, path in plain.items() if same in folders), None)


def is_inner_path(path: str) -> bool:
    """Whether a file of this path stays inside the directory it is put in, and is written in the one plain way."""
    return (
        bool(path)
        and str(PurePosixPath(path)) == path
        and not path.startswith("/")
        and not {"..", "."} & set(path.split("/"))
        and re.search(r"[\\\x00-\x1f\x7f-\x9f]|^[A-Za-z]:", path) is None
    )


def is_version_digest(text: str) -> bool:
    """Whether the text is written as the digest of a version."""
    return _VERSION_DIGEST.fullmatch(text) is not None


def manifest_digest(files: Iterable[FileEntry]) -> str:
    """The digest of a version: SHA-256 over the canonical JSON of its sorted files, so that equal files are equal."""
    listed = sorted([entry.path, entry.size, entry.blob] for entry in files)
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False)
    return "sha256-" + hashlib.sha256(text.encode()).hexdigest()
