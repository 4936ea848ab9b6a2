"""`press engines`: what it says of each engine, and installing one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pressroom.cli.engines import engines, look
from pressroom.engines import engine_names, environments
from pressroom.engines.environments import Environment
from pressroom.kernel import OfflineError, Workspace


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRESSROOM_WORKSPACE", raising=False)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(engines, [*arguments])


def test_every_engine_is_listed(here: Path) -> None:
    found: list[dict[str, Any]] = json.loads(run("--json").output)
    assert [each["name"] for each in found] == engine_names()
    by_name = {each["name"]: each for each in found}
    assert by_name["echo"]["usable"] and by_name["echo"]["formats"] == []
    assert by_name["llamacpp"]["formats"] == ["gguf"] and "json_schema" in by_name["llamacpp"]["capabilities"]
    assert by_name["vllm"]["formats"] == ["safetensors"] and "several" in by_name["vllm"]["capabilities"]
    assert not by_name["vllm"]["usable"] and "press engines install vllm" in by_name["vllm"]["trouble"]


def test_people_get_a_table_and_the_reasons(here: Path) -> None:
    output = run().output
    assert output.splitlines()[0].split() == ["ENGINE", "WEIGHTS", "USABLE", "CAN"]
    assert "vllm: vLLM is not installed: `press engines install vllm` does that" in output


def test_a_library_that_is_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pressroom.engines.backends import llamacpp

    monkeypatch.setattr(llamacpp.Backend, "requires", ("no_such_library",))
    with Workspace.open(here) as workspace:
        assert "no_such_library" in look(workspace, "llamacpp").trouble
        assert "no pressroom.engines backend" in look(workspace, "nonesuch").trouble


def test_an_environment_that_is_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Environment(
        python=here / "v" / "bin" / "python", vllm="vllm 9.9", torch="2.0", bytes=3_000_000_000, seconds=9
    )
    monkeypatch.setattr(environments, "look", lambda python: made)
    assert f"vllm: vllm 9.9 with torch 2.0, in {here / 'v'}" in run().output
    asked: list[dict[str, Any]] = []

    def install(workspace: Workspace, **given: Any) -> Environment:
        asked.append(given)
        return made

    monkeypatch.setattr(environments, "install_vllm", install)
    assert "vllm 9.9 with torch 2.0, 3.0 GB" in run("install", "vllm").output
    record = json.loads(run("install", "vllm", "--again", "--package", "vllm==9.9", "--json").output)
    assert record["name"] == "vllm" and record["bytes"] == 3_000_000_000
    assert asked == [{"again": False, "package": None}, {"again": True, "package": "vllm==9.9"}]


def test_only_what_has_an_environment_is_installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("install", "llamacpp")
    assert result.exit_code == 2 and "vllm" in result.output
    monkeypatch.setenv("PRESSROOM_OFFLINE", "true")
    assert isinstance(run("install", "vllm").exception, OfflineError)
