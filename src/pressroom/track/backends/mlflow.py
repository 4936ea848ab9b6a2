"""Runs in MLflow: a database of its own (SQLite beside the workspace's, PostgreSQL …), or an MLflow server.

With a database, artifacts are files below `.pressroom/mlruns/`, unless the experiment says otherwise; a server decides
itself where it keeps them. Everything is MLflow's own format: `mlflow ui` and MLflow's clients open the same data.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pressroom.kernel import NotFoundError, OfflineError, PressroomError, SettingsError, did_you_mean, locks
from pressroom.track import _limits, _mlflow_models, _process
from pressroom.track import _mlflow_records as records
from pressroom.track._mlflow_access import QUIET, client, prepare, translated
from pressroom.track._mlflow_run import MlflowRun
from pressroom.track.base import Artifact, Dataset, Point, Run, RunRecord, Tracker, TrackError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# MLflow gives at most so many runs an answer.
_AT_ONCE = 1000


class Backend(Tracker):
    schemes = (*_DATABASES, *_SERVERS)

    def __init__(self, url: str, *, root: Path, offline: bool = False) -> None:
        scheme, _, rest = url.partition("://")
        self.place = _shown(url)
        if scheme.partition("+")[0] not in self.schemes or not rest:
            raise SettingsError(
                f"tracking = {self.place!r} is not a place that MLflow opens",
                hint=f"Its scheme is one of {', '.join(self.schemes)}.",
            )
        self._server = scheme in _SERVERS
        if self._server and offline and urlsplit(url).hostname not in _LOOPBACK:
            raise OfflineError(
                f"tracking = {self.place!r} needs the network, and `offline` is on",
                hint="Track in a local database (sqlite:///.pressroom/mlflow.db), or turn `offline` off.",
            )
        self._folder = root / ".pressroom"
        self._file: Path | None = None
        if scheme == "sqlite":
            self._file = root / rest.removeprefix("/")
            url = f"sqlite:///{self._file}"
        self.url = url

    @cached_property
    def _client(self) -> MlflowClient:
        """The client; the database is made on first use."""
        prepare()
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        # Two that make the tables of a new database at once would get into each other's way.
        with self._alone(), translated(self.place):
            found = client(self.url)
            if not self._server:
                found.search_experiments(max_results=1)
            return found

    @property
    def artifacts_url(self) -> str:
        """Where experiments that do not say otherwise keep their artifacts; empty: the server knows."""
        return "" if self._server else (self._folder / "mlruns").as_uri()

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
        own = _limits.checked_tags(tags or {}) | _process.this_process() | _who()
        if started_from:
            _mlflow_models.checked(started_from)
        id = self._experiment(experiment)
        with translated(self.place):
            made = self._client.create_run(id, tags=own, run_name=name or None)
        run = MlflowRun(self._client, self.place, made.info.run_id)
        try:
            if started_from:
                run.set_out_from(started_from)
            if config is not None:
                run.log_config(config)
            if params:
                run.log_params(params)
            for dataset in datasets:
                run.log_dataset(dataset)
        except PressroomError:
            run.finish("failed")
            raise
        return run

    def get(self, id: str) -> RunRecord:
        found = self._found(id)
        return replace(found, params={name: self._whole(found.id, text) for name, text in found.params.items()})

    def list(
        self, *, experiment: str | None = None, status: str | None = None, most: int | None = None
    ) -> Sequence[RunRecord]:
        # Whoever only looks does not wait for MLflow to make its tables.
        experiments = {} if self._file is not None and not self._file.exists() else self._experiments()
        if experiment is not None:
            known = {name: id for id, name in experiments.items()}
            if experiment not in known:
                raise NotFoundError(
                    f"there is no experiment called {experiment!r}",
                    hint=did_you_mean(experiment, known, otherwise=f"There are: {', '.join(known) or 'none'}."),
                    asked=experiment,
                )
            experiments = {known[experiment]: experiment}
        found: list[RunRecord] = []
        page = None
        while experiments and (most is None or len(found) < most):
            with translated(self.place):
                runs = self._client.search_runs(
                    [*experiments],
                    max_results=_AT_ONCE if most is None or status else min(most, _AT_ONCE),
                    order_by=["attributes.start_time DESC"],
                    page_token=page,
                )
            of_page = (records.record(run, experiments) for run in runs)
            found.extend(each for each in of_page if status in (None, each.status))
            page = runs.token
            if not page:
                break
        return found[:most]

    def history(self, id: str, metric: str) -> Sequence[Point]:
        found = self._found(id)
        with translated(self.place):
            points = [records.point(each) for each in self._client.get_metric_history(found.id, metric)]
        if not points:
            raise NotFoundError(
                f"the run {found.name or found.id} has no metric {metric!r}",
                hint=did_you_mean(metric, found.metrics, otherwise=f"It has: {', '.join(found.metrics) or 'none'}."),
                asked=metric,
            )
        return sorted(points, key=lambda point: (point.step, point.at))

    def artifacts(self, id: str) -> Sequence[Artifact]:
        found = self._found(id)
        files: list[Artifact] = []
        folders: list[str | None] = [None]
        with translated(self.place):
            for folder in folders:  # grows while it is walked
                for each in self._client.list_artifacts(found.id, folder):
                    if each.is_dir:
                        folders.append(each.path)
                    else:
                        files.append(Artifact(each.path, each.file_size))
        return sorted(files, key=lambda file: file.path)

    def fetch(self, id: str, path: str, into: Path) -> Path:
        found = self._found(id)
        if path not in (known := [file.path for file in self.artifacts(found.id)]):
            raise NotFoundError(
                f"the run {found.name or found.id} has no artifact {path!r}",
                hint=did_you_mean(path, known, otherwise=f"It has: {', '.join(known) or 'none'}."),
                asked=path,
            )
        into.mkdir(parents=True, exist_ok=True)
        with translated(self.place):
            return Path(self._client.download_artifacts(found.id, path, str(into)))

    def link(self, id: str, version: str) -> None:
        found = self._found(id)
        with translated(self.place, run=found.id):
            _mlflow_models.made(self._client, found.id, version)

    def server_arguments(self, *, host: str, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """The command that starts MLflow's server on this data, with Pressroom's registry as its own, and its
        environment; no command where the data is on a server already."""
        prepare()
        if self._server:
            return (), {}
        assert self._client  # the database is there, with all its tables
        command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
        # In the environment, which other users of the machine do not see: the URL may hold a password.
        places = {
            "MLFLOW_BACKEND_STORE_URI": self.url,
            "MLFLOW_REGISTRY_STORE_URI": f"pressroom://{self._folder.parent}",
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": self.artifacts_url,
            "MLFLOW_SERVE_ARTIFACTS": "false",
        }
        return command, QUIET | places | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def close(self) -> None:
        """MLflow shares its connections among all clients of a process, and keeps them."""

    def _alone(self) -> AbstractContextManager[None]:
        path = self._folder / "locks" / "tracking.lock"
        return locks.locked(path, purpose="open the tracking database", wait_s=None)

    def _experiment(self, name: str) -> str:
        """The id of an experiment, which is made where it is not there."""
        if not name.strip():
            raise TrackError("an experiment has a name", hint="Leave it out for the one called pressroom.")
        mlflow = self._client  # before the lock, which it takes itself
        with translated(self.place), self._alone():
            found = mlflow.get_experiment_by_name(name)
            if found is None:
                where = f"{self.artifacts_url}/{hashlib.sha256(name.encode()).hexdigest()[:16]}"
                return str(mlflow.create_experiment(name, where if not self._server else None))
            if found.lifecycle_stage != "active":
                raise TrackError(
                    f"the experiment {name!r} was deleted", hint="Restore it in MLflow, or use another name."
                )
            return str(found.experiment_id)

    def _experiments(self) -> dict[str, str]:
        found: dict[str, str] = {}
        page = None
        while True:
            with translated(self.place):
                some = self._client.search_experiments(max_results=_AT_ONCE, page_token=page)
            found.update(records.experiment_names(list(some)))
            page = some.token
            if not page:
                return found

    def _found(self, id: str) -> RunRecord:
        """The run, with pointers in place of long params."""
        if len(id) == 32 and set(id) <= set("0123456789abcdef"):
            with translated(self.place, asked=id):
                return records.record(self._client.get_run(id), self._experiments())
        everything = self.list()
        found = [each for each in everything if each.name == id] or [
            each for each in everything if len(id) >= 4 and each.id.startswith(id)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise TrackError(
                f"{id!r} is ambiguous: it means {', '.join(each.id[:12] for each in found[:5])}",
                hint="Write the id, or more of it.",
                asked=id,
            )
        known = [name for each in everything for name in (each.name, each.id)]
        raise NotFoundError(
            f"there is no run {id!r}", hint=did_you_mean(id, known, otherwise="`press runs` lists them."), asked=id
        )

    def _whole(self, run: str, text: str) -> str:
        """A param as it was given."""
        pointed = records.pointed(text)
        if pointed is None:
            return text
        path, sha256 = pointed
        with tempfile.TemporaryDirectory() as made, translated(self.place, run=run):
            data = Path(self._client.download_artifacts(run, path, made)).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise TrackError(
                f"the artifact {path} of run {run} is not what its param says: it was changed",
                hint="Restore it from a copy; the param has its SHA-256.",
                run=run,
                path=path,
            )
        return data.decode()


def _who() -> dict[str, str]:
    """What MLflow's pages show of where a run came from."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid-{os.getuid()}"
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return {"mlflow.user": user, "mlflow.source.name": name, "mlflow.source.type": "LOCAL"}


def _shown(url: str) -> str:
    """The URL without a password."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    return parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}").geturl()
