"""Pressroom as a user deploys it: a workspace in a temporary directory, made and driven through `press`.

So the gateway that is measured is the whole server: validation, metrics, hub, every door, and the reconciler that looks
at the wishes five times a second.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

_END_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """A gateway that runs: its processes, and where it answers."""

    processes: list[psutil.Process]
    port: int
    grpc_port: int


class Deployed:
    """A running server. `press` speaks to it; what it deploys is put on `engine_cores`, the server on `server_cores`
    (empty: left where they are)."""

    def __init__(
        self, folder: Path, *, server_cores: set[int], engine_cores: set[int], settings: dict[str, str]
    ) -> None:
        self.folder = folder
        self.port = 0
        self.grpc_port = free_port()
        self._server_cores, self._engine_cores = server_cores, engine_cores
        # Settings of the one who runs this must not change what is measured.
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("PRESSROOM_")}
        self._environ |= {"PRESSROOM_WORKSPACE": str(folder), "PRESSROOM_GATEWAY_PORT": str(free_port())}
        self._environ |= {"PRESSROOM_GATEWAY_GRPC_PORT": str(self.grpc_port), **settings}

    def press(self, *arguments: str) -> Any:
        """What a command of `press` says in JSON; SystemExit with its error where it fails."""
        command = [sys.executable, "-P", "-m", "pressroom", *arguments, "--json"]
        made = subprocess.run(command, cwd=self.folder, env=self._environ, capture_output=True, text=True, check=False)
        if made.returncode:
            raise SystemExit(f"press {' '.join(arguments)} failed:\n{made.stdout}{made.stderr}")
        return json.loads(made.stdout.strip().rpartition("\n")[2] or "null")

    def deploy(self, ref: str, name: str, *arguments: str) -> int:
        """Deploy and wait until it answers; the port of its engine, 0 where it has several."""
        self.press("deploy", ref, "--as", name, *arguments)
        told = self.press("ps")
        self.port = int(told["server"]["url"].rpartition(":")[2])
        pin(int(told["server"]["pid"]), self._server_cores)
        (deployment,) = [one for one in told["deployments"] if one["name"] == name]
        if not deployment["pid"]:
            return 0
        pin(deployment["pid"], self._engine_cores)
        return answering(deployment["pid"])

    def apply(self, file: Path, name: str, route: str) -> int:
        """Apply a file of a deployment and wait until it answers; the port of the engine of one of its routes."""
        self.press("apply", str(file))
        told = self.press("ps")
        self.port = int(told["server"]["url"].rpartition(":")[2])
        pin(int(told["server"]["pid"]), self._server_cores)
        (deployment,) = [one for one in told["deployments"] if one["name"] == name]
        for copy in deployment["copies"]:
            pin(copy["pid"], self._engine_cores)
        (wanted,) = [copy for copy in deployment["copies"] if copy["route"] == route]
        return answering(wanted["pid"])

    def end(self) -> None:
        """End everything; returns when the server's process is gone, which writes to the folder to its end."""
        server = self.press("ps")["server"]
        processes = [psutil.Process(server["pid"])] if server else []
        self.press("stop", "--all")
        deadline = time.monotonic() + _END_S
        while any(runs(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.02)

    def running(self) -> Running:
        """The server, without its engines."""
        process = psutil.Process(self.press("ps")["server"]["pid"])
        return Running(processes=[process], port=self.port, grpc_port=self.grpc_port)


@contextlib.contextmanager
def workspace(
    *,
    server_cores: set[int] | None = None,
    engine_cores: set[int] | None = None,
    settings: dict[str, str] | None = None,
) -> Iterator[Deployed]:
    """A fresh workspace; everything in it ends with the block. `settings` are variables of the environment."""
    with tempfile.TemporaryDirectory(prefix="pressroom-benchmark-") as folder:
        deployed = Deployed(
            Path(folder),
            server_cores=server_cores or set(),
            engine_cores=engine_cores or set(),
            settings=settings or {},
        )
        try:
            yield deployed
        finally:
            deployed.end()


# More than any run here comes to: what is measured is that it is counted.
_PLENTY = "1000000000"
_POLICY = """
[retry]
attempts = 2
[breaker]
failures = 5
pause_s = 10
"""


#: Settings that go with `every_feature`.
FEATURES = {"PRESSROOM_GATEWAY_REQUIRE_KEY": "true"}


def every_feature(ours: Deployed) -> None:
    """Turn on what a gateway has for trust: keys with limits, budgets for everything there is a budget for, and of each
    request a row in the ledger. From now on `key` is one of its keys."""
    global _key
    limits = ("--rpm", "100M", "--tpm", "100M", "--parallel", "100000")
    made = ours.press("keys", "create", "bench", "--right", "ask", "--team", "benchmark", *limits)
    _key = made["secret"]
    os.environ["LOAD_AUTHORIZATION"] = f"Bearer {_key}"
    for scope in ("key:bench", "team:benchmark", "all"):
        ours.press("budget", "set", scope, "1000000usd/month")
        ours.press("budget", "set", scope, f"{_PLENTY} tokens/day")


def deploy_routed(ours: Deployed, name: str, options: dict[str, Any]) -> int:
    """Deploy an echo behind a policy: two routes with a price and a budget, one of which is asked where the other
    fails. The port of the first one's engine."""
    told = ", ".join(f"{option} = {json.dumps(value)}" for option, value in options.items())
    route = f'engine = "echo"\noptions = {{ {told} }}\nprice = {{ prompt = 0.15, completion = 0.60 }}\n'
    file = ours.folder / f"{name}.toml"
    file.write_text(
        f'name = "{name}"\n[[route]]\nname = "first"\nref = "{name}:1"\nweight = 1\n{route}'
        f'[[route]]\nname = "second"\nref = "{name}:2"\nweight = 0\n{route}[fallback]\norder = ["first", "second"]\n'
        f"{_POLICY}",
        encoding="utf-8",
    )
    ours.press("budget", "set", f"deployment:{name}", "1000000usd/month")
    return ours.apply(file, name, "first")


class Cores(NamedTuple):
    """`load` is for the load generator and the engine, `gateway` for what is measured; empty where the system has one
    core or cannot keep a process on some."""

    load: set[int]
    gateway: set[int]


def two_cores() -> Cores:
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return Cores({usable[0]}, {usable[1]}) if len(usable) > 1 else Cores(set(), set())


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; one that nobody has waited for has."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def pin(pid: int, cores: set[int]) -> None:
    """Keep every thread of the process on these cores, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        for thread in psutil.Process(pid).threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and all it started."""
    return [process, *process.children(recursive=True)]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(float(one.user + one.system) for one in times)


def memory_bytes(processes: list[psutil.Process]) -> int:
    return sum(int(process.memory_info().rss) for process in processes)


def answering(pid: int) -> int:
    """The port of an engine's process, or of one it started: the one that answers `GET /health`. 0 where none does."""
    for process in family(psutil.Process(pid)):
        for one in process.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN:
                asked = http.client.HTTPConnection("127.0.0.1", one.laddr.port, timeout=5)
                with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(asked):
                    asked.request("GET", "/health")
                    if asked.getresponse().status == 200:
                        return int(one.laddr.port)
    return 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def request_for(model: str, *, stream: bool, **more: Any) -> bytes:
    """A whole HTTP request for a chat completion."""
    message = "What is the difference between a printer's devil and a compositor? Answer in a few sentences."
    body = {"model": model, "messages": [{"role": "user", "content": message}], "temperature": 0, **more}
    payload = json.dumps({**body, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n"
    return head.encode() + f"Content-Type: application/json\r\nAuthorization: Bearer {key()}\r\n\r\n".encode() + payload


# LiteLLM does not start without a key, ours asks for one of its own, and both are asked the same; the others ignore it.
_key = "sk-benchmark-0123456789abcdef0123456789abcdef"


def key() -> str:
    """The key that requests are sent with."""
    return _key
