"""The examples run as they stand, against a gateway that serves a real model; the benchmarks keep their form."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
# The soak is run by its own tests, and what the store's is made of by others: it takes minutes.
LEFT_OUT = ("soak", "store")
BENCHMARKS = sorted(
    path for path in (ROOT / "benchmarks").glob("*.py") if not path.name.startswith("_") and path.stem not in LEFT_OUT
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An empty home, a small measurement, any free port, a workspace of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PRESSROOM_")}
    return {
        **kept,
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PRESSROOM_WORKSPACE": str(tmp_path_factory.mktemp("workspace")),
        "PRESSROOM_MEASURE_WINDOWS": "1",
        "PRESSROOM_MEASURE_TOKENS": "8",
        "PRESSROOM_GATEWAY_PORT": "0",
    }


@pytest.fixture(scope="module")
def served(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A `press up` that serves; the environment in which examples find it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pressroom", "up", "--json"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            record = json.loads(line)
            if record.get("step") == "ready":
                yield {**environment, "OPENAI_BASE_URL": record["api"]}
                break
        else:
            pytest.fail(f"`press up` ended with {process.wait()} before it served")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def run(command: list[str | Path], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ask_openai(served: dict[str, str]) -> None:
    said = run([sys.executable, EXAMPLES / "ask_openai.py", "Say", "hello."], served)
    answer, _, counts = said.rstrip().rpartition("\n")
    assert answer.strip()
    assert counts.startswith("(") and counts.endswith(" out)")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_ask_curl(served: dict[str, str]) -> None:
    said = run(["sh", EXAMPLES / "ask_curl.sh"], served)
    models, answer, stream = (part.partition("\n")[2] for part in said.split("== ")[1:])
    assert [model["id"] for model in json.loads(models)["data"]] == ["smollm2"]
    assert json.loads(answer)["choices"][0]["message"]["content"]
    assert stream.rstrip().endswith("data: [DONE]")


def test_python_api(environment: dict[str, str]) -> None:
    said = run([sys.executable, EXAMPLES / "python_api.py"], environment)
    assert said.startswith("smollm2:1@sha256-")
    assert "parameters: 134515008" in said
    assert "says: '" in said


def test_no_example_is_forgotten() -> None:
    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    tested = {f"{name.removeprefix('test_')}" for name in globals() if name.startswith("test_")}
    assert {Path(program).stem for program in programs} <= tested


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_ends_with_one_json_object(benchmark: Path, environment: dict[str, str]) -> None:
    """Its quick form; what it measures is judged by people, not here."""
    last = run([sys.executable, benchmark, "--quick"], environment).rstrip().splitlines()[-1]
    result = json.loads(last)
    assert isinstance(result, dict)
    assert {"machine", "date"} <= set(result)
    wanted = {
        "startup": {"help_ms", "import_ms", "bare_ms"},
        "gateway": {
            "added_p50_ms",
            "added_p99_ms",
            "added_ttft_ms",
            "cpu_us_per_request",
            "cpu_us_per_chunk",
            "tokens_ratio",
        },
    }
    assert wanted.get(benchmark.stem, set()) <= set(result)
