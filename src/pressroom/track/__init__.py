"""Runs on record: what was tried, with which data and settings, what came of it, and which versions it made."""

from __future__ import annotations

from pressroom.track._open import open_tracker
from pressroom.track.base import (
    STATUSES,
    Artifact,
    Comparison,
    Dataset,
    ParamChangedError,
    Point,
    Run,
    RunRecord,
    Tracker,
    TrackError,
    compare_runs,
)

__all__ = [
    "STATUSES",
    "Artifact",
    "Comparison",
    "Dataset",
    "ParamChangedError",
    "Point",
    "Run",
    "RunRecord",
    "TrackError",
    "Tracker",
    "compare_runs",
    "open_tracker",
]
