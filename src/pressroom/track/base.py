"""The contract of tracking: runs that are started, told things, finished, found again and compared.

PressroomError
└── TrackError              what was to be recorded cannot be kept as it was given
    └── ParamChangedError   a param that has a value already was to get another one

Promises every backend keeps:
- Nothing is cut or changed in silence: what does not fit where it was sent is kept whole elsewhere and given back
  whole, or refused with a TrackError.
- When `finish` returns, or a `with` block ends, everything the run was told is kept. Of a process that is killed, at
  most the metrics of its last second are missing; the run itself, its params and its artifacts are there.
- A param has one value for good: the same value again is nothing new, another one is a ParamChangedError.
- A metric is a float at a step (a whole number) and a time. NaN and the infinities are kept as what they are: a loss
  that left the numbers is a finding. JSON has none of them, so they are the strings "nan", "inf" and "-inf" there.
- Threads may share a run, and processes a place.
"""

from __future__ import annotations

import math
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from pressroom.kernel.errors import PressroomError

# `lost`: it was never finished, and the process that ran it on this machine is gone.
STATUSES = ("running", "finished", "failed", "killed", "lost")


class TrackError(PressroomError):
    code = "track"


class ParamChangedError(TrackError):
    code = "param_changed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Data that a run read: its `digest` (`blake3-…`, `sha256-…` or any text), where it came from, how many `rows`
    (None: not counted) and what it was for (`role`: train, validation, test …)."""

    name: str
    digest: str
    source: str = ""
    rows: int | None = None
    role: str = "train"


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a metric: at which step, and when in seconds since the epoch."""

    step: int
    value: float
    at: float


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of a run: its relative POSIX `path` and its `size` in bytes (None: the place does not say)."""

    path: str
    size: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What is on record of a run. Times in seconds since the epoch; `metrics` holds the last value of each.

    `started_from` is the version the run set out from and `versions` are those it made, as references. `host` and
    `pid` say where it ran.
    """

    id: str
    name: str
    experiment: str
    status: str
    started: float
    ended: float | None = None
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: tuple[Dataset, ...] = ()
    started_from: str = ""
    versions: tuple[str, ...] = ()
    user: str = ""
    host: str = ""
    pid: int | None = None

    @property
    def seconds(self) -> float | None:
        """How long it ran; None while it runs, and where it is lost."""
        return None if self.ended is None else self.ended - self.started

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON for scripts."""
        return {
            "id": self.id,
            "name": self.name,
            "experiment": self.experiment,
            "status": self.status,
            "started": self.started,
            "ended": self.ended,
            "seconds": self.seconds,
            "params": self.params,
            "metrics": {name: json_number(value) for name, value in self.metrics.items()},
            "tags": self.tags,
            "datasets": [
                {"name": d.name, "digest": d.digest, "source": d.source, "rows": d.rows, "role": d.role}
                for d in self.datasets
            ],
            "started_from": self.started_from,
            "versions": list(self.versions),
            "user": self.user,
            "host": self.host,
            "pid": self.pid,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Runs side by side. Each value stands in the order of `runs`; None where a run does not have it.

    `differing` holds the params that are not the same in all runs, `same` the others; `differences` of a metric are
    to the first run (None where one of the two has no finite value).
    """

    runs: tuple[RunRecord, ...]
    differing: dict[str, tuple[str | None, ...]]
    same: dict[str, str]
    metrics: dict[str, tuple[float | None, ...]]
    differences: dict[str, tuple[float | None, ...]]


class Run(ABC):
    """A run under way. With `with` it is finished at the end: as finished, as failed with the error on record, or as
    killed where Ctrl-C ended it."""

    id: str

    @abstractmethod
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keep values that hold for the whole run, as text. Long ones are kept whole, too.

        Raises:
            ParamChangedError: one of them has another value already; none of them is kept.
            TrackError: a name cannot be kept, or the run is finished.
        """

    @abstractmethod
    def log_config(self, config: Mapping[str, Any], name: str = "config") -> str:
        """Keep a whole configuration as the artifact `NAME.json`, and its digest (returned) as the param NAME.

        Raises:
            ParamChangedError: the run has another configuration of that name.
            TrackError: it is not made of JSON's values.
        """

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0, at: float | None = None) -> None:
        """Keep values of this step; `at` is in seconds since the epoch. They are on record a second later, or at once
        where `flush` is called.

        Raises:
            TrackError: a name or value cannot be kept, the run is finished, or what was logged before could not be
                written.
        """

    @abstractmethod
    def log_artifact(self, path: Path, to: str = "") -> None:
        """Keep a file, or a folder with all that is in it, under the folder `to`."""

    @abstractmethod
    def log_text(self, text: str, path: str) -> None:
        """Keep a text as the artifact of that path."""

    @abstractmethod
    def log_dataset(self, dataset: Dataset) -> None:
        """Keep what the run reads."""

    @abstractmethod
    def tag(self, tags: Mapping[str, str]) -> None:
        """Keep words about the run; they may change.

        Raises:
            TrackError: a name or a value cannot be kept whole.
        """

    @abstractmethod
    def link(self, version: str) -> None:
        """Say that the run made this version (`name:number@sha256-…`)."""

    @abstractmethod
    def flush(self) -> None:
        """Return when everything that was logged is on record."""

    @abstractmethod
    def finish(self, status: str = "finished") -> None:
        """End it as `finished`, `failed` or `killed`. Once ended, nothing is added. Ending twice does nothing."""

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            self.finish()
            return
        status = "killed" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            try:
                self.tag({"pressroom.error": _plain(f"{type(error).__name__}: {error}")[:1000]})
                self.log_text(_plain("".join(traceback.format_exception(error))), "error.txt")
            finally:
                self.finish(status)
        except PressroomError as second:
            # The first error is the one to be seen; that it could not be recorded goes with it.
            error.add_note(f"and the run {self.id} could not be marked as {status}: {second.message}")


def _plain(text: str) -> str:
    """The text without what a database has no room for: NUL, and half a character."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


class Tracker(ABC):
    """Where runs are on record. Made by `pressroom.track.open_tracker`.

    A backend is one file under `track/backends/` with a subclass called `Backend` that is made as
    `Backend(url, root=directory of the workspace, offline=…)` and raises SettingsError for a URL it cannot use.
    `schemes` are the schemes of the URLs it is for.
    """

    schemes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def start(
        self,
        name: str = "",
        *,
        experiment: str = "pressroom",
        params: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        datasets: Iterable[Dataset] = (),
        started_from: str = "",
    ) -> Run:
        """Begin a run; without a name it gets one. `started_from` is the version it sets out from."""

    @abstractmethod
    def get(self, id: str) -> RunRecord:
        """What is on record of a run: by its id, the beginning of it (4 characters or more), or its name.

        Raises:
            NotFoundError: there is none; the message names the nearest.
            TrackError: the beginning or the name is that of several.
        """

    @abstractmethod
    def list(
        self, *, experiment: str | None = None, status: str | None = None, most: int | None = None
    ) -> Sequence[RunRecord]:
        """The runs of an experiment, or all, newest first. Long params are given as what points to them.

        Raises:
            NotFoundError: there is no such experiment.
        """

    @abstractmethod
    def history(self, id: str, metric: str) -> Sequence[Point]:
        """Every value of a metric, in the order of steps and times.

        Raises:
            NotFoundError: there is no such run, or it has no such metric.
        """

    @abstractmethod
    def artifacts(self, id: str) -> Sequence[Artifact]:
        """The files of a run, in the order of their paths. Raises NotFoundError."""

    @abstractmethod
    def fetch(self, id: str, path: str, into: Path) -> Path:
        """Copy an artifact into a folder; returns where it is then. Raises NotFoundError."""

    @abstractmethod
    def link(self, id: str, version: str) -> None:
        """Say of a run, also a finished one, that it made this version."""

    @abstractmethod
    def close(self) -> None: ...

    def compare(self, ids: Iterable[str]) -> Comparison:
        """Runs side by side. Raises as `get` does."""
        return compare_runs([self.get(id) for id in ids])

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def compare_runs(runs: Sequence[RunRecord]) -> Comparison:
    """Runs side by side: which params differ, and each metric with its difference to the first run."""
    params = sorted({name for run in runs for name in run.params})
    metrics = sorted({name for run in runs for name in run.metrics})
    of_params = {name: tuple(run.params.get(name) for run in runs) for name in params}
    of_metrics = {name: tuple(run.metrics.get(name) for run in runs) for name in metrics}
    return Comparison(
        runs=tuple(runs),
        differing={name: values for name, values in of_params.items() if len(set(values)) > 1},
        same={name: str(values[0]) for name, values in of_params.items() if len(set(values)) == 1},
        metrics=of_metrics,
        differences={
            name: tuple(_difference(values[0], value) for value in values) for name, values in of_metrics.items()
        },
    )


def json_number(value: float | None) -> float | str | None:
    """The value as JSON can have it: NaN and the infinities as text."""
    return value if value is None or math.isfinite(value) else str(value)


def _difference(first: float | None, value: float | None) -> float | None:
    if first is None or value is None or not (math.isfinite(first) and math.isfinite(value)):
        return None
    return value - first
