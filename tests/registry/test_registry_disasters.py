"""`kill -9` at random moments of collecting, removing, sweeping and importing: what is registered stays whole."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from pressroom.kernel import Workspace
from pressroom.registry import FileEntry, Registry, export_archive, verify

from .weights import gguf_bytes, safetensors_bytes

pytestmark = pytest.mark.slow

_TURNS = 50


def killed(arguments: list[str], seconds: float) -> None:
    """Run it, wait until it works, and end it that long afterwards, whatever it does then."""
    process = subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.wait()
    process.stdout.close()
    assert process.returncode == -9, process.returncode


_COLLECT = """
import random, sys
from pathlib import Path
from pressroom.kernel import Workspace
from pressroom.registry import FileEntry, Registry

chance = random.Random(int(sys.argv[2]))
with Workspace.open(Path(sys.argv[1]), environ={}) as workspace:
    registry = Registry(workspace)
    print("ready", flush=True)
    while True:
        files = []
        for name in ("a", "b"):
            blob = registry.store.put([chance.randbytes(chance.randrange(1, 200_000))])
            files.append(FileEntry(path=name, blob=blob.digest, size=blob.size))
        version = registry.register("m", files)
        registry.materialise(version)
        registry.store.put([chance.randbytes(5000)])
        versions = registry.list("m")
        if len(versions) > 3:
            registry.delete(chance.choice(versions).ref)
        registry.collect()
        registry.store.sweep()
"""


def test_collecting_and_sweeping(workspace: Workspace) -> None:
    chance = random.Random(11)
    kept = chance.randbytes(100_000)
    registry = Registry(workspace)
    blob = registry.store.put([kept])
    registry.register("kept", [FileEntry(path="f", blob=blob.digest, size=blob.size)])
    for turn in range(_TURNS):
        killed([_COLLECT, str(workspace.root), str(turn)], chance.uniform(0.0, 0.25))
        report = verify(workspace)
        assert report.sound, report.problems
    with registry.store.open(blob.digest) as file:
        assert file.read() == kept
    assert registry.list("m")[-1].number > _TURNS // 2
    # What the killed ones left goes: then nothing is held but what is registered.
    registry.collect()
    registry.store.sweep()
    blobs = {entry.blob for version in registry.list() for entry in version.files}
    assert {held.digest for held in registry.store.list()} == blobs
    assert registry.leftovers() == []


_IMPORT = """
import sys
from pathlib import Path
from pressroom.kernel import Workspace
from pressroom.registry import Registry, import_archive

with Workspace.open(Path(sys.argv[1]), environ={}) as workspace:
    registry = Registry(workspace)
    print("ready", flush=True)
    while True:
        import_archive(workspace, Path(sys.argv[2]))
        registry.delete("m")
        registry.delete("base")
"""


def test_importing(workspace: Workspace, tmp_path: Path) -> None:
    registry = Registry(workspace)

    def make(name: str, content: bytes, parent: str | None = None) -> str:
        blob = registry.store.put([content])
        entry = FileEntry(path="model.safetensors", blob=blob.digest, size=blob.size)
        return registry.register(name, [entry], parent=parent).digest

    base = make("base", safetensors_bytes(seed=1, elements=20_000))
    make("m", safetensors_bytes(seed=2, elements=20_000), parent=base)
    make("other", gguf_bytes())
    archive = export_archive(workspace, ["m"], tmp_path, with_parents=True)
    chance = random.Random(12)
    root = tmp_path / "there"
    root.mkdir()
    with Workspace.open(root, environ={}) as there:
        for _ in range(_TURNS):
            killed([_IMPORT, str(root), str(archive.path)], chance.uniform(0.0, 0.2))
            report = verify(there)
            assert report.sound, report.problems
