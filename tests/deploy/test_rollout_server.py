"""Roll-out and roll-back on the whole server, with real engines and requests that go on meanwhile."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pressroom.deploy import (
    Checks,
    Deployments,
    Phase,
    RouteWish,
    Server,
    Verdict,
    make_wish,
    roll_back,
    running_server,
    start_detached,
    stop_server,
    wait_for_switch,
    wait_until,
)
from pressroom.kernel import Workspace

from .house import until


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "pressroom.toml").write_text("[gateway]\nport = 0\ngrpc_port = -1\ndrain_s = 1.0\n")
    with Workspace.open(tmp_path, environ={}) as opened:
        yield opened


class Clients:
    """Some that ask one question after the other; what they were told, by word, and what went wrong."""

    def __init__(self, url: str, model: str, *, count: int = 3) -> None:
        self.said: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._address = url.removeprefix("http://")
        self._model = model
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(count)]

    def _ask(self, stream: bool) -> None:
        body = json.dumps(
            {"model": self._model, "messages": [{"role": "user", "content": "?"}], "stream": stream}
        )  # fmt: skip
        connection = http.client.HTTPConnection(self._address, timeout=60)
        while not self._stop.wait(0.005):
            try:
                connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                read = answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))
                connection.close()
                continue
            whole = read.endswith("data: [DONE]\n\n") if stream else read.endswith("}")
            if answer.status != 200 or not whole:
                self.wrong.append(f"{answer.status} {read[-200:]}")
            self.said["two" if '"two' in read else "one" if '"one' in read else read[-100:]] += 1
        connection.close()

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def served(workspace: Workspace) -> Iterator[tuple[Server, Deployments]]:
    with Server(workspace) as server:
        deployments = Deployments(workspace)
        wish = make_wish(workspace, "parrot:1", name="chat", engine="echo", options={"text": "one", "delay_s": 0.01})
        wait_until(deployments, wish, Phase.READY, timeout_s=60)
        yield server, deployments


def checks(**given: Any) -> Checks:
    from pressroom.kernel import RolloutSettings

    return Checks.parse(given, RolloutSettings())


def engines() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_nothing_is_dropped_on_the_way_to_a_new_version_and_back(workspace: Workspace) -> None:
    with served(workspace) as (server, deployments), Clients(server.url, "chat") as clients:
        wish = make_wish(
            workspace, "parrot:2", name="chat", engine="echo", options={"text": "two", "delay_s": 0.01},
            checks=checks(canary=30, watch_s=0.5, min_requests=10, max_watch_s=120),
        )  # fmt: skip
        wait_until(deployments, wish, Phase.READY, timeout_s=120)
        until(lambda: deployments.standing("chat").warm)
        rollout = deployments.rollouts("chat")[0]
        assert rollout.verdict is Verdict.TOOK_OVER
        # It takes over while what it has is still counted: at least as many as it waited for.
        assert rollout.figures["watch"]["new"]["answered"] >= 10 and rollout.figures["watch"]["old"]["answered"] > 10
        before = engines()
        back = roll_back(deployments, "chat", keep_warm_s=600)
        wait_for_switch(deployments, back, timeout_s=60)
        clients.said.clear()
        until(lambda: clients.said["one"] > 20)
        assert engines() == before, "nothing was started or ended"
    assert clients.wrong == [] and set(clients.said) <= {"one", "two"}


def test_a_new_version_that_dies_under_load_is_withdrawn_and_nothing_is_dropped(workspace: Workspace) -> None:
    with served(workspace) as (server, deployments), Clients(server.url, "chat") as clients:
        before = engines()
        wish = make_wish(
            workspace, "parrot:2", name="chat", engine="echo", options={"text": "two"},
            checks=checks(canary=30, watch_s=600),
        )  # fmt: skip
        until(lambda: clients.said["two"] > 3)
        (new,) = engines() - before
        os.kill(new, signal.SIGKILL)
        until(lambda: deployments.observed(wish).phase is Phase.FAILED)
        clients.said.clear()
        until(lambda: clients.said["one"] > 20)
        assert clients.said["two"] == 0
        until(lambda: deployments.rollouts("chat")[0].verdict is Verdict.WITHDRAWN)
    lost = [wrong for wrong in clients.wrong if "engine_error" not in wrong]
    # Whoever had the beginning of an answer of the one that was killed cannot have the rest.
    assert lost == [] and len(clients.wrong) <= 3


def test_going_back_in_the_middle_of_a_roll_out(workspace: Workspace) -> None:
    with served(workspace) as (server, deployments), Clients(server.url, "chat") as clients:
        before = engines()
        make_wish(
            workspace, "parrot:2", name="chat", engine="echo", options={"text": "two"},
            checks=checks(canary=50, watch_s=600),
        )  # fmt: skip
        until(lambda: clients.said["two"] > 3)
        wait_for_switch(deployments, roll_back(deployments, "chat", keep_warm_s=600), timeout_s=60)
        clients.said.clear()
        until(lambda: clients.said["one"] > 10)
        assert clients.said["two"] == 0
        until(lambda: engines() == before)
        assert deployments.rollouts("chat")[0].verdict is Verdict.CANCELLED
    assert clients.wrong == []


def test_shares_change_and_nothing_restarts(workspace: Workspace) -> None:
    def routes(first: float, second: float) -> list[RouteWish]:
        return [
            RouteWish(name="a", ref="a:1", digest="", engine="echo", options={"text": "one"}, weight=first),
            RouteWish(name="b", ref="b:1", digest="", engine="echo", options={"text": "two"}, weight=second),
        ]

    with Server(workspace) as server:
        deployments = Deployments(workspace)

        def put(first: float, second: float) -> None:
            wish = deployments.put("chat", ref="a:1", digest="", engine="echo", routes=routes(first, second))
            wait_until(deployments, wish, Phase.READY, timeout_s=60)

        put(1, 1)
        before = engines()
        with Clients(server.url, "chat") as clients:
            until(lambda: clients.said["one"] > 5 and clients.said["two"] > 5)
            put(1, 0)
            time.sleep(0.1)  # what was on its way
            clients.said.clear()
            until(lambda: clients.said["one"] > 20)
            assert clients.said["two"] == 0
            put(0, 1)
            time.sleep(0.1)
            clients.said.clear()
            until(lambda: clients.said["two"] > 20)
            assert clients.said["one"] == 0
        assert clients.wrong == [] and engines() == before


def test_kill_nine_in_the_middle_of_a_roll_out(workspace: Workspace) -> None:
    deployments = Deployments(workspace)
    info = start_detached(workspace)
    wish = make_wish(workspace, "parrot:1", name="chat", engine="echo", options={"text": "one"})
    wait_until(deployments, wish, Phase.READY, timeout_s=60)
    make_wish(
        workspace, "parrot:2", name="chat", engine="echo", options={"text": "two"},
        checks=checks(canary=50, watch_s=2, min_requests=5, max_watch_s=600),
    )  # fmt: skip
    with Clients(info.url, "chat") as clients:
        until(lambda: clients.said["two"] > 0)
        os.kill(info.pid, signal.SIGKILL)
    os.waitpid(info.pid, 0)  # all of it is gone, not only its first thread
    assert running_server(workspace) is None
    try:
        info = start_detached(workspace)
        wish = deployments.get("chat")
        until(lambda: any(copy["state"] == "ready" for copy in deployments.observed(wish).copies))
        assert [route.ref for route in deployments.standing("chat").serving] == ["parrot:1"]
        assert wish.ref == "parrot:2", "the wish is what it was"
        with Clients(info.url, "chat") as clients:
            wait_until(deployments, wish, Phase.READY, timeout_s=120)
            until(lambda: deployments.rollouts("chat")[0].verdict is Verdict.TOOK_OVER)
            clients.said.clear()
            until(lambda: clients.said["two"] > 10)
            assert clients.said["one"] == 0
        assert clients.wrong == []
    finally:
        stop_server(workspace)
