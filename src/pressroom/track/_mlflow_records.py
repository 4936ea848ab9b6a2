"""Runs as MLflow keeps them, and as records."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import TYPE_CHECKING, Any

from pressroom.track import _process
from pressroom.track.base import Dataset, Point, RunRecord

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Experiment, Metric
    from mlflow.entities import Run as MlflowRun

# Names of what is kept with a run. Everything of ours begins with `pressroom.`.
VERSION = "pressroom.version"
STARTED_FROM = "pressroom.started_from"
SOURCE_TYPE = "pressroom"
ROLE, FULL_DIGEST, SOURCE, ROWS = "mlflow.data.context", "pressroom.digest", "pressroom.source", "pressroom.rows"

_NAME = "mlflow.runName"
_USER = "mlflow.user"
_STATUS = {
    "RUNNING": "running",
    "SCHEDULED": "running",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "killed",
}
TERMINAL = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
# MLflow's digests have at most 36 characters: 29 hex digits of a `blake3-…`.
_MOST_DIGEST = 36
_POINTER = re.compile(r"sha256-(?P<sha256>[0-9a-f]{64}) of (?P<length>\d+) characters in (?P<path>params/\S.*\.txt)")


def pointer(sha256: str, length: int, path: str) -> str:
    """What a param holds in place of a long value."""
    return f"sha256-{sha256} of {length} characters in {path}"


def pointed(value: str) -> tuple[str, str] | None:
    """Path and SHA-256 of the artifact that has the value, where this is what points to it."""
    found = _POINTER.fullmatch(value)
    return (found["path"], found["sha256"]) if found else None


def number(value: float, *, from_database: bool = True) -> float:
    """A value as it was logged: MLflow's databases hold the largest float in place of infinity."""
    return math.copysign(math.inf, value) if from_database and abs(value) >= sys.float_info.max else float(value)


def point(metric: Metric) -> Point:
    return Point(int(metric.step), number(metric.value), metric.timestamp / 1000)


def record(run: MlflowRun, experiments: dict[str, str]) -> RunRecord:
    """The record of a run; `experiments` has the names by id."""
    info, data = run.info, run.data
    tags = dict(data.tags)
    status = _STATUS.get(info.status, "running")
    if status == "running" and _process.is_gone(tags):
        status = "lost"
    made = sorted((name, ref) for name, ref in tags.items() if name.startswith(VERSION + "."))
    versions = list(dict.fromkeys(ref for _, ref in made))
    if tags.get(VERSION) and tags[VERSION] not in versions:
        versions.append(tags[VERSION])
    inputs = run.inputs.dataset_inputs if run.inputs is not None else []
    pid = tags.get(_process.PID, "")
    return RunRecord(
        id=info.run_id,
        name=info.run_name or tags.get(_NAME, ""),
        experiment=experiments.get(info.experiment_id, info.experiment_id),
        status=status,
        started=info.start_time / 1000,
        ended=info.end_time / 1000 if info.end_time is not None else None,
        params=dict(sorted(data.params.items())),
        metrics={name: number(value) for name, value in sorted(data.metrics.items())},
        tags={name: value for name, value in sorted(tags.items()) if not _is_ours(name)},
        datasets=tuple(sorted((dataset(each) for each in inputs), key=lambda d: (d.role, d.name, d.digest))),
        started_from=tags.get(STARTED_FROM, ""),
        versions=tuple(versions),
        user=tags.get(_USER, ""),
        host=tags.get(_process.HOST, ""),
        pid=int(pid) if pid.isdecimal() else None,
    )


def experiment_names(experiments: list[Experiment]) -> dict[str, str]:
    return {each.experiment_id: each.name for each in experiments}


def dataset_input(each: Dataset) -> DatasetInput:
    """The dataset for MLflow. It keeps the first source and size it is told of a name and digest in an experiment, for
    all runs that come after: what this run said of it goes along as tags of the input."""
    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import DatasetInput, InputTag

    words = {ROLE: each.role, FULL_DIGEST: each.digest, SOURCE: each.source}
    if each.rows is not None:
        words[ROWS] = str(each.rows)
    return DatasetInput(
        MlflowDataset(
            name=each.name,
            digest=each.digest[:_MOST_DIGEST],
            source_type=SOURCE_TYPE,
            source=json.dumps({"uri": each.source}),
            profile=json.dumps({"num_rows": each.rows} if each.rows is not None else {}),
        ),
        tags=[InputTag(name, value) for name, value in words.items()],
    )


def dataset(given: DatasetInput) -> Dataset:
    """The dataset from MLflow, also where MLflow's own functions logged it."""
    words = {tag.key: tag.value for tag in given.tags}
    profile = _parsed(given.dataset.profile)
    rows = words.get(ROWS, str(profile.get("num_rows", "")))
    source = _parsed(given.dataset.source)
    return Dataset(
        name=given.dataset.name,
        digest=words.get(FULL_DIGEST, given.dataset.digest),
        source=words.get(SOURCE, str(source.get("uri") or source.get("path") or source.get("url") or "")),
        rows=int(rows) if rows.isdecimal() else None,
        role=words.get(ROLE, ""),
    )


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_ours(name: str) -> bool:
    return (
        name in (_NAME, _USER, STARTED_FROM)
        or name.startswith((VERSION, "mlflow.log-model."))
        or name
        in (
            _process.HOST,
            _process.BOOT,
            _process.PID,
            _process.BEGAN,
        )
    )
