"""The other gateways: how one is described, put into an environment of its own, and started.

A peer is one file, `_gateway_NAME.py`, with `PEERS`. Each has its versions pinned, runs in a virtual environment made
on demand, and is started by its own command; what was set is written into the result.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from _gateway_running import Running, cpu_seconds, family, free_port

_START_S = 180.0
_SAID_LINES = 8
_SETTLE_S, _LOOK_S, _IDLE = 60.0, 0.5, 0.1


class NotMeasured(Exception):
    """Why a peer has no figures."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a peer runs: what its environment has, its files, its ports, and the OpenAI-shaped engine behind it."""

    binaries: Path
    folder: Path
    port: int
    grpc_port: int
    upstream: int

    def write(self, name: str, content: str) -> str:
        path = self.folder / name
        path.write_text(content, encoding="utf-8")
        return str(path)


@dataclass(frozen=True, kw_only=True)
class Launch:
    command: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run a peer. `said` is what was set, in words."""

    said: str
    launch: Callable[[Place], Launch]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Of several `ways` the one with the most requests a second is measured. `health` is a path that answers 200 when
    it is ready. `all_cores` are ways to use every core of the machine, measured besides."""

    name: str
    environment: str
    packages: tuple[str, ...]
    health: str
    ways: tuple[Way, ...]
    all_cores: tuple[Way, ...] = ()


def environment(peer: Peer, directory: Path, *, make: bool) -> Path:
    """The folder of programs in the peer's environment, made where it is not there and `make` says so.

    Raises:
        NotMeasured: it is not there, or cannot be made.
    """
    place = directory.resolve() / peer.environment
    mark = place / "packages.json"
    wanted = json.dumps([peer.packages, sys.version])
    binaries = place / "bin"
    if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        return binaries
    if not make:
        raise NotMeasured(f"its environment is not in {directory}; a run without --quick makes it")
    shutil.rmtree(place, ignore_errors=True)
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    print(f"making the environment of {peer.name} ...", file=sys.stderr, flush=True)
    if uv is not None:
        steps = [
            [uv, "venv", "--quiet", "--python", sys.executable, str(place)],
            [uv, "pip", "install", "--quiet", "--python", str(binaries / "python"), *peer.packages],
        ]
    else:
        pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        steps = [[sys.executable, "-m", "venv", str(place)], [*pip, *peer.packages]]
    for step in steps:
        made = subprocess.run(step, capture_output=True, text=True, check=False)
        if made.returncode:
            raise NotMeasured(f"its environment cannot be made: {_last(made.stderr)}")
    mark.write_text(wanted, encoding="utf-8")
    return binaries


@contextlib.contextmanager
def started(peer: Peer, way: Way, place: Place, cores: set[int]) -> Iterator[Running]:
    """The peer, running on these cores, until the block ends.

    Raises:
        NotMeasured: it did not come up.
    """
    launch = way.launch(place)
    # Neither the settings nor the packages of the one who runs this belong to the peer.
    kept = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ")
    environ = {name: os.environ[name] for name in kept if name in os.environ}
    environ |= {"PATH": f"{place.binaries}:{os.defpath}", **launch.environ}
    log = place.folder / "log"

    def settle() -> None:
        if cores:
            os.sched_setaffinity(0, cores)

    with log.open("wb") as out:
        process = subprocess.Popen(
            launch.command,
            cwd=place.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=settle,  # this process has no other threads
        )
        watched = psutil.Process(process.pid)
        try:
            _wait(peer, place, process, log)
            _settle(watched)
            yield Running(processes=family(watched), port=place.port, grpc_port=place.grpc_port)
        finally:
            _end(watched, process)


def place_for(peer: Peer, binaries: Path, folder: Path, upstream: int) -> Place:
    """A fresh folder and free ports."""
    number = sum(1 for _ in folder.iterdir())
    own = folder / f"{number}-{peer.name}"
    own.mkdir()
    return Place(binaries=binaries, folder=own, port=free_port(), grpc_port=free_port(), upstream=upstream)


def _wait(peer: Peer, place: Place, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    url = f"http://127.0.0.1:{place.port}{peer.health}"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotMeasured(f"it ended with {process.returncode}: {_last(log.read_text(errors='replace'))}")
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise NotMeasured(f"it did not answer in {_START_S:.0f} s: {_last(log.read_text(errors='replace'))}")


def _settle(watched: psutil.Process) -> None:
    """Wait until it works no more: one worker answers before the others are up."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        before = {one.pid: cpu_seconds([one]) for one in family(watched)}
        time.sleep(_LOOK_S)
        now = {one.pid: cpu_seconds([one]) for one in family(watched)}
        if now.keys() == before.keys() and sum(now.values()) - sum(before.values()) < _IDLE * _LOOK_S:
            return


def _end(watched: psutil.Process, process: subprocess.Popen[bytes]) -> None:
    """End it with all it started: politely, then by force."""
    with contextlib.suppress(psutil.NoSuchProcess):
        processes = family(watched)
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(processes, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-_SAID_LINES:])[-800:]
