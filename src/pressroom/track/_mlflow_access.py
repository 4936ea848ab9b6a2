"""MLflow as this package uses it: imported late, without telemetry, its errors in Pressroom's tree."""

# Parts of MLflow are not annotated.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pressroom.kernel.errors import MissingDependencyError, NetworkError, NotFoundError, WorkspaceError
from pressroom.track.base import TrackError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

# Looked at when MLflow is imported, and again by the processes it starts.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
# What somebody may have set otherwise. A server that does not answer is asked again by MLflow for minutes; three times
# is half a minute.
_PREFERRED = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


def prepare() -> None:
    """Import MLflow (about a second) with its telemetry off.

    Raises:
        MissingDependencyError: it is not installed.
    """
    before = "mlflow" in sys.modules
    os.environ.update(QUIET)
    for name, value in _PREFERRED.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
        from mlflow.telemetry import set_telemetry_client
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"tracking needs the library {error.name!r}, which is not installed",
            hint="Install it with: pip install 'pressroom[track]'",
            library=error.name,
        ) from error
    if before:
        set_telemetry_client()  # it may have been imported, by somebody else, with its telemetry on
        return
    assert mlflow
    # Importing it sets handlers; what it says of its migrations and retries is not for the users of Pressroom.
    for logger in ("mlflow", "alembic"):
        if logging.getLogger(logger).level in (logging.NOTSET, logging.INFO):
            logging.getLogger(logger).setLevel(logging.WARNING)


def client(url: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=url)


@contextmanager
def translated(place: str, **facts: Any) -> Iterator[None]:
    """Raise MLflow's errors as Pressroom's. `place` is the tracking URL as it may be shown."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        raise _as_ours(error, place, facts) from error
    except SQLAlchemyError as error:
        raise WorkspaceError(
            f"the tracking database {place} failed: {str(error).splitlines()[0]}",
            hint="Check that the path is writable, the disk has room and no other program holds the file.",
        ) from error
    except OSError as error:
        raise TrackError(
            f"an artifact cannot be written or read: {error}",
            hint="Check that the path is writable and the disk has room.",
            **facts,
        ) from error


def _as_ours(error: MlflowException, place: str, facts: dict[str, Any]) -> Exception:
    said = str(error.message if hasattr(error, "message") else error).strip()
    first = said.splitlines()[0] if said else type(error).__name__
    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return NotFoundError(first, hint="`press runs` lists the runs.", **facts)
    if "API request to" in first or "Max retries exceeded" in first:
        return NetworkError(
            f"the tracking server {place} does not answer: {first}",
            hint="Start it, or change the setting `tracking`.",
            url=place,
        )
    if error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE") or "Detected out-of-date" in said:
        return WorkspaceError(
            f"the tracking place {place} failed: {first}",
            hint="If it was written by another release of MLflow: mlflow db upgrade URL. Else check the disk.",
        )
    return TrackError(first, **facts)
