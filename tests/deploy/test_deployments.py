"""Wishes and observations in the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from pressroom.deploy import Deployments, Observed, Phase, wait_until
from pressroom.deploy.deployments import SERVER_LOCK
from pressroom.kernel import DeployError, NotFoundError, RefError, Workspace


@pytest.fixture
def workspace(tmp_path: Path):
    with Workspace.open(tmp_path, environ={}) as opened:
        yield opened


@pytest.fixture
def deployments(workspace: Workspace) -> Deployments:
    return Deployments(workspace)


def test_the_same_wish_again_is_no_new_generation(deployments: Deployments) -> None:
    first = deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo", options={"slots": 2})
    assert deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo", options={"slots": 2}) == first
    changed = deployments.put("chat", ref="m:2", digest="sha256-ab", engine="echo")
    assert (changed.generation, changed.created) == (2, first.created)


def test_wishes_outlive_the_process(workspace: Workspace, deployments: Deployments) -> None:
    wish = deployments.put("org/chat", ref="m:1", digest="sha256-aa", engine="echo", options={"a": [1, "ü"]})
    with Workspace.open(workspace.root, environ={}) as again:
        assert Deployments(again).list() == [wish]


@pytest.mark.parametrize("name", ["", "a b", "../up", "-x", "a/b/c", "x" * 200])
def test_a_name_that_is_none_is_refused(deployments: Deployments, name: str) -> None:
    with pytest.raises(RefError, match="cannot name a deployment"):
        deployments.put(name, ref="m:1", digest="", engine="echo")
    assert deployments.list() == []


def test_an_unknown_name_names_the_nearest(deployments: Deployments) -> None:
    deployments.put("smollm2", ref="m:1", digest="", engine="echo")
    with pytest.raises(NotFoundError) as caught:
        deployments.get("smolm2")
    assert "smollm2" in caught.value.hint


def test_without_a_server_nothing_runs_whatever_was_written(deployments: Deployments) -> None:
    wish = deployments.put("chat", ref="m:1", digest="", engine="echo")
    deployments.observe(Observed(name="chat", generation=1, phase=Phase.READY, pid=1))
    assert deployments.observed(wish).phase is Phase.WAITING
    assert deployments.observed(deployments.stop("chat")).phase is Phase.STOPPED


def test_what_was_seen_of_an_older_wish_does_not_count(workspace: Workspace, deployments: Deployments) -> None:
    with workspace.lock(SERVER_LOCK, purpose="test"):
        old = deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo")
        deployments.observe(Observed(name="chat", generation=1, phase=Phase.READY))
        assert deployments.observed(old).phase is Phase.READY
        new = deployments.put("chat", ref="m:2", digest="sha256-ab", engine="echo")
        assert deployments.observed(new).phase is Phase.WAITING
        deployments.observe(Observed(name="chat", generation=2, phase=Phase.STARTING))
        deployments.observe(Observed(name="chat", generation=1, phase=Phase.READY, detail="late word"))
        assert deployments.observed(new).phase is Phase.STARTING


def test_a_failed_start_is_an_error_with_the_reason(workspace: Workspace, deployments: Deployments) -> None:
    wish = deployments.put("chat", ref="m:1", digest="", engine="echo")
    with workspace.lock(SERVER_LOCK, purpose="test"):
        deployments.observe(Observed(name="chat", generation=1, phase=Phase.FAILED, detail="out of memory"))
        with pytest.raises(DeployError, match="out of memory"):
            wait_until(deployments, wish, Phase.READY, timeout_s=30)


def test_what_somebody_else_wished_is_not_taken_for_ones_own(workspace: Workspace, deployments: Deployments) -> None:
    wish = deployments.put("chat", ref="m:1", digest="", engine="echo")
    deployments.put("chat", ref="m:2", digest="", engine="echo")
    with workspace.lock(SERVER_LOCK, purpose="test"):
        deployments.observe(Observed(name="chat", generation=2, phase=Phase.READY))
        with pytest.raises(DeployError, match="somebody else"):
            wait_until(deployments, wish, Phase.READY, timeout_s=30)


def test_waiting_has_an_end(workspace: Workspace, deployments: Deployments) -> None:
    wish = deployments.put("chat", ref="m:1", digest="", engine="echo")
    with workspace.lock(SERVER_LOCK, purpose="test"), pytest.raises(DeployError, match="is waiting after 0 s"):
        wait_until(deployments, wish, Phase.READY, timeout_s=0)


def test_forgetting_lets_go_of_the_version(deployments: Deployments) -> None:
    deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo")
    deployments.delete("chat")
    assert deployments.list() == []
    with pytest.raises(NotFoundError):
        deployments.delete("chat")


def test_what_an_earlier_server_saw_does_not_count(workspace: Workspace, deployments: Deployments) -> None:
    wish = deployments.put("chat", ref="m:1", digest="", engine="echo")
    with workspace.lock(SERVER_LOCK, purpose="the first server"):
        deployments.observe(Observed(name="chat", generation=1, phase=Phase.READY, pid=1))
        assert deployments.observed(wish).phase is Phase.READY
    with workspace.lock(SERVER_LOCK, purpose="the next server"):
        assert deployments.observed(wish).phase is Phase.WAITING
