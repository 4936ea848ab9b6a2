"""The records of the registry: what a version is, what its sheet says, and what a source brings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pressroom.kernel import Ref

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
    from (with the exact release), `created` in seconds since the epoch.
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

    @property
    def ref(self) -> Ref:
        return Ref(self.name, str(self.number), self.digest)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.files)

    def figure(self, name: str) -> Figure | None:
        """The figure called `name`, or None where it was not measured."""
        return next((figure for figure in self.sheet if figure.name == name), None)


def is_inner_path(path: str) -> bool:
    """Whether a file of this path stays inside the directory it is put in, and is written in the one plain way."""
    return (
        bool(path)
        and str(PurePosixPath(path)) == path
        and not path.startswith("/")
        and not {"..", "."} & set(path.split("/"))
        and re.search(r"[\\\x00-\x1f\x7f]|^[A-Za-z]:", path) is None
    )


def manifest_digest(files: Iterable[FileEntry]) -> str:
    """The digest of a version: SHA-256 over the canonical JSON of its sorted files, so that equal files are equal."""
    listed = sorted([entry.path, entry.size, entry.blob] for entry in files)
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False)
    return "sha256-" + hashlib.sha256(text.encode()).hexdigest()
