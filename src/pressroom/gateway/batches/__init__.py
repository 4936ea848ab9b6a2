"""Many requests at once: files and batches over OpenAI's API, and `press batch` from a file to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway.batches.base import (
    ENDPOINTS,
    BatchError,
    BatchRecord,
    Counts,
    FileRecord,
    Line,
    Outcome,
    Status,
)
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway.batches.door import BatchDoor
    from pressroom.gateway.batches.jobs import FileJob, Options, Summary

__all__ = [
    "ENDPOINTS",
    "BatchDoor",
    "BatchError",
    "BatchRecord",
    "Counts",
    "FileJob",
    "FileRecord",
    "Line",
    "Options",
    "Outcome",
    "Status",
    "Summary",
]

# Where each name is that needs the HTTP libraries or numpy: loaded when used.
__getattr__ = _lazily(__name__, {"BatchDoor": "door", "FileJob": "jobs", "Options": "jobs", "Summary": "jobs"})
