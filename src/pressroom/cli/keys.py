"""`press keys`: who may read, write and promote."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, human_ago, print_json, table

if TYPE_CHECKING:
    from pressroom.kernel import Key


@click.group(
    invoke_without_command=True,
    epilog="Example: press keys create ci --right write:smollm2* --right promote:smollm2",
)
@common
@click.pass_context
def keys(context: click.Context, as_json: bool) -> None:
    """Who may read, write and promote; without a command, the keys there are."""
    if context.invoked_subcommand is None:
        _print_keys(revoked=False, as_json=as_json)


@keys.command(epilog="Example: press keys create ci --right write:smollm2*")
@click.argument("name")
@click.option(
    "--right",
    "rights",
    multiple=True,
    required=True,
    metavar="RIGHT[:PATTERN]",
    help="read, write, promote or admin, and behind ':' the models it is for. Can be given again.",
)
@common
def create(name: str, rights: tuple[str, ...], as_json: bool) -> None:
    """Make a key and show its secret, once: only its SHA-256 is kept."""
    from pressroom.kernel import Keys, Workspace

    with Workspace.open() as workspace:
        key, secret = Keys(workspace).create(name, rights)
    if as_json:
        print_json({**_record(key), "secret": secret})
        return
    # The secret alone goes to standard output, so that a script can take it.
    click.echo(f"{key.name} may {', '.join(key.rights)}. Its secret is shown this once:", err=True)
    click.echo(secret)


@keys.command("list", epilog="Example: press keys list --revoked")
@click.option("--revoked", is_flag=True, help="Also those that were revoked.")
@common
def list_(revoked: bool, as_json: bool) -> None:
    """The keys there are, without their secrets: nobody has these."""
    _print_keys(revoked=revoked, as_json=as_json)


@keys.command(epilog="Example: press keys revoke ci")
@click.argument("name")
@common
def revoke(name: str, as_json: bool) -> None:
    """End a key: from now on its secret is refused everywhere."""
    from pressroom.kernel import Keys, Workspace

    with Workspace.open() as workspace:
        key = Keys(workspace).revoke(name)
    if as_json:
        print_json(_record(key))
    else:
        click.echo(f"{key.name} is revoked")


def _print_keys(*, revoked: bool, as_json: bool) -> None:
    from pressroom.kernel import Keys, Workspace

    with Workspace.open() as workspace:
        found = Keys(workspace).list(revoked=revoked)
    if as_json:
        print_json([_record(key) for key in found])
        return
    if not found:
        click.echo("No keys. Make one with: press keys create NAME --right write")
        return
    rows = [
        [
            key.name,
            ", ".join(key.rights),
            human_ago(key.created),
            "" if key.revoked is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(key.revoked)),
        ]
        for key in found
    ]
    table(
        ["NAME", "RIGHTS", "CREATED", *(["REVOKED"] if revoked else [])], rows if revoked else [row[:3] for row in rows]
    )


def _record(key: Key) -> dict[str, Any]:
    return {"name": key.name, "rights": list(key.rights), "created": key.created, "revoked": key.revoked}
