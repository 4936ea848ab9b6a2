"""`press plan`, `apply`, `rollback`, `rollouts`: from a file to what runs, and back."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pressroom.cli._output import common, count, human_ago, print_json, rounded, table
from pressroom.cli.serving import deployment_record, patience, say, say_few, say_started

if TYPE_CHECKING:
    from pressroom.deploy import Change, Deployment, DeploymentFile, Plan, Rollout, RouteWish
    from pressroom.kernel import Workspace

_FILES = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
_SIGNS = {"start": ("+", "green"), "roll out": ("~", "yellow"), "stop": ("-", "red"), "tell": ("~", None)}
_MEANS = {"start": "starts", "roll out": "is rolled out", "stop": "ends", "tell": "restarts nothing"}
# What a plan calls what a route does not say.
_UNSAID = {"price null": "price of the list", "idle_stop_s null": "idle_stop_s of the settings"}
_COLOURS = {"took over": "green", "withdrawn": "red"}


@click.command(epilog="Example: press plan deployment.toml")
@_FILES
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 where something would change, with 0 where not.")
@common
def plan(files: tuple[Path, ...], detailed_exitcode: bool, as_json: bool) -> int:
    """Show what the files of deployments would change, and what is wrong with them. Changes nothing."""
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        plans = [found for _, found in _plans(workspace, files)]
    changes = sum(len(each.changes) for each in plans)
    if as_json:
        print_json({"plans": [each.as_dict() for each in plans], "changes": changes})
    else:
        for each in plans:
            _show(each)
    return 2 if detailed_exitcode and changes else 0


@click.command(epilog="Example: press apply deployment.toml")
@_FILES
@click.option("--no-wait", is_flag=True, help="Return at once instead of when everything serves.")
@common
def apply(files: tuple[Path, ...], no_wait: bool, as_json: bool) -> None:
    """Bring about what the files of deployments say. One that is wrong is refused, and nothing of any is changed.

    A new version starts beside the old one, goes through the checks of [rollout] and takes over; where one fails, it is
    withdrawn, and the old one goes on. Weights, policy and cache change at once and restart nothing.
    """
    from pressroom.deploy import Deployments, Phase, running_server, start_detached, wait_until
    from pressroom.deploy import apply as wish_for
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        planned = _plans(workspace, files)
        deployments = Deployments(workspace)
        wishes: list[Deployment] = []
        for said, found in planned:
            if not as_json:
                _show(found)
            wishes.append(wish_for(workspace, said))
        server = running_server(workspace)
        if server is None:
            server = start_detached(workspace)
            if not as_json:
                say_started(server)
        records = []
        for wish, (_, found) in zip(wishes, planned, strict=True):
            if no_wait:
                seen = deployments.observed(wish)
            else:
                late_s = patience(workspace, wish)
                seen = wait_until(deployments, wish, Phase.READY, timeout_s=late_s, on_change=say(as_json))
            records.append(deployment_record(wish, seen, server.url))
            if not as_json:
                click.echo(f"{wish.name} is {seen.phase.value}, at {server.url}/v1")
                if found.changes:
                    say_few(deployments, wish)
    if as_json:
        plans = [found.as_dict() for _, found in planned]
        print_json({"deployments": records, "plans": plans})


@click.command(epilog="Example: press rollback chat")
@click.argument("name")
@click.option("--load", is_flag=True, help="Also where the version before is no longer warm and must be loaded.")
@click.option("--no-wait", is_flag=True, help="Return at once instead of when it serves.")
@common
def rollback(name: str, load: bool, no_wait: bool, as_json: bool) -> None:
    """Go back to the version that answered before. While that is kept warm it takes well under a second and loads
    nothing; requests that run are finished where they are.

    During a roll-out, or after one that failed, it takes the new version back, and what serves goes on.
    """
    from pressroom.deploy import Deployments, roll_back, running_server, wait_for_switch, way_back
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        deployments = Deployments(workspace)
        before = deployments.get(name)
        standing = deployments.standing(name)
        keep_warm_s = workspace.settings.rollout.keep_warm_s
        wish = roll_back(deployments, name, keep_warm_s=keep_warm_s, load=load)
        cancels = way_back(before, standing).cancels
        seconds = None
        if not no_wait and running_server(workspace) is not None:
            seconds = wait_for_switch(deployments, wish, timeout_s=patience(workspace, wish))
    refs = {"from": [way.ref for way in before.ways], "to": [way.ref for way in wish.ways]}
    if as_json:
        print_json({"name": name, **refs, "cancels": cancels, "seconds": rounded(seconds)})
        return
    gone, back = _changed(before, wish)
    if cancels:
        took = "" if seconds is not None else "; it is wished, and not yet seen"
        click.echo(f"{name}: {gone} is taken back, and had not taken over; {back} goes on answering{took}")
        return
    took = f", after {seconds:.2f} s" if seconds is not None else "; it is wished, and not yet seen to serve"
    click.echo(f"{name} is back from {gone} to {back}{took}")


@click.command(epilog="Example: press rollouts chat")
@click.argument("name")
@click.option("-n", "--last", type=click.IntRange(1, 200), default=10, show_default=True, help="How many to show.")
@common
def rollouts(name: str, last: int, as_json: bool) -> None:
    """What came of the versions that were to answer to a name, the newest first: steps, figures, verdicts."""
    from pressroom.deploy import Deployments
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        found = Deployments(workspace).rollouts(name)[:last]
    if as_json:
        print_json({"name": name, "rollouts": [rounded(dataclasses.asdict(each)) for each in found]})
        return
    if not found:
        click.echo(f"Nothing was rolled out as {name} yet.")
        return
    rows = [
        [str(each.generation), each.route, each.from_ref or "-", each.to_ref, each.verdict.value, _took(each)]
        for each in found
    ]
    table([">NUMBER", "ROUTE", "FROM", "TO", "VERDICT", ">TOOK"], rows)
    newest = found[0]
    colour = _COLOURS.get(newest.verdict.value)
    click.secho(f"\n{newest.to_ref}: {newest.verdict.value}, {human_ago(newest.started)}", fg=colour, bold=True)
    for step in newest.steps:
        click.echo(f"  {step['at'] - newest.started:7.1f} s  {step['says']}")


def _changed(before: Deployment, after: Deployment) -> tuple[str, str]:
    """The versions that differ, with their routes where there are several."""
    old, new = before.ways, after.ways
    if [way.name for way in old] == [way.name for way in new]:
        pairs = [(was, now) for was, now in zip(old, new, strict=True) if was.mark != now.mark]
        old, new = tuple(was for was, _ in pairs) or old, tuple(now for _, now in pairs) or new
    several = len(before.ways) > 1 or len(after.ways) > 1

    def said(ways: Sequence[RouteWish]) -> str:
        return ", ".join(f"{way.ref} ({way.name})" if several else way.ref for way in ways)

    return said(old), said(new)


def _plans(workspace: Workspace, files: Sequence[Path]) -> list[tuple[DeploymentFile, Plan]]:
    """Every file with its plan; all are checked before one is believed.

    Raises:
        DeploymentFileError: of each file that is wrong, in one.
    """
    from pressroom.deploy import DeploymentFileError, Deployments, read_deployment
    from pressroom.deploy import plan as planned

    said, wrong = [], []
    for file in files:
        try:
            said.append(read_deployment(workspace, file))
        except DeploymentFileError as error:
            wrong.append(error)
    names = [each.name for each in said]
    twice = next((each for each in said if names.count(each.name) > 1), None)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        problems = [dict(each, file=error.facts["file"]) for error in wrong for each in error.facts["problems"]]
        raise DeploymentFileError(
            "\n  ".join(each.message for each in wrong), hint="Nothing was changed.", problems=problems
        )
    if twice is not None:
        raise DeploymentFileError(
            f"two of the files are about {twice.name!r}", hint="A name has one file.", file=str(twice.path), problems=[]
        )
    deployments = Deployments(workspace)
    return [(each, planned(deployments, each)) for each in said]


def _show(found: Plan) -> None:
    """A plan as people read it."""
    if not found.changes:
        click.echo(f"{found.name}: nothing changes")
    else:
        click.secho(f"{found.name}: {count(len(found.changes), 'change')}", bold=True)
        for change in found.changes:
            _show_change(change)
    for note in found.notes:
        click.secho(f"  ! {note}", fg="yellow")


def _show_change(change: Change) -> None:
    sign, colour = _SIGNS[change.kind.value]
    before, after = _UNSAID.get(change.before, change.before), _UNSAID.get(change.after, change.after)
    if before and after:
        what = f"{before} → {after}"
    else:
        what = after or before
        if change.kind.value == "tell":
            sign, colour = ("+", "green") if change.after else ("-", "red")
    text = click.style(f"  {sign} {change.subject}: {what}", fg=colour)
    click.echo(f"{text}  {click.style('(' + _MEANS[change.kind.value] + ')', dim=True)}")


def _took(rollout: Rollout) -> str:
    end = rollout.ended or time.time()
    return f"{max(0.0, end - rollout.started):.1f} s"
