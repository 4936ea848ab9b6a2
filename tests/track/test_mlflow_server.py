"""MLflow's own server on the same data, and Pressroom tracking in a server. Real servers, on free ports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pressroom.kernel import NetworkError
from pressroom.testing.tracker_contract import TrackerContract
from pressroom.track import Tracker
from pressroom.track.backends.mlflow import Backend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: list[str], root: Path, url: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """The server, once it answers; ended with all its processes."""
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=root, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5) as health:
                    assert health.status == 200
                    break
            except OSError:
                assert process.poll() is None, (root / "server.log").read_text()
                assert time.monotonic() < deadline, (root / "server.log").read_text()
                time.sleep(0.2)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def asked(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/{path}", data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_the_pages_open_on_the_same_data(tmp_path: Path, prepared: Callable[[Path], None]) -> None:
    prepared(tmp_path)
    with Backend("sqlite:///.pressroom/mlflow.db", root=tmp_path).start("seen", params={"lr": 0.1}) as run:
        run.log_metrics({"loss": 0.5}, step=3)
        run.log_text("hello", "hello.txt")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # The group by itself, as `press` calls it.
    command = [sys.executable, "-c", "from pressroom.cli.runs import runs; runs()", "ui", "--port", str(port)]
    with serving(command, tmp_path, url):
        found = asked(url, f"api/2.0/mlflow/runs/get?run_id={run.id}")["run"]
        assert found["info"]["run_name"] == "seen"
        assert found["data"]["params"] == [{"key": "lr", "value": "0.1"}]
        assert found["data"]["metrics"][0]["value"] == 0.5
        listed = asked(url, f"api/2.0/mlflow/artifacts/list?run_id={run.id}")
        assert [each["path"] for each in listed["files"]] == ["hello.txt"]
        with urllib.request.urlopen(f"{url}/get-artifact?path=hello.txt&run_uuid={run.id}", timeout=60) as answer:
            assert answer.read() == b"hello"
        # Its models are those of Pressroom's registry.
        assert asked(url, "api/2.0/mlflow/registered-models/search?max_results=10") == {}
        asked(url, "api/2.0/mlflow/registered-models/create", {"name": "tiny"})
        (model,) = asked(url, "api/2.0/mlflow/registered-models/search?max_results=10")["registered_models"]
        assert model["name"] == "tiny"
        with urllib.request.urlopen(url, timeout=60) as page:
            assert b"<html" in page.read().lower()
        # Only this machine: the port is not open on other addresses of it.
        with open("/proc/net/tcp") as table:
            listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
        assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[tuple[str, Path]]:
    """The address of MLflow's server, and its database."""
    root = tmp_path_factory.mktemp("server")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    shutil.copyfile(empty_database, root / "mlflow.db")
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination", str(root / "files")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with serving(command, root, url, **quiet):
        yield url, root / "mlflow.db"


class TestTrackingInAServer(TrackerContract):
    """One server for the whole contract; its database is emptied before each test."""

    @pytest.fixture(autouse=True)
    def _emptied(self, server: tuple[str, Path], empty_database: Path) -> None:
        self.url, database = server
        with closing(sqlite3.connect(empty_database)) as empty, closing(sqlite3.connect(database)) as used:
            empty.backup(used)

    def open(self, root: Path) -> Tracker:
        return Backend(self.url, root=root)


def test_a_server_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(NetworkError, match="does not answer"):
        Backend(f"http://127.0.0.1:{free_port()}", root=tmp_path).list()
