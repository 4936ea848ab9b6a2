"""`press plan`, `apply`, `rollback` and `rollouts`, as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pressroom.cli import rollout, serving
from pressroom.deploy import Deployments, Phase, Server, wait_until
from pressroom.kernel import Workspace

FILE = """\
name = "chat"
[[route]]
name = "main"
ref = "parrot:1"
engine = "echo"
options = { text = "one" }
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    (tmp_path / "pressroom.toml").write_text("[gateway]\nport = 0\ngrpc_port = -1\ndrain_s = 0.2\n")
    (tmp_path / "chat.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    with Workspace.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def run(workspace: Workspace) -> Callable[..., Result]:
    def found(command: click.Command, *arguments: str) -> Result:
        return CliRunner().invoke(command, list(arguments), standalone_mode=False)

    return found


def said(result: Result) -> Any:
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


def edit(workspace: Workspace, old: str, new: str) -> None:
    file = workspace.root / "chat.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_from_a_file_to_what_runs_and_back(workspace: Workspace, run: Callable[..., Result]) -> None:
    planned = run(rollout.plan, "chat.toml")
    assert "+ route main: parrot:1 on echo, with text  (starts)" in planned.stdout and planned.return_value == 0
    assert Deployments(workspace).list() == [], "a plan changes nothing"
    with Server(workspace) as server:
        (record,) = said(run(rollout.apply, "chat.toml", "--json"))["deployments"]
        assert (record["state"], record["api"]) == ("ready", f"{server.url}/v1")
        assert said(run(rollout.plan, "chat.toml", "--json"))["changes"] == 0
        assert "nothing changes" in run(rollout.plan, "chat.toml", "--detailed-exitcode").stdout
        edit(workspace, "parrot:1", "parrot:2")
        changed = run(rollout.plan, "chat.toml", "--detailed-exitcode")
        assert "~ route main: parrot:1 on echo, with text → parrot:2 on echo" in changed.stdout
        assert changed.return_value == 2
        applied = run(rollout.apply, "chat.toml")
        assert "chat is ready" in applied.stdout and "is rolled out" in applied.stdout
        text = run(serving.ps).stdout
        assert "parrot:2" in text and "(warm)" in text
        back = said(run(rollout.rollback, "chat", "--json"))
        assert (back["from"], back["to"], back["cancels"]) == (["parrot:2"], ["parrot:1"], False)
        assert "chat is back from parrot:1 to parrot:2, after " in run(rollout.rollback, "chat").stdout
        history = said(run(rollout.rollouts, "chat", "--json"))["rollouts"]
        assert [each["verdict"] for each in history] == ["took over"] * 4
        shown = run(rollout.rollouts, "chat").stdout
        assert "parrot:1  parrot:2  took over" in shown and "is still warm" in shown


def test_a_typo_is_shown_and_refused_and_nothing_is_changed(workspace: Workspace, run: Callable[..., Result]) -> None:
    (workspace.root / "good.toml").write_text(FILE.replace("chat", "other"))
    edit(workspace, "engine", "engin")
    for command in (rollout.plan, rollout.apply):
        failed = run(command, "good.toml", "chat.toml")
        assert "chat.toml, line 5: [[route]] 1 has no 'engin'" in str(failed.exception)
        assert Deployments(workspace).list() == []
    (workspace.root / "good.toml").write_text("name = 3")
    both = str(run(rollout.apply, "good.toml", "chat.toml").exception)
    assert "good.toml" in both and "chat.toml" in both
    edit(workspace, "engin", "engine")
    assert "two of the files" in str(run(rollout.apply, "chat.toml", "chat.toml").exception)
    assert "cannot be read" in str(run(rollout.plan, "none.toml").exception)
    assert Deployments(workspace).list() == []


def test_a_version_that_fails_its_checks(workspace: Workspace, run: Callable[..., Result]) -> None:
    with Server(workspace):
        said(run(rollout.apply, "chat.toml", "--json"))
        edit(workspace, '"one"', '"the", tokens = 300')
        failed = run(rollout.apply, "chat.toml")
        assert "over and over" in str(failed.exception) and "goes on answering" in str(failed.exception)
        assert "tries it again" in run(rollout.plan, "chat.toml").stdout
        assert "withdrawn" in run(rollout.rollouts, "chat").stdout
        assert "withdrawn" in run(serving.ps).stdout
        text = run(rollout.rollback, "chat").stdout
        assert "chat: parrot:1 is taken back, and had not taken over; parrot:1 goes on answering" in text
        assert "failed" not in run(serving.ps).stdout


def test_a_canary_that_few_asked_is_told(workspace: Workspace, run: Callable[..., Result]) -> None:
    with Server(workspace):
        run(rollout.apply, "chat.toml")
        edit(workspace, "parrot:1", "parrot:2")
        file = workspace.root / "chat.toml"
        file.write_text(f"{file.read_text()}[rollout]\ncanary = 50\nwatch_s = 0.1\nmax_watch_s = 0.2\n")
        told = run(rollout.apply, "chat.toml").stderr
        assert "note: parrot:2 took over after 0 requests" in told and "the 20 (min_requests)" in told
        assert "note" not in run(rollout.apply, "chat.toml").stderr


def test_a_price_that_is_not_said_is_the_lists(workspace: Workspace, run: Callable[..., Result]) -> None:
    with Server(workspace):
        run(rollout.apply, "chat.toml")
        edit(workspace, 'engine = "echo"', 'engine = "echo"\nprice = { prompt = 1, completion = 2 }')
        text = run(rollout.plan, "chat.toml").stdout
        assert "~ route main: price of the list → price {" in text and "null" not in text


def test_back_to_nothing(workspace: Workspace, run: Callable[..., Result]) -> None:
    failed = run(rollout.rollback, "chat")
    assert "no deployment called 'chat'" in str(failed.exception)
    Deployments(workspace).put("chat", ref="parrot:1", digest="", engine="echo")
    assert "nothing to go back to" in str(run(rollout.rollback, "chat").exception)
    assert "Nothing was rolled out" in run(rollout.rollouts, "chat").stdout


def test_deploy_takes_the_same_checks(workspace: Workspace, run: Callable[..., Result]) -> None:
    (workspace.root / "smoke.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}], "expect": "hi"}\n')
    engine = ("--as", "chat", "--engine", "echo", "--json")
    with Server(workspace):
        said(run(serving.deploy, "parrot:1", *engine))
        found = said(run(serving.deploy, "parrot:2", *engine, "--smoke", "smoke.jsonl"))
        assert found["ref"] == "parrot:2"
        failed = run(serving.deploy, "parrot:3", *engine, "--smoke", "smoke.jsonl", "--option", "text=no")
        assert "question 1 of the smoke set" in str(failed.exception)
        forced = said(run(serving.deploy, "parrot:3", *engine, "--force", "--option", "text=no"))
        assert forced["ref"] == "parrot:3" and forced["state"] == "ready"
        deployments = Deployments(workspace)
        assert wait_until(deployments, deployments.get("chat"), Phase.READY, timeout_s=60).phase is Phase.READY
    for wrong in (("--force", "--canary", "5"), ("--watch", "5"), ("--canary", "101"), ("--canary", "nan")):
        assert isinstance(run(serving.deploy, "parrot:2", *engine, *wrong).exception, click.UsageError)
    assert "cannot be read" in str(run(serving.deploy, "parrot:2", *engine, "--smoke", "none").exception)
