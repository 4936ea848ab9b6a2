"""`press conformance`: what a deployment does of what the protocols promise."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from pressroom.cli._output import common, print_json

if TYPE_CHECKING:
    from pressroom.testing.conformance import Result

_COLOURS = {"passed": "green", "refused": "yellow", "failed": "red"}
_WIDTH = 48


@click.command(epilog="Example: press conformance smollm2 --only stop --only json_schema")
@click.argument("name")
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check; repeatable.")
@common
def conformance(name: str, only: tuple[str, ...], as_json: bool) -> int:
    """Check a running deployment against the protocols: stop, usage, logprobs, tools, JSON schema and more.

    Each check passes, is refused (the gateway says that the engine cannot), or fails. The exit code is 1 where one
    fails.
    """
    from pressroom.cli._client import api_key
    from pressroom.cli.talk import gateway_url
    from pressroom.deploy import running_server
    from pressroom.kernel import NotFoundError, Workspace, did_you_mean
    from pressroom.testing.conformance import CHECKS
    from pressroom.testing.conformance import conformance as run

    known = [check.name for check in CHECKS]
    for each in only:
        if each not in known:
            raise NotFoundError(
                f"there is no check called {each!r}",
                hint=did_you_mean(each, known, otherwise=f"There are: {', '.join(known)}."),
            )
    url = gateway_url(name)
    with Workspace.open() as workspace:
        server = running_server(workspace)
    found = run(
        url,
        name,
        grpc=server.grpc if server else "",
        key=api_key(),
        only=only,
        on_result=lambda _: None if as_json else _show(_),
    )
    failed = sum(result.outcome == "failed" for result in found)
    if as_json:
        print_json({"model": name, "url": url, "results": [dataclasses.asdict(result) for result in found]})
    else:
        passed = sum(result.outcome == "passed" for result in found)
        click.echo(f"{passed} passed, {len(found) - passed - failed} refused, {failed} failed")
    return 1 if failed else 0


def _show(result: Result) -> None:
    mark = click.style(f"{result.outcome.value:8}", fg=_COLOURS[result.outcome.value])
    click.echo(f"{mark} {result.title:{_WIDTH}} {result.detail[:200]}".rstrip())
