"""`press deploy`, `serve`, `ps`, `logs`, `stop`: what runs."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, count, human_ago, human_bytes, print_json, table
from pressroom.cli._signals import until_stopped
from pressroom.cli._types import MOST, Number

if TYPE_CHECKING:
    from pressroom.deploy import Deployment, Deployments, Observed, ServerInfo
    from pressroom.kernel import Workspace

# A reference that has not been computed before takes minutes for a model of some size.
_PARITY_S = 900.0


@click.command(epilog="Example: press deploy smollm2:1 --as chat")
@click.argument("ref")
@click.option("--as", "name", metavar="NAME", help="Name it answers to; the model's own otherwise.")
@click.option("--engine", help="Engine to run it on; the setting `engine` otherwise. auto: by weights and load.")
@click.option("--with", "also", multiple=True, metavar="REF", help="Another form of the model for auto; repeatable.")
@click.option("--replicas", type=click.IntRange(1, 64), default=1, help="Copies of it, each an engine of its own.")
@click.option(
    "--idle-stop",
    "idle_stop_s",
    type=Number(0),
    metavar="SECONDS",
    help="Let it sleep after this long without a request; 0: never.",
)
@click.option("--context", type=click.IntRange(0, MOST), help="Tokens of context a request may use.")
@click.option("--slots", type=click.IntRange(1, 1024), help="Requests worked on at once.")
@click.option("--threads", type=click.IntRange(0, 1024), help="Threads of the engine.")
@click.option("--option", "extra", multiple=True, metavar="KEY=VALUE", help="An option of the engine; repeatable.")
@click.option("--route", "on_route", metavar="NAME", help="The route it is for, where the name has several.")
@click.option("--canary", type=Number(0, 100), metavar="PERCENT", help="Share of the requests it takes while watched.")
@click.option("--watch", "watch_s", type=Number(0), metavar="SECONDS", help="How long a canary is watched.")
@click.option("--smoke", type=click.Path(), metavar="FILE", help="Questions that it must answer first: JSON lines.")
@click.option("--force", is_flag=True, help="Switch as soon as it answers, without any check.")
@click.option("--no-wait", is_flag=True, help="Return at once instead of when it answers.")
@common
def deploy(
    ref: str,
    name: str | None,
    engine: str | None,
    also: tuple[str, ...],
    replicas: int,
    idle_stop_s: float | None,
    extra: tuple[str, ...],
    on_route: str | None,
    canary: float | None,
    watch_s: float | None,
    smoke: str | None,
    force: bool,
    no_wait: bool,
    as_json: bool,
    **sizes: int | None,
) -> None:
    """Serve a version under a name.

    Starts the server in the background where none runs yet. A name that is taken is switched over when the new version
    answers and has passed its checks; until then the old one goes on, and it goes on where one of them fails. With
    --canary the new version first takes a share of the requests and is watched.
    """
    from pressroom.deploy import Checks, Deployments, Phase, make_wish, running_server, start_detached, wait_until
    from pressroom.kernel import Workspace

    given = {"canary": canary, "watch_s": watch_s, "smoke": smoke}
    given = {key: value for key, value in given.items() if value is not None}
    if force and given:
        raise click.UsageError("--force checks nothing: leave --canary, --watch and --smoke out")
    if watch_s is not None and not canary:
        raise click.UsageError("--watch is how long a canary is watched: say how much it takes with --canary")

    options = {**_parsed_options(extra), **{key: value for key, value in sizes.items() if value is not None}}
    with Workspace.open() as workspace:
        checks = Checks.parse(given, workspace.settings.rollout)
        if force:
            checks = Checks.none(keep_warm_s=checks.keep_warm_s)
        wish = make_wish(
            workspace,
            ref,
            name=name,
            engine=engine,
            options=options,
            also=also,
            replicas=replicas,
            idle_stop_s=idle_stop_s,
            checks=checks,
            on_route=on_route,
        )
        server = running_server(workspace)
        if server is None:
            server = start_detached(workspace)
            if not as_json:
                say_started(server)
        deployments = Deployments(workspace)
        if no_wait:
            seen = deployments.observed(wish)
        else:
            seen = wait_until(
                deployments, wish, Phase.READY, timeout_s=patience(workspace, wish), on_change=say(as_json)
            )
        if as_json:
            print_json(deployment_record(wish, seen, server.url))
        else:
            click.echo(f"{wish.name} is {seen.phase.value}: {wish.ref} on {wish.engine}, at {server.url}/v1")
            say_few(deployments, wish)


def say(quiet: bool) -> Callable[[Observed], None]:
    """Says how a start goes on, where there is something to say."""

    def said(seen: Observed) -> None:
        if seen.detail and not quiet:
            click.secho(f"{seen.name}: {seen.detail}", dim=True, err=True)

    return said


def say_started(server: ServerInfo) -> None:
    click.echo(f"started a server in the background (process {server.pid}; `press stop --all` ends it)")


def say_few(deployments: Deployments, wish: Deployment) -> None:
    """Says which of the versions of this wish took over after fewer requests than they were to be judged by."""
    from pressroom.deploy import Checks, Verdict

    least = Checks.of(wish.rollout).min_requests
    for rollout in deployments.rollouts(wish.name):
        watched = rollout.figures.get("watch")
        if rollout.generation != wish.generation or rollout.verdict is not Verdict.TOOK_OVER or watched is None:
            continue
        took = watched["new"]["answered"] + watched["new"]["failed"]
        if took < least:
            click.secho(
                f"note: {rollout.to_ref} took over after {count(took, 'request')} in {watched['seconds']:g} s, fewer "
                f"than the {least:,} (min_requests) it was to be judged by",
                fg="yellow",
                err=True,
            )


def patience(workspace: Workspace, wish: Deployment) -> float:
    """Seconds after which a wish that has not come true is said to be late."""
    from pressroom.deploy import AUTO, Checks

    # The engines of `auto` are measured before they serve, which takes about as long again; and so does a reference.
    start_s = workspace.settings.engines.start_timeout_s * (2 if AUTO in (way.engine for way in wish.ways) else 1)
    checks = Checks.of(wish.rollout)
    watched_s = checks.longest_watch_s if checks.canary else 0.0
    return start_s + watched_s + (_PARITY_S if checks.parity else 0.0)


@click.command(epilog="Example: press serve --port 9000")
@click.option("--host", help="Address to bind to; the setting gateway.host otherwise.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; the setting gateway.port otherwise, 0 for any.")
@common
def serve(host: str | None, port: int | None, as_json: bool) -> None:
    """Run the server in the foreground: the gateway, and every deployment that should run. Ctrl-C ends it."""
    import logging

    from pressroom.deploy import Server
    from pressroom.kernel import Workspace
    from pressroom.kernel.interpreter import tuned_for_a_loop

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with Workspace.open() as workspace:
        server = Server(workspace, host=host, port=port)
        with until_stopped() as stopped, server:
            stopped.serving = True
            tuned_for_a_loop()
            if as_json:
                print_json({"url": server.url})
            else:
                click.echo(f"serving at {server.url}/v1 (metrics at /metrics); Ctrl-C ends it")
            stopped.wait_with(server)


@click.command(epilog="Example: press ps")
@common
def ps(as_json: bool) -> None:
    """What runs: deployments, how they are, and where they answer."""
    from pressroom.deploy import Deployments, running_server
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        server = running_server(workspace)
        deployments = Deployments(workspace)
        pairs = [(wish, deployments.observed(wish)) for wish in deployments.list()]
    url = server.url if server else ""
    if as_json:
        print_json(
            {
                "server": dataclasses.asdict(server) if server else None,
                "deployments": [deployment_record(wish, seen, url) for wish, seen in pairs],
            }
        )
        return
    if server is None:
        click.echo("No server runs. `press up` or `press serve` starts one.")
    else:
        grpc = f" and gRPC {server.grpc}" if server.grpc else ""
        click.echo(f"server at {url}/v1 (OpenAI), {url}/v2{grpc} (KServe V2), process {server.pid}")
        if server.grpc_trouble:
            click.echo(f"no gRPC: {server.grpc_trouble}")
    if pairs:
        rows = []
        for wish, seen in pairs:
            since = human_ago(seen.since) if seen.since else ""
            rows.append(
                _row(
                    wish.name,
                    wish.ref,
                    wish.engine,
                    seen.phase.value,
                    seen.pid,
                    seen.memory_bytes,
                    seen.restarts,
                    since,
                )
            )
            if len(seen.copies) > 1:
                rows += [_row(_part(wish, copy), *(copy[key] for key in _OF_A_COPY)) for copy in seen.copies]
        table(["NAME", "REF", "ENGINE", "STATE", ">PID", ">MEMORY", ">RESTARTS", "SINCE"], rows)
        for wish, seen in pairs:
            if seen.detail:
                click.echo(f"{wish.name}: {seen.detail}")
            for copy in seen.copies:
                if copy["role"] == "live" and (copy.get("parity") or {}).get("verdict") == "different":
                    click.echo(
                        f"{wish.name} on {copy['engine']} does not say what its model says: press parity {wish.name}"
                    )


@click.command(epilog="Example: press logs smollm2 -n 20")
@click.argument("name")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="Lines to show.")
@click.option("-f", "--follow", is_flag=True, help="Go on showing what is written.")
@common
def logs(name: str, lines: int, follow: bool, as_json: bool) -> None:
    """What the engine of a deployment wrote (`server`: the server in the background)."""
    from pressroom.deploy import Deployments, log_file
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        path = log_file(workspace.path("logs"), name)
        if name != "server":
            Deployments(workspace).get(name)
    last = _tail(path, lines)
    if as_json:
        print_json({"name": name, "file": str(path), "lines": last})
        return
    for line in last:
        click.echo(line)
    if follow:
        _follow(path)


@click.command(epilog="Example: press stop smollm2")
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Stop the server and everything it runs.")
@click.option("--forget", is_flag=True, help="Also forget the deployment, so that its version can be removed.")
@common
def stop(name: str | None, everything: bool, forget: bool, as_json: bool) -> None:
    """Stop a deployment, or with --all the server and everything it runs.

    A deployment that is stopped by name stays stopped until it is deployed again; --all leaves the wishes as they are,
    and the next server brings them back.
    """
    from pressroom.deploy import Deployments, Phase, running_server, stop_server, wait_until
    from pressroom.kernel import Workspace

    if (name is None) == (not everything):
        raise click.UsageError("give the NAME of a deployment, or --all")
    with Workspace.open() as workspace:
        if name is None:
            stopped = stop_server(workspace)
            text = "stopped the server" if stopped else "no server runs"
        else:
            deployments = Deployments(workspace)
            wish = deployments.stop(name)
            if running_server(workspace) is not None:
                wait_until(deployments, wish, Phase.STOPPED, timeout_s=90)
            if forget:
                deployments.delete(name)
            stopped, text = True, f"stopped {name}"
    if as_json:
        print_json({"stopped": stopped, "name": name})
    else:
        click.echo(text)


def _part(wish: Deployment, copy: dict[str, Any]) -> str:
    """What a copy is there for: its route where there are several, and whether it has the traffic."""
    route = f"{copy['route']} " if wish.routes and len(wish.routes) > 1 else ""
    role = "" if copy["role"] == "live" else f"({copy['role']})"
    return f"  {route}{role}".rstrip()


_OF_A_COPY = ("ref", "engine", "state", "pid", "memory_bytes", "restarts")


def _row(
    name: str, ref: str, engine: str, state: str, pid: int | None, memory: int, restarts: int, since: str = ""
) -> list[str]:
    return [name, ref, engine, state, str(pid or ""), human_bytes(memory) if memory else "", str(restarts), since]


def deployment_record(wish: Deployment, seen: Observed, url: str) -> dict[str, Any]:
    """A deployment as JSON for scripts."""
    return {
        "name": wish.name,
        "ref": wish.ref,
        "digest": wish.digest,
        "engine": wish.engine,
        "options": wish.options,
        "state": seen.phase.value,
        "detail": seen.detail,
        "api": f"{url}/v1" if url else None,
        "pid": seen.pid,
        "memory_bytes": seen.memory_bytes,
        "context": seen.context,
        "restarts": seen.restarts,
        "since": seen.since,
        "replicas": wish.replicas,
        "idle_stop_s": wish.idle_stop_s,
        "routes": [
            {"name": way.name, "ref": way.ref, "digest": way.digest, "engine": way.engine, "weight": way.weight}
            for way in wish.ways
        ],
        "policy": wish.policy,
        "cache": wish.cache,
        "copies": seen.copies,
    }


def _parsed_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    import json

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--option")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def _tail(path: Path, lines: int) -> list[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as written:
            return [line.rstrip("\n") for line in deque(written, maxlen=lines)]
    except FileNotFoundError:
        return []


def _follow(path: Path) -> None:
    while not path.exists():
        time.sleep(0.2)
    with path.open(encoding="utf-8", errors="replace") as written:
        written.seek(0, 2)
        while True:
            line = written.readline()
            if line:
                click.echo(line, nl=False)
            else:
                time.sleep(0.2)
