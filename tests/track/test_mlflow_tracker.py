"""Tracking in MLflow's database: the contract, and what only this backend can show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pressroom.kernel import (
    MissingDependencyError,
    NotFoundError,
    OfflineError,
    SettingsError,
    Workspace,
    WorkspaceError,
)
from pressroom.testing.tracker_contract import BASE, TUNED, TrackerContract
from pressroom.track import Tracker, TrackError, open_tracker
from pressroom.track.backends.mlflow import Backend

URL = "sqlite:///.pressroom/mlflow.db"

# MLflow asks SQLAlchemy for something that is going away there.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


class TestMlflowInSqlite(TrackerContract):
    @pytest.fixture(autouse=True)
    def _with_tables(self, prepared: Callable[[Path], None], root: Path) -> None:
        prepared(root)

    def open(self, root: Path) -> Tracker:
        return Backend(URL, root=root)


@pytest.fixture
def tracker(tmp_path: Path, prepared: Callable[[Path], None]) -> Backend:
    prepared(tmp_path)
    return Backend(URL, root=tmp_path)


def test_the_workspace_opens_it_where_its_settings_say(tmp_path: Path, prepared: Callable[[Path], None]) -> None:
    prepared(tmp_path)
    with Workspace.open(tmp_path, environ={}) as workspace, open_tracker(workspace) as tracker:
        with tracker.start("here") as run:
            run.log_text("hello", "hello.txt")
        assert [each.name for each in tracker.list()] == ["here"]
    files = [path for path in (tmp_path / ".pressroom" / "mlruns").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["hello.txt"]


def test_looking_at_an_empty_workspace_makes_nothing(tmp_path: Path) -> None:
    tracker = Backend(URL, root=tmp_path)
    assert tracker.list() == []
    with pytest.raises(NotFoundError):
        tracker.get("nothing")
    assert not (tmp_path / ".pressroom" / "mlflow.db").exists()


def test_mlflow_itself_reads_what_was_tracked(tracker: Backend) -> None:
    import mlflow

    with tracker.start("seen", params={"lr": 0.1}, started_from=BASE) as run:
        run.log_metrics({"loss": 0.5}, step=3)
        run.link(TUNED.format(1))
    client = mlflow.MlflowClient(tracking_uri=tracker.url)
    found = client.get_run(run.id)
    assert (found.info.run_name, found.info.status) == ("seen", "FINISHED")
    assert (found.data.params, found.data.metrics) == ({"lr": "0.1"}, {"loss": 0.5})
    (start,), (end,) = found.inputs.model_inputs, found.outputs.model_outputs
    assert client.get_logged_model(start.model_id).tags["pressroom.version"] == BASE
    assert client.get_logged_model(end.model_id).tags["pressroom.version"] == TUNED.format(1)
    # One logged model stands for a version, however many runs start from it.
    with tracker.start("again", started_from=BASE) as other:
        pass
    assert client.get_run(other.id).inputs.model_inputs[0].model_id == start.model_id


def test_what_mlflow_itself_tracked_is_read(tracker: Backend) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=tracker.url)
    made = client.create_run(client.create_experiment("theirs", str(tracker.artifacts_url)), run_name="theirs")
    client.log_param(made.info.run_id, "lr", 0.1)
    record = tracker.get("theirs")
    # Nobody knows which process it is of: it may well run.
    assert (record.status, record.params, record.pid) == ("running", {"lr": "0.1"}, None)


def test_an_altered_long_param_is_said(tracker: Backend, tmp_path: Path) -> None:
    with tracker.start(params={"text": "x" * 7000}) as run:
        pass
    (file,) = (tmp_path / ".pressroom" / "mlruns").rglob("text.txt")
    file.write_text("y" * 7000)
    with pytest.raises(TrackError, match="was changed"):
        tracker.get(run.id)
    assert tracker.list()[0].params["text"].startswith("sha256-")


def test_a_text_that_looks_like_a_pointer_is_only_one_where_mlflow_holds_it(tracker: Backend) -> None:
    text = "sha256-" + "0" * 64 + " of 7000 characters in params/other.txt"
    with tracker.start() as run, pytest.raises(TrackError, match="stands for"):
        run.log_params({"text": text})


@pytest.mark.parametrize("url", ["redis://x", "sqlite://", "file:///tmp/x"])
def test_a_place_that_mlflow_does_not_open(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=url.partition(":")[0]):
        Backend(url, root=tmp_path)


def test_offline_has_no_server_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match=r"mlflow\.example\.org"):
        Backend("https://mlflow.example.org", root=tmp_path, offline=True)
    Backend("http://127.0.0.1:5000", root=tmp_path, offline=True)


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    place = Backend("postgresql://me:secret@db.example.org/runs", root=tmp_path).place
    assert place == "postgresql://me:***@db.example.org/runs"


@pytest.mark.parametrize("content", [b"this is no database" * 100])
def test_a_damaged_database_is_said_plainly(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".pressroom").mkdir()
    (tmp_path / ".pressroom" / "mlflow.db").write_bytes(content)
    with pytest.raises(WorkspaceError, match=r"mlflow\.db"):
        Backend(URL, root=tmp_path).list()


# What runs in a process of its own.

_PRELUDE = """
import os, sys, time
from pathlib import Path
from pressroom.track.backends.mlflow import Backend
tracker = Backend("sqlite:///.pressroom/mlflow.db", root=Path(sys.argv[1]))
"""


def _environment(**more: str) -> dict[str, str]:
    """Of somebody who set nothing: with a sign of tests in it MLflow would be quiet by itself."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | more


def _start(program: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + program, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )


def _ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def test_nothing_goes_out_and_importing_the_part_imports_no_mlflow(
    tmp_path: Path, prepared: Callable[[Path], None]
) -> None:
    prepared(tmp_path)
    out = _ended(
        _start(
            """
import pressroom.track
assert "mlflow" not in sys.modules
reached = []
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        reached.append(arguments[1:] if event == "socket.connect" else arguments)
sys.addaudithook(audit)
with tracker.start("quiet", params={"a": 1}) as run:
    run.log_metrics({"loss": 1.0})
    run.log_text("x", "x.txt")
from mlflow.telemetry import get_telemetry_client
print(get_telemetry_client(), reached)
""",
            tmp_path,
        )
    )
    assert out == "None []\n"


@pytest.mark.slow
def test_telemetry_that_somebody_else_turned_on_is_turned_off(tmp_path: Path, prepared: Callable[[Path], None]) -> None:
    prepared(tmp_path)
    program = """
import socket
def nobody(*arguments, **options):
    raise OSError("no network in this test")
socket.getaddrinfo = nobody
import mlflow
from mlflow.telemetry import get_telemetry_client
before = get_telemetry_client()
tracker.start().finish()
print(before is None, get_telemetry_client())
"""
    assert _ended(_start(program, tmp_path)) == "False None\n"


def test_a_killed_run_is_lost_and_keeps_what_it_was_told(tmp_path: Path, prepared: Callable[[Path], None]) -> None:
    prepared(tmp_path)
    process = _start(
        """
run = tracker.start("doomed", params={"lr": 0.1, "text": "x" * 9000})
run.log_text("kept", "kept.txt")
for step in range(100):
    run.log_metrics({"loss": 1.0}, step=step)
run.flush()
run.log_metrics({"later": 1.0})
print(run.id, flush=True)
time.sleep(600)
""",
        tmp_path,
    )
    assert process.stdout is not None
    id = process.stdout.readline().strip()
    tracker = Backend(URL, root=tmp_path)
    assert tracker.get(id).status == "running"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    record = tracker.get(id)
    assert (record.status, record.ended, record.params["text"]) == ("lost", None, "x" * 9000)
    assert len(tracker.history(id, "loss")) == 100
    assert [each.name for each in tracker.list(status="lost")] == ["doomed"]
    assert tracker.fetch(id, "kept.txt", tmp_path / "out").read_text() == "kept"
    # It may still be said what it made.
    tracker.link(id, TUNED.format(1))
    assert tracker.get(id).versions == (TUNED.format(1),)


@pytest.mark.slow
def test_a_program_that_does_not_finish_its_run_keeps_its_metrics(
    tmp_path: Path, prepared: Callable[[Path], None]
) -> None:
    prepared(tmp_path)
    out = _ended(_start("run = tracker.start()\nrun.log_metrics({'loss': 1.0})\nprint(run.id)", tmp_path))
    record = Backend(URL, root=tmp_path).get(out.strip())
    assert (record.status, record.metrics) == ("lost", {"loss": 1.0})


@pytest.mark.slow
def test_processes_that_open_a_new_place_at_once(tmp_path: Path) -> None:
    """The tables do not exist yet, and everybody wants to make them."""
    program = """
for number in range(3):
    with tracker.start(f"run-{number}", experiment="shared") as run:
        for step in range(50):
            run.log_metrics({"loss": float(step)}, step=step)
"""
    for process in [_start(program, tmp_path) for _ in range(3)]:
        _ended(process)
    runs = Backend(URL, root=tmp_path).list(experiment="shared")
    assert [run.status for run in runs] == ["finished"] * 9
    assert all(run.metrics == {"loss": 49.0} for run in runs)


@pytest.mark.slow
def test_runs_killed_at_any_moment_leave_a_place_that_works(tmp_path: Path, prepared: Callable[[Path], None]) -> None:
    prepared(tmp_path)
    program = """
number = 0
tracker.start().finish()
print("go", flush=True)
while True:
    number += 1
    with tracker.start(params={"text": "x" * 7000}, config={"n": number}) as run:
        run.log_metrics({"loss": 1.0})
"""
    for round in range(6):
        process = _start(program, tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.13 * round)
        process.kill()
        process.communicate()
    tracker = Backend(URL, root=tmp_path)
    runs = tracker.list()
    assert runs and {run.status for run in runs} <= {"finished", "lost"}
    for run in runs:
        whole = tracker.get(run.id)
        assert whole.params.get("text", "x" * 7000) == "x" * 7000
        if run.status == "finished" and whole.params:
            assert whole.metrics == {"loss": 1.0} and set(whole.params) == {"text", "config"}
        if "config" in whole.params:
            kept = tracker.fetch(run.id, "config.json", tmp_path / run.id)
            assert json.loads(kept.read_text())["n"] >= 1


def test_without_mlflow_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependencyError, match="mlflow") as error:
        Backend(URL, root=tmp_path).start()
    assert "pressroom[track]" in error.value.hint


@pytest.mark.parametrize("text", ["a NUL \0 in it", "half a character \ud800", "both \ud800\0"])
def test_a_run_ends_whatever_its_error_says(tracker: Backend, text: str) -> None:
    with pytest.raises(ValueError, match=r"in it|half|both"), tracker.start("odd") as run:
        run.log_metrics({"loss": 1.0})
        raise ValueError(text)
    found = tracker.get(run.id)
    assert found.status == "failed" and found.metrics["loss"] == 1.0
    assert found.tags["pressroom.error"].startswith("ValueError: ")
