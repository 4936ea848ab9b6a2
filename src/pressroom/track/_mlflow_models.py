"""Versions of the registry as MLflow's logged models, so that its pages show what a run set out from and what it made.

The tags of the run are what Pressroom reads; the logged models are for MLflow's own users. A logged model stands for a
version and holds no files.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from pressroom.track import _mlflow_records as records
from pressroom.track.base import TrackError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NO_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,192}(?::[A-Za-z0-9._-]{1,64})?(?:@sha256-[0-9a-f]{4,64})?")


def started_from(client: MlflowClient, run: str, version: str) -> None:
    from mlflow.entities import LoggedModelInput

    client.log_inputs(run, models=[LoggedModelInput(_model(client, run, version))])


def made(client: MlflowClient, run: str, version: str) -> None:
    from mlflow.entities import LoggedModelOutput, RunTag

    # One tag a version, so that two who link at once do not write over each other.
    own = f"{records.VERSION}.{hashlib.sha256(checked(version).encode()).hexdigest()[:12]}"
    found = client.get_run(run)
    if found.data.tags.get(own) == version and found.data.tags.get(records.VERSION) == version:
        return
    client.log_batch(run, tags=[RunTag(own, version), RunTag(records.VERSION, version)])
    client.log_outputs(run, [LoggedModelOutput(_model(client, run, version), 0)])


def checked(version: str) -> str:
    """The reference, where it can be one. Raises TrackError."""
    if not _VERSION.fullmatch(version):
        raise TrackError(
            f"{version!r} is not a reference", hint="Write it as name:number@sha256-…, as the registry gives it."
        )
    return version


def _model(client: MlflowClient, run: str, version: str) -> str:
    """The logged model of the run's experiment that stands for this version; two at once may make two of them."""
    experiment = client.get_run(run).info.experiment_id
    wanted = f"tags.`{records.VERSION}` = '{checked(version)}'"
    known = client.search_logged_models([experiment], filter_string=wanted, max_results=1)
    if known:
        return str(known[0].model_id)
    made = client.create_logged_model(
        experiment,
        name=_NO_NAME.sub("-", version.partition("@")[0]),
        tags={records.VERSION: version},
        model_type="pressroom",
    )
    client.finalize_logged_model(made.model_id, "READY")
    return str(made.model_id)
