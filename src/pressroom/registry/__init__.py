"""Names, versions, sheets, and the sources that models are pulled from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily
from pressroom.registry.base import (
    KINDS,
    AnnotationError,
    ArchiveError,
    Figure,
    FileEntry,
    FloorError,
    Move,
    PromotionError,
    Version,
    manifest_digest,
)

if TYPE_CHECKING:
    from pressroom.registry._archive_reading import Archive
    from pressroom.registry._asking import source_names
    from pressroom.registry._numbers import Distance
    from pressroom.registry.checking import Problem, Report, verify
    from pressroom.registry.comparing import Comparison, FileChange, TensorChange, compare
    from pressroom.registry.floors import Bound, Check
    from pressroom.registry.giving import Given, give_files
    from pressroom.registry.lineage import Member, Step, family
    from pressroom.registry.pulling import Pulled, name_for, pull
    from pressroom.registry.registry import Registry
    from pressroom.registry.text import read_text
    from pressroom.registry.transfer import Imported, export_archive, import_archive, verify_archive

__all__ = [
    "KINDS",
    "AnnotationError",
    "Archive",
    "ArchiveError",
    "Bound",
    "Check",
    "Comparison",
    "Distance",
    "Figure",
    "FileChange",
    "FileEntry",
    "FloorError",
    "Given",
    "Imported",
    "Member",
    "Move",
    "Problem",
    "PromotionError",
    "Pulled",
    "Registry",
    "Report",
    "Step",
    "TensorChange",
    "Version",
    "compare",
    "export_archive",
    "family",
    "give_files",
    "import_archive",
    "manifest_digest",
    "name_for",
    "pull",
    "read_text",
    "source_names",
    "verify",
    "verify_archive",
]

# Where each name is that needs the database: loaded when used.
__getattr__ = _lazily(
    __name__,
    {
        "Archive": "_archive_reading",
        "Bound": "floors",
        "Check": "floors",
        "Comparison": "comparing",
        "Distance": "_numbers",
        "FileChange": "comparing",
        "Given": "giving",
        "Imported": "transfer",
        "Member": "lineage",
        "Problem": "checking",
        "Registry": "registry",
        "Report": "checking",
        "Step": "lineage",
        "TensorChange": "comparing",
        "compare": "comparing",
        "export_archive": "transfer",
        "family": "lineage",
        "give_files": "giving",
        "import_archive": "transfer",
        "Pulled": "pulling",
        "name_for": "pulling",
        "pull": "pulling",
        "read_text": "text",
        "source_names": "_asking",
        "verify": "checking",
        "verify_archive": "transfer",
    },
)
