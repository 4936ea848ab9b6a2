"""Every command: its help, its --json, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pressroom.cli import press
from pressroom.cli._app import COMMANDS, run
from pressroom.kernel import Workspace


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("PRESSROOM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(name: str) -> click.Command:
    found = press.get_command(click.Context(press), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_debug_and_an_example(name: str) -> None:
    options = {option for parameter in command(name).params for option in parameter.opts}
    assert {"--json", "--debug"} <= options
    assert f"press {name}" in (command(name).epilog or "")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_says_what_the_command_says(name: str) -> None:
    assert command(name).help
    assert COMMANDS[name][1].endswith(".")


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["depoly"]) == 2
    assert "deploy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["show", "nothing"], "not_found", "nothing"),
        (["show", "not a ref"], "ref", "not a ref"),
        (["rm", "nothing:3"], "not_found", "nothing"),
        (["deploy", "nothing"], "not_found", "nothing"),
        (["deploy", "nothing", "--engine", "lamacpp"], "plugin", "lamacpp"),
        (["ask", "nobody", "hello"], "not_found", "nobody"),
        (["chat", "nobody"], "not_found", "nobody"),
        (["logs", "nobody"], "not_found", "nobody"),
        (["stop", "nobody"], "not_found", "nobody"),
        (["pull", "ftp://example.invalid/model.gguf"], "source", "ftp"),
        (["pull", "./missing.gguf"], "source", "missing.gguf"),
    ],
)
def test_errors_as_json_and_as_text(
    arguments: list[str], code: str, part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert run([*arguments, "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code and part in error["message"] and error["hint"]
    assert run(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error:") and part in printed.err and "Traceback" not in printed.err
    assert printed.out == ""


def test_wrong_usage_is_two_also_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stop", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"
    assert run(["ask", "x", "y", "--temperature", "9"]) == 2
    assert "temperature" in capsys.readouterr().err


def test_a_wrong_setting_is_quoted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PRESSROOM_GATEWAY_PORT", "eighty")
    assert run(["list"]) == 1
    assert "PRESSROOM_GATEWAY_PORT='eighty'" in capsys.readouterr().err


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pressroom", "show", "nothing", "--debug"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "NotFoundError" in done.stderr


def test_a_reader_that_leaves_is_no_error(workspace: Path) -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m pressroom --help | head -n 1", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("Usage") and "Error" not in done.stderr and "Exception" not in done.stderr


def test_empty_workspaces_say_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 0
    assert "press pull" in capsys.readouterr().out
    assert run(["ps"]) == 0
    assert "press up" in capsys.readouterr().out
    assert run(["ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"server": None, "deployments": []}
    assert run(["stop", "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"stopped": False, "name": None}


def test_doctor_finds_what_the_main_job_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRESSROOM_GATEWAY_PORT", "0")
    assert run(["doctor", "--json"]) == 0
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert {"python", "machine", "xllamacpp", "pip", "workspace", "disk", "database", "server"} <= set(found)


def test_doctor_fails_when_something_must_be_mended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRESSROOM_GATEWAY_HOST", "203.0.113.9")  # an address this machine does not have
    assert run(["doctor"]) == 1
    assert "fail" in capsys.readouterr().out


def test_the_workspace_is_found_from_below(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Workspace.open(workspace, environ={}).close()
    below = workspace / "a" / "b"
    below.mkdir(parents=True)
    os.chdir(below)
    assert run(["list"]) == 0
    assert not (below / ".pressroom").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is full")
def test_a_full_disk_under_the_output_is_no_fault_of_ours() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pressroom", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr and "fault of Pressroom" not in done.stderr


def test_data_is_not_measured(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "text.txt").write_text("To be, or not to be")
    assert run(["pull", "text.txt", "--data", "--as", "text"]) == 0
    assert run(["measure", "text"]) == 1
    assert "only weights are measured" in capsys.readouterr().err
