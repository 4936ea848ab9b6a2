"""A run under way in MLflow."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.kernel.errors import NotFoundError
from pressroom.track import _limits, _mlflow_models
from pressroom.track import _mlflow_records as records
from pressroom.track._batches import Batches
from pressroom.track._mlflow_access import translated
from pressroom.track.base import Dataset, ParamChangedError, Run, TrackError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_log = logging.getLogger(__name__)


class MlflowRun(Run):
    def __init__(self, client: MlflowClient, place: str, id: str) -> None:
        self.id = id
        self._client = client
        self._place = place
        self._params: dict[str, str] = {}
        self._status = ""
        self._lock = threading.RLock()
        self._metrics: Batches[Metric] = Batches(self._write_metrics, most=_limits.METRICS_AT_ONCE)

    def log_params(self, params: Mapping[str, Any]) -> None:
        texts = {_limits.checked_name(name, "param"): str(value) for name, value in params.items()}
        if any("\0" in text for text in texts.values()):
            raise TrackError("a param holds a NUL character, which databases do not keep")
        for name, text in texts.items():
            if records.pointed(text) is not None:
                raise TrackError(
                    f"the param {name!r} is written as what stands for a long value: {_short(text)}",
                    hint="Write it in other words.",
                    param=name,
                )
        with self._open():
            self._not_changed(texts)
            for name, text in texts.items():
                if len(text) > _limits.MOST_PARAM:
                    texts[name] = self._kept_aside(name, text)
            self._write_params(texts)

    def log_config(self, config: Mapping[str, Any], name: str = "config") -> str:
        _limits.checked_name(name, "param")
        text = _limits.canonical(config, name)
        digest = "sha256-" + hashlib.sha256(text.encode()).hexdigest()
        with self._open():
            self._not_changed({name: digest})
            # The artifact first: a digest on record always has its text.
            self._write_text(text, f"{name}.json")
            self._write_params({name: digest})
        return digest

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0, at: float | None = None) -> None:
        from mlflow.entities import Metric

        milliseconds = int((time.time() if at is None else at) * 1000)
        if milliseconds < 0:
            raise TrackError(f"a metric cannot be {-milliseconds / 1000:.0f} s older than 1970")
        values = {name: _limits.checked_metric(name, value, step) for name, value in metrics.items()}
        with self._open():
            self._metrics.add([Metric(name, value, milliseconds, step) for name, value in values.items()])

    def log_artifact(self, path: Path, to: str = "") -> None:
        path = Path(path)
        if not path.exists():
            raise NotFoundError(f"there is no file {path}", hint="Check the path.", asked=str(path))
        with self._open(), translated(self._place, run=self.id):
            if path.is_dir():
                self._client.log_artifacts(self.id, str(path), f"{to}/{path.name}" if to else path.name)
            else:
                self._client.log_artifact(self.id, str(path), to or None)

    def log_text(self, text: str, path: str) -> None:
        with self._open():
            self._write_text(text, path)

    def log_dataset(self, dataset: Dataset) -> None:
        _limits.checked_dataset_words(dataset.name, dataset.digest, dataset.source, dataset.role)
        with self._open(), translated(self._place, run=self.id):
            self._client.log_inputs(self.id, datasets=[records.dataset_input(dataset)])

    def tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        checked = [RunTag(name, value) for name, value in _limits.checked_tags(tags).items()]
        with self._open(), translated(self._place, run=self.id):
            for start in range(0, len(checked), _limits.PARAMS_AT_ONCE):
                self._client.log_batch(self.id, tags=checked[start : start + _limits.PARAMS_AT_ONCE])

    def link(self, version: str) -> None:
        with self._open(), translated(self._place, run=self.id):
            _mlflow_models.made(self._client, self.id, version)

    def set_out_from(self, version: str) -> None:
        """Keep the version that the run started from."""
        self.tag({records.STARTED_FROM: version})
        with self._open(), translated(self._place, run=self.id):
            _mlflow_models.started_from(self._client, self.id, version)

    def flush(self) -> None:
        self._metrics.flush()

    def finish(self, status: str = "finished") -> None:
        if status not in records.TERMINAL:
            raise TrackError(f"a run does not end as {status!r}", hint=f"It ends as {', '.join(records.TERMINAL)}.")
        with self._lock:
            if self._status:
                return
            self._status = status
            try:
                self._metrics.close()
            finally:
                with translated(self._place, run=self.id):
                    self._client.set_terminated(self.id, records.TERMINAL[status])

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Held while something is added, so that nothing is after the end."""
        with self._lock:
            if self._status:
                raise TrackError(f"the run {self.id} is {self._status}: nothing is added to it", run=self.id)
            yield

    def _not_changed(self, texts: Mapping[str, str]) -> None:
        """Raise where a param has another value. What other processes wrote is looked up once it matters."""
        if not self._differing(texts) and all(name in self._params for name in texts):
            return
        with translated(self._place, run=self.id):
            self._params.update(self._client.get_run(self.id).data.params)
        changed = self._differing(texts)
        if changed:
            name = changed[0]
            raise ParamChangedError(
                f"the param {name!r} of run {self.id} is {_short(self._params[name])} already, and cannot become "
                f"{_short(texts[name])}",
                hint="A param holds for the whole run. What changes is a metric; another try is another run.",
                run=self.id,
                params=changed,
            )

    def _differing(self, texts: Mapping[str, str]) -> list[str]:
        return [name for name, text in texts.items() if name in self._params and not _same(self._params[name], text)]

    def _kept_aside(self, name: str, text: str) -> str:
        """A long value as an artifact; returns what points to it."""
        path = f"params/{name.replace('/', '_').replace(':', '_')}.txt"
        self._write_text(text, path)
        return records.pointer(_sha256(text), len(text), path)

    def _write_params(self, texts: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        pairs = list(texts.items())
        with translated(self._place, run=self.id):
            for start in range(0, len(pairs), _limits.PARAMS_AT_ONCE):
                some = pairs[start : start + _limits.PARAMS_AT_ONCE]
                self._client.log_batch(self.id, params=[Param(name, text) for name, text in some])
        self._params.update(texts)

    def _write_text(self, text: str, path: str) -> None:
        folder, _, name = path.rpartition("/")
        # MLflow's own log_text writes with the locale's line ends; these bytes are what the digest is of.
        with tempfile.TemporaryDirectory() as made, translated(self._place, run=self.id):
            file = Path(made, name)
            file.write_bytes(text.encode())
            self._client.log_artifact(self.id, str(file), folder or None)

    def _write_metrics(self, metrics: Sequence[Metric]) -> None:
        with translated(self._place, run=self.id):
            self._client.log_batch(self.id, metrics=list(metrics))


def _same(kept: str, text: str) -> bool:
    pointed = records.pointed(kept)
    return kept == text or (pointed is not None and pointed[1] == _sha256(text))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")
