"""A whole server in a process of its own, with real engine processes behind it, and a look inside from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import psutil

from pressroom.deploy import (
    Deployments,
    Observed,
    Phase,
    ServerInfo,
    running_server,
    start_detached,
    stop_server,
    wait_until,
)
from pressroom.kernel import Workspace, settings

SERVICE = "inference.GRPCInferenceService"
MB = 1 << 20
# `press serve` with few open files: the hard limit, too, which it would else raise the soft one to.
_FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
sys.argv = ["press", "serve"]
from pressroom.cli import main
main()
"""
# A limit that only ends a test that has failed.
_PATIENCE_S = 60.0


def until(condition: Callable[[], Any], what: str = "it", *, seconds: float = _PATIENCE_S) -> None:
    """Wait for what happens soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


class House:
    """A workspace in `root` with its server, from entering to leaving. `more` is the text of its pressroom.toml
    below `[gateway]`, with the other sections after it."""

    def __init__(self, root: Path, more: str = "") -> None:
        root.mkdir(parents=True, exist_ok=True)
        (root / "pressroom.toml").write_text(f"[gateway]\nport = 0\ndrain_s = 0.5\n{more}\n")
        self.workspace = Workspace.open(root)
        self.deployments = Deployments(self.workspace)
        self.url = ""
        self.grpc = ""
        self.process = psutil.Process()
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, *, descriptors: int = 0) -> None:
        """Start the server, with at most so many open files where a number is given; returns when it answers."""
        info = self._start_with(descriptors) if descriptors else start_detached(self.workspace)
        self.url, self.grpc, self.process = info.url, info.grpc, psutil.Process(info.pid)

    def _start_with(self, descriptors: int) -> ServerInfo:
        environ = {**os.environ, settings.WORKSPACE_VARIABLE: str(self.workspace.root)}
        log = self.workspace.path("logs") / "server.log"
        with log.open("ab") as out:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", _FEW_FILES, str(descriptors)], env=environ, stdout=out, stderr=out
            )
        until(lambda: running_server(self.workspace) is not None, "the start")
        found = running_server(self.workspace)
        assert found is not None
        return found

    def kill(self) -> None:
        """`kill -9` of the server; returns when it is gone."""
        os.kill(self.process.pid, signal.SIGKILL)
        os.waitpid(self.process.pid, 0)

    def __enter__(self) -> House:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        engines = self.engines()
        stop_server(self.workspace)
        if self._popen is not None:
            self._popen.wait()
        self.workspace.close()
        _, left = psutil.wait_procs(engines, timeout=20)
        assert not left, f"engines outlived their server: {left}"

    @property
    def port(self) -> int:
        """The port of the REST doors."""
        return int(self.url.rpartition(":")[2])

    def channel(self, **options: int) -> grpc.Channel:
        """A connection to the gRPC door, shared with nobody."""
        own = [("grpc.use_local_subchannel_pool", 1), *[(f"grpc.{name}", value) for name, value in options.items()]]
        return grpc.insecure_channel(self.grpc, options=own)

    def deploy(self, name: str, *, replicas: int = 1, idle_stop_s: float | None = None, **options: Any) -> None:
        """Wish for an echo called `name`, and wait until it answers."""
        wish = self.deployments.put(
            name,
            ref=f"{name}:1",
            digest="",
            engine="echo",
            options=options,
            replicas=replicas,
            idle_stop_s=idle_stop_s,
        )
        wait_until(self.deployments, wish, Phase.READY, timeout_s=_PATIENCE_S)

    def seen(self, name: str) -> Observed:
        """What the server says of a deployment."""
        return self.deployments.observed(self.deployments.get(name))

    def engine(self, name: str) -> int:
        """The process of the engine behind `name`."""
        pid = self.seen(name).pid
        assert pid is not None
        return pid

    def engines(self) -> list[psutil.Process]:
        """Every process that the server started, and those these did."""
        try:
            return self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def engine_counts(self, name: str) -> dict[str, int]:
        """What the echo itself says of its requests: how many came, were cancelled, and run."""
        with urllib.request.urlopen(f"{self.seen(name).url}/health", timeout=_PATIENCE_S) as answer:
            found: dict[str, int] = json.load(answer)
        return found

    def figure(self, name: str, **labels: str) -> float:
        """The sum of a metric over all series with these labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=_PATIENCE_S) as answer:
            text = answer.read().decode()
        total = 0.0
        for line in text.splitlines():
            matched = re.fullmatch(rf"{re.escape(name)}\{{(.*)\}} (\S+)", line)
            if matched and all(f'{key}="{value}"' in matched[1] for key, value in labels.items()):
                total += float(matched[2])
        return total

    def calm(self, name: str) -> bool:
        """Whether nothing runs or waits on a deployment any more."""
        return not any(self.figure(f"pressroom_requests_{what}", model=name) for what in ("in_flight", "waiting"))

    def rss(self) -> int:
        """Resident bytes of the server's process."""
        return int(self.process.memory_info().rss)

    def log(self) -> str:
        """All the server wrote."""
        return (self.workspace.dir / "logs" / "server.log").read_text(encoding="utf-8", errors="replace")
