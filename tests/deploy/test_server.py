"""The server process with real engine processes behind it: the echo engine, which needs no weights."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pressroom.deploy import (
    Deployments,
    Phase,
    Server,
    log_file,
    running_server,
    start_detached,
    stop_server,
    wait_until,
)
from pressroom.kernel import DeployError, EngineError, LockedError, PortInUseError, Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    for name in list(os.environ):
        if name.startswith("PRESSROOM_"):
            monkeypatch.delenv(name)
    (tmp_path / "pressroom.toml").write_text("[gateway]\nport = 0\ndrain_s = 1.0\n")
    with Workspace.open(tmp_path) as opened:
        yield opened


def chat(url: str, model: str, text: str) -> dict[str, Any]:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", body, headers={"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def wish(workspace: Workspace, name: str, **options: Any) -> None:
    deployments = Deployments(workspace)
    made = deployments.put(name, ref=f"{name}:1", digest="", engine="echo", options=options)
    wait_until(deployments, made, Phase.READY, timeout_s=60)


def test_from_wish_to_answer_and_to_nothing(workspace: Workspace) -> None:
    with Server(workspace) as server:
        assert running_server(workspace) is not None
        wish(workspace, "parrot")
        answer = chat(server.url, "parrot", "pieces of eight")
        assert answer["choices"][0]["message"]["content"] == "pieces of eight"
        assert answer["model"] == "parrot"
        seen = Deployments(workspace).observed(Deployments(workspace).get("parrot"))
        assert seen.pid is not None and psutil.pid_exists(seen.pid)
    assert not psutil.pid_exists(seen.pid)
    assert running_server(workspace) is None
    assert Deployments(workspace).observed(Deployments(workspace).get("parrot")).phase is Phase.WAITING


def test_a_wish_from_before_comes_back(workspace: Workspace) -> None:
    made = Deployments(workspace).put("parrot", ref="parrot:1", digest="", engine="echo")
    with Server(workspace) as server:
        wait_until(Deployments(workspace), made, Phase.READY, timeout_s=60)
        assert chat(server.url, "parrot", "again")["choices"][0]["message"]["content"] == "again"


def test_changing_a_wish_under_requests_drops_none(workspace: Workspace) -> None:
    with Server(workspace) as server:
        wish(workspace, "parrot", text="one")
        said = set()
        made = Deployments(workspace).put("parrot", ref="parrot:2", digest="", engine="echo", options={"text": "two"})
        while Deployments(workspace).observed(made).phase is not Phase.READY:
            said.add(chat(server.url, "parrot", "?")["choices"][0]["message"]["content"])
        said.add(chat(server.url, "parrot", "?")["choices"][0]["message"]["content"])
        assert said == {"one", "two"}


def test_an_engine_that_is_killed_is_started_again(workspace: Workspace) -> None:
    with Server(workspace) as server:
        wish(workspace, "parrot")
        deployments = Deployments(workspace)
        before = deployments.observed(deployments.get("parrot")).pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while (seen := deployments.observed(deployments.get("parrot"))).pid in (before, None):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert seen.restarts == 1
        assert chat(server.url, "parrot", "back")["choices"][0]["message"]["content"] == "back"


def test_a_model_that_is_gone_is_said_and_the_others_answer(workspace: Workspace) -> None:
    with Server(workspace) as server:
        wish(workspace, "parrot")
        gone = Deployments(workspace).put("gone", ref="gone:1", digest="sha256-00", engine="llamacpp")
        with pytest.raises(DeployError, match="gone"):
            wait_until(Deployments(workspace), gone, Phase.READY, timeout_s=60)
        assert chat(server.url, "parrot", "still here")["choices"][0]["message"]["content"] == "still here"
        with pytest.raises(urllib.error.HTTPError) as refused:
            chat(server.url, "gone", "?")
        assert refused.value.code == 503
        refused.value.close()


def test_one_server_a_workspace(workspace: Workspace) -> None:
    with Server(workspace), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        Server(workspace).start()
    assert workspace.lock_holder("server") is None


def test_a_port_in_use_is_said_and_nothing_is_left(workspace: Workspace) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=str(port)) as caught:
            Server(workspace, port=port).start()
    assert "PRESSROOM_GATEWAY_PORT" in caught.value.hint
    assert workspace.lock_holder("server") is None and running_server(workspace) is None


def test_detached_and_ended(workspace: Workspace) -> None:
    info = start_detached(workspace)
    try:
        wish(workspace, "org/parrot")
        assert chat(info.url, "org/parrot", "hello")["choices"][0]["message"]["content"] == "hello"
        assert log_file(workspace.path("logs"), "org/parrot").exists()
        engine = Deployments(workspace).observed(Deployments(workspace).get("org/parrot")).pid
    finally:
        assert stop_server(workspace)
    assert engine is not None and not psutil.pid_exists(engine)
    assert not stop_server(workspace)


def test_a_server_that_cannot_start_says_why(workspace: Workspace) -> None:
    (workspace.root / "pressroom.toml").write_text("[gateway]\nhost = '203.0.113.9'\n")
    with pytest.raises(DeployError, match=r"203\.0\.113\.9"):
        start_detached(workspace)


def test_kill_nine_leaves_no_engine_and_no_claim(workspace: Workspace) -> None:
    info = start_detached(workspace)
    wish(workspace, "parrot")
    engine = Deployments(workspace).observed(Deployments(workspace).get("parrot")).pid
    assert engine is not None
    os.kill(info.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid) for pid in (info.pid, engine) if psutil.pid_exists(pid)], timeout=30)
    assert not psutil.pid_exists(engine)
    assert running_server(workspace) is None
    with Server(workspace) as server:
        wish(workspace, "parrot")
        assert chat(server.url, "parrot", "on we go")["choices"][0]["message"]["content"] == "on we go"


def test_serve_ends_with_zero_on_a_signal(workspace: Workspace) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pressroom", "serve", "--json"], cwd=workspace.root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    with urllib.request.urlopen(f"{url}/health/live") as live:
        assert live.status == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    process.stdout.close()


def test_deploying_again_what_failed_tries_it_anew(workspace: Workspace) -> None:
    from pressroom.deploy import make_wish

    deployments = Deployments(workspace)
    with Server(workspace):
        failing = deployments.put("parrot", ref="parrot:1", digest="", engine="echo", options={"nonsense": 1})
        with pytest.raises(DeployError, match="nonsense"):
            wait_until(deployments, failing, Phase.READY, timeout_s=60)
        # Asked for in the usual way it would not have come so far: it is refused, and what is written stays.
        with pytest.raises(EngineError, match="nonsense"):
            make_wish(workspace, "parrot:1", engine="echo", options={"nonsense": 1})
        assert deployments.get("parrot") == failing
        again = deployments.retry("parrot")
        assert again.generation > failing.generation
        good = make_wish(workspace, "parrot:1", engine="echo")
        wait_until(deployments, good, Phase.READY, timeout_s=60)
        assert make_wish(workspace, "parrot:1", engine="echo").generation == good.generation
