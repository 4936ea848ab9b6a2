"""Names, versions, sheets, and the sources that models are pulled from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily
from pressroom.registry.base import KINDS, Figure, FileEntry, Version, manifest_digest

if TYPE_CHECKING:
    from pressroom.registry.pulling import name_for, pull, source_names
    from pressroom.registry.registry import Registry
    from pressroom.registry.text import read_text

__all__ = [
    "KINDS",
    "Figure",
    "FileEntry",
    "Registry",
    "Version",
    "manifest_digest",
    "name_for",
    "pull",
    "read_text",
    "source_names",
]

# Where each name is that needs the database: loaded when used.
__getattr__ = _lazily(
    __name__,
    {
        "Registry": "registry",
        "name_for": "pulling",
        "pull": "pulling",
        "read_text": "text",
        "source_names": "pulling",
    },
)
