"""`press doctor`: what this machine has, what is missing, what to do."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import click

from pressroom.cli._output import common, human_bytes, print_json
from pressroom.kernel import PressroomError, Workspace, this_machine

if TYPE_CHECKING:
    from pressroom.deploy import ServerInfo

# A small model with its download and its workspace; larger ones need more, and say so when they are pulled.
_DISK_BYTES = 1_000_000_000
_MEMORY_BYTES = 2_000_000_000
_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("fail", "red")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing looked at: `state` is ok, warn or fail; `todo` says what to do where it is not ok."""

    name: str
    state: str
    found: str
    todo: str = ""


@click.command(epilog="Example: press doctor")
@common
def doctor(as_json: bool) -> int:
    """What this machine has, what is missing, what to do. Exit code 1 when something must be mended."""
    findings = list(examine())
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            mark, colour = _MARKS[finding.state]
            click.echo(f"{click.style(f'{mark:<5}', fg=colour)} {finding.name:<12} {finding.found}")
            if finding.todo:
                click.echo(f"{'':<19}{finding.todo}")
    return int(any(finding.state == "fail" for finding in findings))


def examine() -> Iterator[Finding]:
    """Look at everything the main job needs; a check that fails does not keep the others from being made."""
    yield _python()
    yield _machine()
    yield from _libraries()
    yield _codec()
    try:
        workspace = Workspace.open()
    except PressroomError as error:
        yield Finding(name="workspace", state="fail", found=str(error), todo=error.hint)
        return
    with workspace:
        checks: tuple[Callable[[Workspace], Finding], ...] = (_workspace, _disk, _database, _network, _server, _grpc)
        for check in checks:
            try:
                yield check(workspace)
            except PressroomError as error:
                yield Finding(name=check.__name__.lstrip("_"), state="fail", found=str(error), todo=error.hint)


def _python() -> Finding:
    return Finding(name="python", state="ok", found=f"{sys.version.split()[0]} ({sys.executable})")


def _machine() -> Finding:
    machine = this_machine()
    if machine.memory_bytes < _MEMORY_BYTES:
        return Finding(
            name="machine",
            state="warn",
            found=str(machine),
            todo="Less than 2 GB of memory: only the smallest models fit.",
        )
    return Finding(name="machine", state="ok", found=str(machine))


def _libraries() -> Iterator[Finding]:
    for package, purpose, required in (
        ("xllamacpp", "runs GGUF models", True),
        ("huggingface-hub", "pulls hf: sources", True),
        ("pip", "pulls pypi: sources", True),
        ("openai", "the example in the README", False),
        ("torch", "training and compression; not needed to serve", False),
    ):
        try:
            yield Finding(name=package, state="ok", found=f"{version(package)}, {purpose}")
        except PackageNotFoundError:
            yield Finding(
                name=package,
                state="fail" if required else "ok",
                found=f"not installed: {purpose}",
                todo=f"pip install {package}" if required else "",
            )


def _codec() -> Finding:
    from pressroom.store import codec

    path = codec.path_in_use()
    if path == "numpy":
        return Finding(
            name="codec",
            state="warn",
            found="NumPy: weights are stored and restored slowly",
            todo="Install a C compiler (gcc or clang): the kernel is compiled on first use.",
        )
    return Finding(name="codec", state="ok", found=f"{path} kernel: stores and restores weights")


def _workspace(workspace: Workspace) -> Finding:
    return Finding(name="workspace", state="ok", found=str(workspace.dir))


def _disk(workspace: Workspace) -> Finding:
    free = shutil.disk_usage(workspace.dir).free
    if free < _DISK_BYTES:
        return Finding(
            name="disk",
            state="warn",
            found=f"{human_bytes(free)} free",
            todo="Make room: `press list` shows what is kept, `press rm` removes.",
        )
    return Finding(name="disk", state="ok", found=f"{human_bytes(free)} free")


def _database(workspace: Workspace) -> Finding:
    from pressroom.registry import Registry

    count = len(Registry(workspace).list())
    return Finding(name="database", state="ok", found=f"{workspace.database.url}, {count} versions")


def _network(workspace: Workspace) -> Finding:
    if workspace.settings.offline:
        return Finding(name="network", state="ok", found="offline is set: nothing will use it")
    return Finding(name="network", state="ok", found="allowed (`offline = true` forbids it)")


def _server(workspace: Workspace) -> Finding:
    from pressroom.deploy import running_server
    from pressroom.gateway.binding import bind
    from pressroom.kernel import DeployError

    server: ServerInfo | None = running_server(workspace)
    if server is not None:
        return Finding(name="server", state="ok", found=f"runs at {server.url}, process {server.pid}")
    gateway = workspace.settings.gateway
    try:
        bind(gateway.host, gateway.port).close()
    except DeployError as error:
        return Finding(name="server", state="fail", found=error.message, todo=error.hint)
    return Finding(name="server", state="ok", found=f"none runs; {_place(gateway.host, gateway.port)}")


def _grpc(workspace: Workspace) -> Finding:
    from pressroom.deploy import running_server
    from pressroom.gateway.binding import bind
    from pressroom.gateway.grpc import missing_library
    from pressroom.kernel import DeployError

    gateway = workspace.settings.gateway
    if gateway.grpc_port < 0:
        return Finding(name="gRPC", state="ok", found="gateway.grpc_port is -1: no gRPC")
    server = running_server(workspace)
    if server is not None:
        if server.grpc:
            return Finding(name="gRPC", state="ok", found=f"answers at {server.grpc}")
        return Finding(name="gRPC", state="warn", found=server.grpc_trouble or "the server has no gRPC")
    missing = missing_library()
    if missing:
        return Finding(
            name="gRPC",
            state="ok",
            found=f"not installed ({missing}); REST does without",
            todo="pip install 'pressroom[grpc]'",
        )
    try:
        bind(gateway.host, gateway.grpc_port, setting="grpc_port").close()
    except DeployError as error:
        return Finding(name="gRPC", state="fail", found=error.message, todo=error.hint)
    return Finding(name="gRPC", state="ok", found=_place(gateway.host, gateway.grpc_port))


def _place(host: str, port: int) -> str:
    return f"{host}:{port} is free" if port else f"any free port of {host} will be taken (the setting is 0)"
