"""MLflow on Pressroom: artifacts in the store, and its model registry on ours, through MLflow's own functions."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.kernel import Keys, NotFoundError, Workspace
from pressroom.registry import FileEntry, Registry
from pressroom.registry.floors import Bound

# MLflow is imported by the plugins; nothing may go out of a test.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pressroom.registry.mlflow_artifacts import PressroomArtifactRepository
from pressroom.registry.mlflow_models import PressroomModelRegistryStore

# MLflow asks SQLAlchemy for something that is going away there, and says of its own stages that they are.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0. Model registry stages:FutureWarning"),
]


@pytest.fixture(scope="session")
def empty_tracking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry(workspace)


@pytest.fixture
def client(workspace: Workspace, empty_tracking: Path, tmp_path: Path) -> Iterator[mlflow.MlflowClient]:
    """MLflow, tracking in a database of its own, with this workspace as its registry."""
    shutil.copyfile(empty_tracking, tmp_path / "tracking.db")
    tracking = f"sqlite:///{tmp_path / 'tracking.db'}"
    before = (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), dict(os.environ))
    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(f"pressroom://{workspace.root}")
    yield mlflow.MlflowClient()
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri("")
    for name in set(os.environ) - set(before[2]):
        del os.environ[name]


@pytest.fixture
def experiment(client: mlflow.MlflowClient, workspace: Workspace) -> str:
    made: str = client.create_experiment("tuning", artifact_location=f"pressroom://{workspace.root}")
    return made


def repository(workspace: Workspace, path: str = "1/abc/artifacts") -> PressroomArtifactRepository:
    found = get_artifact_repository(f"pressroom://{workspace.root}/{path}")
    assert isinstance(found, PressroomArtifactRepository)
    return found


def folder_with(tmp_path: Path, files: dict[str, bytes]) -> Path:
    folder = tmp_path / "given"
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def run_with(client: mlflow.MlflowClient, experiment: str, folder: Path) -> tuple[str, str]:
    """A run with the files of a folder as the artifacts `model/…`; its id, and where they are."""
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(folder), "model")
    return run.info.run_id, f"{run.info.artifact_uri}/model"


MODEL = {"MLmodel": b"flavors: {}\n", "model/weights.bin.json": b"{}", "model/config.json": b'{"a": 1}'}


# Artifacts.


def test_files_go_into_the_store_and_come_back(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    files = {"a.bin": os.urandom(300_000), "deep/er/b.txt": b"b", "deep/empty": b"", "ünï code.txt": b"u"}
    repo = repository(workspace)
    repo.log_artifacts(str(folder_with(tmp_path, files)), "model")
    repo.log_artifact(str(tmp_path / "given" / "a.bin"))
    listed = {info.path: (info.is_dir, info.file_size) for info in repo.list_artifacts()}
    assert listed == {"a.bin": (False, 300_000), "model": (True, None)}
    inner = {info.path: (info.is_dir, info.file_size) for info in repo.list_artifacts("model/deep")}
    assert inner == {"model/deep/empty": (False, 0), "model/deep/er": (True, None)}
    assert repo.list_artifacts("a.bin") == [] and repo.list_artifacts("nothing") == []
    got = Path(repo.download_artifacts("model"))
    assert {p.relative_to(got).as_posix(): p.read_bytes() for p in got.rglob("*") if p.is_file()} == files
    assert len([*registry.store.list()]) == len(files)  # equal bytes are held once


def test_a_workspace_is_found_wherever_one_is(workspace: Workspace, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "x.txt").write_text("x")
    repository(workspace, "7/run").log_artifact(str(tmp_path / "x.txt"))
    monkeypatch.chdir(workspace.root)
    for uri in ("pressroom:7/run", f"pressroom:{workspace.root}/7/run", f"pressroom://{workspace.root}/7/run/"):
        assert [info.path for info in get_artifact_repository(uri).list_artifacts()] == ["x.txt"]


@pytest.mark.parametrize(
    "uri",
    [
        "pressroom://host/x",
        "pressroom:///nowhere/at/all",
        "pressroom:../x",
        "pressroom:///a/../../b",
        "pressroom:x?y=1",
    ],
)
def test_a_uri_that_means_no_workspace(uri: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.root)
    with pytest.raises(MlflowException):
        get_artifact_repository(uri)


@pytest.mark.parametrize("path", ["../up.txt", "/top.txt", "a/../../b.txt"])
def test_nothing_is_logged_or_read_outside(workspace: Workspace, tmp_path: Path, path: str) -> None:
    (tmp_path / "x.txt").write_text("x")
    repo = repository(workspace)
    with pytest.raises(MlflowException):
        repo.log_artifact(str(tmp_path / "x.txt"), path)
    with pytest.raises(MlflowException):
        repo._download_file(path, tmp_path / "out")


def test_a_name_is_a_file_or_a_folder(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    repo = repository(workspace)
    repo.log_artifact(str(tmp_path / "x"))
    with pytest.raises(MlflowException, match="file or a folder"):
        repo.log_artifact(str(tmp_path / "x"), "x")
    repo.log_artifact(str(tmp_path / "x"), "folder")
    (tmp_path / "folder").write_text("f")
    with pytest.raises(MlflowException, match="file or a folder"):
        repo.log_artifact(str(tmp_path / "folder"))


def test_links_are_followed_as_mlflow_does(workspace: Workspace, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"real": b"r"})
    (folder / "link").symlink_to(folder / "real")
    repo = repository(workspace)
    repo.log_artifacts(str(folder))
    assert {info.path for info in repo.list_artifacts()} == {"real", "link"}
    (folder / "broken").symlink_to(folder / "nothing")
    with pytest.raises(MlflowException, match="broken"):
        repo.log_artifacts(str(folder), "again")
    assert repo.list_artifacts("again") == []


def test_deleting_gives_back_what_only_it_used(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"a": b"a" * 1000, "b": b"b" * 1000})
    one, two = repository(workspace, "1/one"), repository(workspace, "1/two")
    one.log_artifacts(str(folder))
    two.log_artifact(str(folder / "b"))
    _forget_leases(registry)
    one.delete_artifacts()
    assert one.list_artifacts() == []
    assert [blob.size for blob in registry.store.list()] == [1000]
    assert Path(two.download_artifacts("b")).read_bytes() == b"b" * 1000


def test_collecting_leaves_artifacts(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    repo = repository(workspace)
    repo.log_artifacts(str(folder_with(tmp_path, MODEL)))
    _forget_leases(registry)
    assert registry.collect() == 0
    assert Path(repo.download_artifacts("MLmodel")).read_bytes() == MODEL["MLmodel"]


def test_streams_of_the_server(workspace: Workspace) -> None:
    repo = repository(workspace)
    repo.log_artifact_from_stream(io.BytesIO(b"x" * 10_000_000), "../big.bin", "up")

    async def chunks(*, cut: bool) -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"y" * 100_000
        if cut:
            raise ConnectionResetError("the client left")

    asyncio.run(repo.log_artifact_from_async_stream(chunks(cut=False), "async.bin", "up"))
    with pytest.raises(ConnectionResetError):
        asyncio.run(repo.log_artifact_from_async_stream(chunks(cut=True), "cut.bin", "up"))
    sizes = {info.path: info.file_size for info in repo.list_artifacts("up")}
    assert sizes == {"up/big.bin": 10_000_000, "up/async.bin": 5_000_000}


# Models.


def test_a_version_is_the_same_on_both_sides(
    client: mlflow.MlflowClient, registry: Registry, experiment: str, tmp_path: Path
) -> None:
    run, source = run_with(client, experiment, folder_with(tmp_path, MODEL))
    held = [*registry.store.list()]
    client.create_registered_model("tiny", tags={"team": "search"}, description="small")
    made = client.create_model_version("tiny", source, run_id=run, tags={"seed": "1"}, description="first")
    assert (made.name, int(made.version), made.status, made.source) == ("tiny", 1, "READY", source)
    version = registry.get("tiny:1")
    assert {entry.path for entry in version.files} == set(MODEL)
    assert (version.run, version.tags, version.description) == (run, {"seed": "1"}, "first")
    assert [*registry.store.list()] == held  # nothing was copied
    assert client.get_run(run).data.tags["pressroom.version"] == str(version.ref)

    registry.annotate("tiny", tags={"reviewed": "yes", "seed": None}, description="better")
    seen = client.get_model_version("tiny", "1")
    assert (seen.tags, seen.description) == ({"reviewed": "yes"}, "better")
    client.set_model_version_tag("tiny", "1", "stage", "ours")
    client.delete_model_version_tag("tiny", "1", "reviewed")
    client.update_model_version("tiny", "1", "best")
    version = registry.get("tiny")
    assert (version.tags, version.description) == ({"stage": "ours"}, "best")
    model = client.get_registered_model("tiny")
    assert (model.tags, model.description) == ({"team": "search"}, "small")
    assert [int(each.version) for each in model.latest_versions] == [1]


def test_what_press_registered_is_a_model_too(client: mlflow.MlflowClient, registry: Registry, tmp_path: Path) -> None:
    blob = registry.store.put([b"GGUF"])
    registry.register("pulled", [FileEntry(path="w.gguf", blob=blob.digest, size=blob.size)], tags={"a": "b"})
    registry.promote("pulled", "production")
    assert [model.name for model in client.search_registered_models()] == ["pulled"]
    got = mlflow.artifacts.download_artifacts("models:/pulled@production", dst_path=str(tmp_path))
    assert Path(got, "w.gguf").read_bytes() == b"GGUF"
    assert client.get_model_version_by_alias("pulled", "production").tags == {"a": "b"}
    client.set_registered_model_tag("pulled", "team", "search")
    assert client.get_registered_model("pulled").tags == {"team": "search"}
    with pytest.raises(MlflowException, match="already") as error:
        client.create_registered_model("pulled")
    assert error.value.error_code == "RESOURCE_ALREADY_EXISTS"


def test_the_files_of_a_version_outlive_the_run(
    client: mlflow.MlflowClient, registry: Registry, experiment: str, tmp_path: Path
) -> None:
    run, source = run_with(client, experiment, folder_with(tmp_path, MODEL))
    client.create_registered_model("tiny")
    client.create_model_version("tiny", source, run_id=run)
    get_artifact_repository(source).delete_artifacts()
    registry.collect()
    got = Path(mlflow.artifacts.download_artifacts("models:/tiny/1"))
    assert {p.relative_to(got).as_posix(): p.read_bytes() for p in got.rglob("*") if p.is_file()} == {
        **MODEL,
        "registered_model_meta": Path(got, "registered_model_meta").read_bytes(),
    }
    with pytest.raises(MlflowException, match="do not change"):
        get_artifact_repository(client.get_model_version_download_uri("tiny", "1")).delete_artifacts()


def test_what_lies_elsewhere_is_brought_in(client: mlflow.MlflowClient, registry: Registry, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, MODEL)
    client.create_registered_model("tiny")
    client.create_model_version("tiny", str(folder))
    client.create_model_version("tiny", folder.as_uri())  # equal files: the same version
    assert [version.number for version in registry.list("tiny")] == [1]
    # A run whose artifacts are plain files, read through MLflow.
    other = client.create_experiment("files", artifact_location=(tmp_path / "runs").as_uri())
    (folder / "model" / "more.txt").write_text("more")
    run, _ = run_with(client, other, folder)
    made = mlflow.register_model(f"runs:/{run}/model", "tiny")
    assert int(made.version) == 2 and registry.get("tiny:2").run == run
    with pytest.raises(MlflowException, match="no folder"):
        client.create_model_version("tiny", str(tmp_path / "nothing"))
    with pytest.raises(MlflowException, match="no files"):
        client.create_model_version("tiny", f"pressroom://{registry._workspace.root}/9/nothing")


@pytest.mark.parametrize("name", ["model.pkl", "weights.json", "pytorch_model.bin"])
def test_a_pickle_is_an_artifact_and_no_version(
    client: mlflow.MlflowClient, registry: Registry, experiment: str, tmp_path: Path, name: str
) -> None:
    _, source = run_with(client, experiment, folder_with(tmp_path, {**MODEL, name: pickle.dumps({"a": [1, 2]})}))
    assert name in {info.path for info in get_artifact_repository(source).list_artifacts()}
    client.create_registered_model("unsafe")
    with pytest.raises(MlflowException, match=f"{name}.*pickle") as error:
        client.create_model_version("unsafe", source)
    assert "safetensors" in str(error.value)
    with pytest.raises(NotFoundError):
        registry.get("unsafe")


def test_aliases_move_under_the_rules_of_the_registry(
    client: mlflow.MlflowClient, registry: Registry, workspace: Workspace, tmp_path: Path, monkeypatch: Any
) -> None:
    client.create_registered_model("tiny")
    client.create_model_version("tiny", str(folder_with(tmp_path, MODEL)))
    client.set_registered_model_alias("tiny", "candidate", "1")
    assert client.get_registered_model("tiny").aliases == {"candidate": "1"}
    registry.aliases.set_floor("tiny", "production", [Bound.parse("perplexity=20", "max")])
    with pytest.raises(MlflowException, match="does not meet the floor"):
        client.set_registered_model_alias("tiny", "production", "1")
    _, secret = Keys(workspace).create("releaser", ["promote:tiny"])
    with pytest.raises(MlflowException, match="a key is needed") as error:
        client.set_registered_model_alias("tiny", "other", "1")
    assert error.value.error_code == "PERMISSION_DENIED"
    monkeypatch.setenv("PRESS_KEY", secret)
    client.set_registered_model_alias("tiny", "other", "1")
    client.delete_registered_model_alias("tiny", "candidate")
    moves = [(move.action, move.alias) for move in registry.history("tiny")]
    assert ("refused", "production") in moves and ("promoted", "other") in moves and ("demoted", "candidate") in moves
    assert {move.who for move in registry.history("tiny") if move.alias == "other"} >= {"key:releaser"}
    with pytest.raises(MlflowException, match="no alias"):
        client.get_model_version_by_alias("tiny", "candidate")


def test_what_is_held_is_not_deleted(client: mlflow.MlflowClient, registry: Registry, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, MODEL)
    client.create_registered_model("tiny")
    client.create_model_version("tiny", str(folder))
    (folder / "more.txt").write_text("more")
    client.create_model_version("tiny", str(folder))
    client.set_registered_model_alias("tiny", "production", "2")
    for refused in (lambda: client.delete_model_version("tiny", "2"), lambda: client.delete_registered_model("tiny")):
        with pytest.raises(MlflowException, match="points to") as error:
            refused()
        assert error.value.error_code == "INVALID_STATE"
    assert len(registry.list("tiny")) == 2
    client.delete_model_version("tiny", "1")
    client.delete_registered_model_alias("tiny", "production")
    client.delete_registered_model("tiny")
    for gone in (lambda: client.get_registered_model("tiny"), lambda: client.get_model_version("tiny", "2")):
        with pytest.raises(MlflowException) as error:
            gone()
        assert error.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_upper_parts_keep_versions_through_their_entry_point(
    workspace: Workspace, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `press rm` asks the deployments. A distribution made for the test brings the entry point."""
    site = tmp_path / "site"
    (site / "keeper-1.0.dist-info").mkdir(parents=True)
    (site / "keeper-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: keeper\nVersion: 1.0\n")
    (site / "keeper-1.0.dist-info" / "entry_points.txt").write_text("[pressroom.holders]\nkeeper = keeper:Keeper\n")
    (site / "keeper.py").write_text(
        "class Keeper:\n"
        "    def __init__(self, workspace): self.root = workspace.root\n"
        "    def holding(self, version): return f'{self.root.name} keeps it' if version.name == 'kept' else None\n"
    )
    monkeypatch.syspath_prepend(str(site))
    blob = registry.store.put([b"weights"])
    for name in ("kept", "free"):
        registry.register(name, [FileEntry(path="w", blob=blob.digest, size=blob.size)])
    from pressroom.registry import _mlflow_place

    _mlflow_place._opened.cache_clear()
    store = PressroomModelRegistryStore(f"pressroom://{workspace.root}")
    with pytest.raises(MlflowException, match="workspace keeps it"):
        store.delete_model_version("kept", 1)
    store.delete_model_version("free", 1)
    _mlflow_place._opened.cache_clear()


def test_searching(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, MODEL)
    for number, name in enumerate(("alpha", "beta", "beta")):
        (folder / "n.txt").write_text(str(number))
        try:
            client.create_registered_model(name, tags={"kind": name[0]})
        except MlflowException as error:
            assert error.error_code == "RESOURCE_ALREADY_EXISTS"
        client.create_model_version(name, str(folder), tags={"n": str(number)})
    assert [m.name for m in client.search_registered_models("name LIKE 'al%'")] == ["alpha"]
    assert [m.name for m in client.search_registered_models("tags.kind = 'b'")] == ["beta"]
    assert [m.name for m in client.search_registered_models(order_by=["name DESC"])] == ["beta", "alpha"]
    page = client.search_registered_models(max_results=1)
    assert [m.name for m in page] == ["alpha"]
    assert [m.name for m in client.search_registered_models(max_results=1, page_token=page.token)] == ["beta"]
    found = client.search_model_versions("name = 'beta'", order_by=["version_number ASC"])
    assert [(v.name, int(v.version)) for v in found] == [("beta", 1), ("beta", 2)]
    assert [int(v.version) for v in client.search_model_versions("name = 'beta' AND version_number > 1")] == [2]
    assert [v.name for v in client.search_model_versions("tags.n = '0'")] == ["alpha"]
    assert [int(v.version) for v in client.get_latest_versions("beta")] == [2]
    with pytest.raises(MlflowException):
        client.search_model_versions("nonsense ===")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda c: c.create_registered_model("with space"), "cannot name a model"),
        (lambda c: c.create_registered_model("org/name"), "cannot name a model"),
        (lambda c: c.create_model_version("nobody", "/tmp"), "no model called"),
        (lambda c: c.rename_registered_model("tiny", "other"), "does not change"),
        (lambda c: c.transition_model_version_stage("tiny", "1", "Production"), "alias"),
        (lambda c: c.get_model_version("tiny", "9"), "no version 9"),
        (lambda c: c.get_model_version("tiny", "one"), "no version one"),
        (lambda c: c.set_registered_model_alias("tiny", "7", "1"), "cannot be an alias"),
        (lambda c: c.set_model_version_tag("tiny", "1", "bad", "\0"), "cannot be kept"),
        (lambda c: mlflow.genai.register_prompt("greeting", "Hello {{name}}"), "no prompts"),
    ],
)
def test_what_cannot_be_done_says_so(
    client: mlflow.MlflowClient, tmp_path: Path, ask: Callable[[Any], Any], said: str
) -> None:
    client.create_registered_model("tiny")
    client.create_model_version("tiny", str(folder_with(tmp_path, MODEL)))
    with pytest.raises(MlflowException, match=said):
        ask(client)


def test_a_copy_is_a_version_with_the_same_bytes(
    client: mlflow.MlflowClient, registry: Registry, tmp_path: Path
) -> None:
    client.create_registered_model("tiny")
    source = client.create_model_version("tiny", str(folder_with(tmp_path, MODEL)), tags={"a": "b"})
    held = [*registry.store.list()]
    client.copy_model_version("models:/tiny/1", "released")
    copied = registry.get("released:1")
    assert copied.digest == registry.get("tiny:1").digest and [*registry.store.list()] == held
    assert source.name == "tiny"


def test_a_fine_tune_names_its_parent(
    client: mlflow.MlflowClient, registry: Registry, experiment: str, tmp_path: Path
) -> None:
    blob = registry.store.put([b"base"])
    base = registry.register("base", [FileEntry(path="w", blob=blob.digest, size=blob.size)])
    run, source = run_with(client, experiment, folder_with(tmp_path, MODEL))
    client.set_tag(run, "pressroom.started_from", str(base.ref))
    client.create_registered_model("tuned")
    client.create_model_version("tuned", source, run_id=run)
    tuned = registry.get("tuned")
    assert (tuned.kind, tuned.parent) == ("fine-tune", base.digest)


def _forget_leases(registry: Registry) -> None:
    """As a day later."""
    from pressroom.registry import _tables as tables

    with registry._database.begin() as connection:
        connection.execute(tables.leases.delete())


# Processes of their own.

_PRELUDE = """
import os, sys, time
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow
root, tracking = sys.argv[1:3]
mlflow.set_tracking_uri(tracking)
mlflow.set_registry_uri(f"pressroom://{root}")
client = mlflow.MlflowClient()
"""


def _start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_at_once(
    client: mlflow.MlflowClient, workspace: Workspace, registry: Registry, experiment: str, tmp_path: Path
) -> None:
    folder_with(tmp_path, MODEL)
    program = """
from pathlib import Path
folder, experiment, who = sys.argv[3:]
mine = Path(folder + "-" + who)
mine.mkdir()
for n in range(5):
    (mine / "MLmodel").write_text("flavors: {}")
    (mine / "n.txt").write_text(f"{who} {n}")
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(mine), "model")
    mlflow.register_model(f"runs:/{run.info.run_id}/model", "shared")
"""
    arguments = (str(workspace.root), mlflow.get_tracking_uri(), str(tmp_path / "of"), experiment)
    processes = [_start(program, *arguments, who) for who in ("a", "b")]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    versions = registry.list("shared")
    assert [version.number for version in versions] == list(range(1, 11))
    assert all(registry.holds(version) for version in versions)


@pytest.mark.slow
def test_logging_killed_at_any_moment_leaves_nothing_half_registered(
    client: mlflow.MlflowClient, workspace: Workspace, registry: Registry, experiment: str, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, {f"{n:02}.bin": os.urandom(200_000) for n in range(20)} | MODEL)
    program = """
folder, experiment = sys.argv[3:]
print("go", flush=True)
while True:
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, folder, "model")
    mlflow.register_model(f"runs:/{run.info.run_id}/model", "killed")
"""
    for round in range(5):
        process = _start(program, str(workspace.root), mlflow.get_tracking_uri(), str(folder), experiment)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(timeout=0.1 + 0.15 * round)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    _forget_leases(registry)
    registry.collect()
    for run in client.search_runs([experiment]):
        paths = {info.path for info in client.list_artifacts(run.info.run_id, "model")}
        assert len(paths) in (0, 22)  # 20 files, MLmodel, and the folder model/
    for model in client.search_registered_models():
        for version in client.search_model_versions(f"name = '{model.name}'"):
            got = Path(mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}"))
            assert (got / "07.bin").read_bytes() == (folder / "07.bin").read_bytes()
