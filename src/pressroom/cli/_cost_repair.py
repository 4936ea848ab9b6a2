"""`press cost reprice`: through the ledger in pieces, each handed back to it before the next is read."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._cost_asking import Priced, price_written
from pressroom.cli._cost_tables import dollars

if TYPE_CHECKING:
    from pressroom.cost import Price
    from pressroom.kernel import Workspace


def repair(
    workspace: Workspace,
    model: str,
    *,
    since: float,
    until: float,
    price: str | None,
    dry_run: bool,
    quiet: bool,
) -> dict[str, Any]:
    """What was found and done, as JSON.

    Raises:
        NotFoundError: nothing is called `model`.
        PriceError: `price` is none.
        WorkspaceError: the database cannot be used; what is corrected is corrected, and the same call goes on.
    """
    from pressroom.cli._progress import ProgressLines
    from pressroom.cost import PriceError, Repricing
    from pressroom.gateway.ledger import correct
    from pressroom.kernel import Progress

    priced = Priced(workspace)
    deployment, digests = priced.meant(model)
    given = None if price is None else price_written(price, source="given")
    if price is not None and given is None:
        raise PriceError(
            f"{price!r:.200} is not a price", hint="Write 0.15/0.60: for a million tokens asked / answered."
        )

    def price_of(deployment: str, branch: str, digest: str, day: date) -> Price | None:
        return given or priced.of_row(deployment, branch, digest, day)

    repricing = Repricing(workspace, price_of, since=since, until=until, deployment=deployment, digests=digests)
    done = repricing.done
    corrected = difference = 0
    with ProgressLines(workspace, quiet=quiet):
        of = repricing.count()
        for batch in repricing.batches():
            if batch and not dry_run:
                result = correct(workspace, {one.id: one.after for one in batch})
                corrected += result.rows
                difference += result.nano_usd
            workspace.events.emit(Progress(f"repricing {model}", done.requests, of, unit="requests"))
    return {
        "model": model,
        "since": round(since, 3),
        "until": round(until, 3),
        "dry_run": dry_run,
        **dataclasses.asdict(done),
        "difference": done.after - done.before,
        "corrected": corrected,
        "corrected_nano_usd": difference,
    }


def print_repair(done: dict[str, Any]) -> None:
    """What a repair came to."""
    click.echo(f"{done['requests']:,} requests looked at, {done['wrong']:,} of them cost something else")
    if done["wrong"]:
        change = f"{dollars(done['before'])} → {dollars(done['after'])} USD"
        if done["dry_run"]:
            click.echo(f"they would go from {change}; without --dry-run they do")
        else:
            click.echo(f"corrected {done['corrected']:,} of them: {change}")
    if done["unknown"]:
        click.secho(
            f"{done['unknown']:,} have a version whose price nobody knows, or that was removed: give --price",
            fg="yellow",
        )
    if done["ambiguous"]:
        click.secho(
            f"{done['ambiguous']:,} stay as they are: they share an id, or several engines read a long prompt",
            fg="yellow",
        )
