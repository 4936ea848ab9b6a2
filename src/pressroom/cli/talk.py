"""`press ask`, `press chat`: questions to a deployment, answers as they are written."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, print_json
from pressroom.cli._types import Number

if TYPE_CHECKING:
    from pressroom.cli._client import Answer

_SAMPLING = (
    click.option("--system", help="System message that goes before the question."),
    click.option(
        "--max-tokens",
        type=click.IntRange(1),
        default=512,
        show_default=True,
        help="Most tokens the answer may have.",
    ),
    click.option("--temperature", type=Number(0, 2), help="0 always gives the likeliest answer."),
)


def _sampling(command: Any) -> Any:
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


@click.command(epilog='Example: press ask smollm2 "Name three primary colors."')
@click.argument("name")
@click.argument("question", required=False)
@_sampling
@common
def ask(
    name: str,
    question: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    as_json: bool,
) -> None:
    """Ask a deployment one question; the answer streams to standard output, its figures to standard error.

    What comes on standard input is read as the question, or added below it.
    """
    piped = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    text = "\n\n".join(part for part in (question, piped) if part)
    if not text:
        raise click.UsageError("give a QUESTION, or write it to standard input")
    url = gateway_url(name)
    answer = ask_once(url, name, text, system=system, max_tokens=max_tokens, temperature=temperature, show=not as_json)
    if as_json:
        print_json(answer.as_dict())
    else:
        click.secho(answer.figures(), dim=True, err=True)


@click.command(epilog="Example: press chat smollm2 --system 'Answer in one sentence.'")
@click.argument("name")
@_sampling
@common
def chat(name: str, system: str | None, max_tokens: int | None, temperature: float | None, as_json: bool) -> None:
    """Talk with a deployment; an empty line or Ctrl-D ends it, Ctrl-C ends only the answer.

    With --json each line read is a message and each answer is one line of JSON.
    """
    from pressroom.cli._client import Answer, stream_chat  # http.client is not needed for `--help`

    url = gateway_url(name)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    interactive = sys.stdin.isatty() and not as_json
    if interactive:
        click.secho(f"talking with {name}; an empty line ends it", dim=True, err=True)
    while True:
        if interactive:
            click.secho("> ", fg="cyan", nl=False, err=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        messages.append({"role": "user", "content": line.rstrip("\n")})
        answer = Answer()
        try:
            for piece in stream_chat(url, _body(name, messages, max_tokens, temperature), answer):
                if not as_json:
                    click.echo(piece, nl=False)
        except KeyboardInterrupt:
            answer.finish_reason = "cancelled"
        messages.append({"role": "assistant", "content": answer.text})
        if as_json:
            print_json(answer.as_dict())
        else:
            click.echo("")
            if interactive:
                click.secho(answer.figures(), dim=True, err=True)


def ask_once(
    url: str,
    name: str,
    question: str,
    *,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    show: bool = True,
) -> Answer:
    """Ask, print the pieces as they come (`show`), and return the whole answer with its figures."""
    from pressroom.cli._client import Answer, stream_chat  # http.client is not needed for `--help`

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    answer = Answer()
    with closing(stream_chat(url, _body(name, messages, max_tokens, temperature), answer)) as pieces:  # type: ignore[type-var]
        for piece in pieces:
            if show:
                click.echo(piece, nl=False)
    if show:
        click.echo("")
    return answer


def gateway_url(name: str) -> str:
    """Where the deployment `name` answers.

    Raises:
        NotFoundError: there is no such deployment; the message names the nearest.
        DeployError: no server runs.
    """
    from pressroom.deploy import Deployments, running_server
    from pressroom.kernel import DeployError, Workspace

    with Workspace.open() as workspace:
        wish = Deployments(workspace).get(name)
        server = running_server(workspace)
        if server is None:
            raise DeployError("no server runs in this workspace", hint="Start one with `press up` or `press serve`.")
        if not wish.running:
            raise DeployError(f"{name} is stopped", hint=f"Start it with `press deploy {wish.ref} --as {name}`.")
    return server.url


def _body(
    name: str, messages: list[dict[str, str]], max_tokens: int | None, temperature: float | None
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": name, "messages": messages}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if temperature is not None:
        body["temperature"] = temperature
    return body
