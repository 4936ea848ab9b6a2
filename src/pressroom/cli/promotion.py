"""`press promote`, `demote`, `floor`, `history`: what an alias points to, who moved it, and what it must meet."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pressroom.cli._output import common, human_value, print_json, table
from pressroom.kernel.settings import KEY_VARIABLE

if TYPE_CHECKING:
    from pressroom.registry import Move

F = TypeVar("F", bound=Callable[..., Any])


def _reasoned(command: F) -> F:
    """Add `--why` and `--key` to a command that moves something."""
    command = click.option(
        "--key",
        envvar=KEY_VARIABLE,
        show_envvar=True,
        metavar="SECRET",
        help="Key with the right to promote; needed once there is one. Better in the environment than on the line.",
    )(command)
    return click.option("--why", default="", metavar="TEXT", help="Why; it goes into the history.")(command)


@click.command(epilog='Example: press promote smollm2:3 production --why "half the bytes, same answers"')
@click.argument("ref")
@click.argument("alias")
@_reasoned
@common
def promote(ref: str, alias: str, why: str, key: str | None, as_json: bool) -> None:
    """Let ALIAS point to the version REF, if its sheet meets the floor declared for it (press floor).

    Each move is on record with who, when and why, and so is each refusal (press history). From then on NAME:ALIAS is a
    reference like any other.
    """
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace:
        move = Registry(workspace).promote(ref, alias, why=why, key=key)
    if as_json:
        print_json(_record(move))
        return
    if move.from_number == move.to_number:
        click.echo(f"{move.name}:{alias} points to {move.name}:{move.to_number} already")
    else:
        came = f" (before: {move.name}:{move.from_number})" if move.from_number is not None else ""
        click.echo(f"{move.name}:{alias} → {move.name}:{move.to_number}{came}, by {move.who}")
    for check in move.details.get("checks", ()):
        unit = "B" if "bytes" in str(check["bound"]) else ""
        value, limit = human_value(check["value"], unit), human_value(check["limit"], unit)
        click.secho(f"  {check['bound']}: is {value}, limit {limit}", dim=True)


@click.command(epilog="Example: press demote smollm2 production")
@click.argument("name")
@click.argument("alias")
@_reasoned
@common
def demote(name: str, alias: str, why: str, key: str | None, as_json: bool) -> None:
    """Let ALIAS of the model NAME point to nothing."""
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace:
        move = Registry(workspace).demote(name, alias, why=why, key=key)
    if as_json:
        print_json(_record(move))
    else:
        click.echo(f"{name}:{alias} is gone (it was {name}:{move.from_number}), by {move.who}")


@click.command(
    epilog="Example: press floor smollm2 production --max perplexity=parent+3% --max bytes=150MB "
    "--min tokens_per_second_1=50"
)
@click.argument("name")
@click.argument("alias", required=False)
@click.option("--max", "most", multiple=True, metavar="FIGURE=BOUND", help="The most a figure may be.")
@click.option("--min", "least", multiple=True, metavar="FIGURE=BOUND", help="The least a figure may be.")
@click.option("--remove", multiple=True, metavar="FIGURE", help="Take the bounds of a figure away.")
@_reasoned
@common
def floor(
    name: str,
    alias: str | None,
    most: tuple[str, ...],
    least: tuple[str, ...],
    remove: tuple[str, ...],
    why: str,
    key: str | None,
    as_json: bool,
) -> None:
    """What a sheet must say before ALIAS of the model NAME may point to its version.

    A BOUND is a number (25.3, 150MB), or one beside the same figure of the version's parent: parent, parent+3%,
    parent-0.5. Without options the floors are shown.
    """
    from pressroom.kernel import Workspace
    from pressroom.registry import Bound, Registry

    bounds = [Bound.parse(text, "max") for text in most] + [Bound.parse(text, "min") for text in least]
    if (bounds or remove) and alias is None:
        raise click.UsageError("a floor is set for one alias: press floor NAME ALIAS …")
    with Workspace.open() as workspace:
        registry = Registry(workspace)
        versions = registry.list(name)
        if alias is not None and (bounds or remove):
            registry.aliases.set_floor(name, alias, bounds, remove=remove, why=why, key=key)
        found = registry.aliases.floor(name, alias)
        below = [
            f"{name}:{each} points to {name}:{version.number}, which does not meet it: {check.reason}"
            for version in versions
            for each in version.aliases
            if each in found
            for check in registry.aliases.checks(version, each)
            if not check.met
        ]
    known = {figure.name for version in versions for figure in version.sheet} | {"bytes"}
    if as_json:
        print_json(
            {"name": name, "floors": {each: [_bound(bound) for bound in of_it] for each, of_it in found.items()}}
        )
        return
    if not found:
        click.echo(f"No floor is set for {name}{f':{alias}' if alias else ''}: whatever is promoted meets it.")
        return
    rows = [
        [f"{name}:{each}", bound.sense, bound.figure, bound.text] for each, of_it in found.items() for bound in of_it
    ]
    table(["ALIAS", "SENSE", "FIGURE", "BOUND"], rows)
    for line in below:
        click.echo(f"  {line}", err=True)
    for figure in sorted({bound.figure for bound in bounds} - known):
        click.echo(f"  no sheet of {name} has {figure} yet: until one has, nothing can be promoted", err=True)


@click.command(epilog="Example: press history smollm2 production")
@click.argument("name", required=False)
@click.argument("alias", required=False)
@common
def history(name: str | None, alias: str | None, as_json: bool) -> None:
    """Every move of the aliases and floors of a model, and every refusal: who, when, why, from and to."""
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace:
        moves = Registry(workspace).history(name, alias)
    if as_json:
        print_json([_record(move) for move in moves])
        return
    if not moves:
        click.echo("Nothing yet. An alias is set with: press promote NAME:NUMBER ALIAS")
        return
    rows = [
        [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(move.at)),
            f"{move.name}:{move.alias}",
            move.action,
            "" if move.from_number is None else f":{move.from_number}",
            "" if move.to_number is None else f":{move.to_number}",
            move.who,
            "; ".join(" ".join(part.split()) for part in (move.why, _outcome(move)) if part) or "no reason given",
        ]
        for move in moves
    ]
    table(["WHEN", "ALIAS", "WHAT", "FROM", "TO", "WHO", "WHY"], rows)


def _outcome(move: Move) -> str:
    if move.action == "refused":
        return str(move.details.get("reason", ""))
    return ", ".join(move.details.get("bounds", ()))


def _record(move: Move) -> dict[str, Any]:
    return dataclasses.asdict(move)


def _bound(bound: Any) -> dict[str, str]:
    return {"figure": bound.figure, "sense": bound.sense, "bound": bound.text}
