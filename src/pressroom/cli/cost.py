"""`press cost`: what was spent, what one's own tokens cost, and what the same would cost elsewhere."""

from __future__ import annotations

import time
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._cost_asking import day, moment, ratio
from pressroom.cli._output import common, print_json
from pressroom.cli._types import Number

if TYPE_CHECKING:
    from pressroom.cost import Price, SetPrice

_GROUPS = ("key", "team", "deployment", "language", "day", "branch", "model", "tag", "user")
_MOST_PRICES = 40
_BY = "What is summed; branch: a route of a deployment, model: the version that answered."

_since = click.option("--since", callback=moment, default="7d", show_default=True, help="24h, 7d, 4w, or a day (UTC).")
_until = click.option("--until", callback=moment, help="The same; what came before it counts. [default: now]")


@click.group(
    invoke_without_command=True,
    epilog="Example: press cost --since 30d --by team --against openai/gpt-4o-mini --svg cost.svg",
)
@_since
@_until
@click.option("--by", type=click.Choice(_GROUPS), default="deployment", show_default=True, help=_BY)
@click.option(
    "--machine-usd-per-hour", type=Number(0, 1e6), help="What this machine costs. [default: the setting under cost]"
)
@click.option(
    "--month-hours", type=Number(1, 744), default=730.0, show_default=True, help="Hours that it is on in a month."
)
@click.option(
    "--against",
    multiple=True,
    metavar="ROUTE|MODEL|PRICE",
    help="Break even with this; can be given again. [default: vendors' models that are registered here]",
)
@click.option("--svg", is_flag=False, flag_value="cost.svg", metavar="[FILE]", help="Draw it. [default: cost.svg]")
@common
@click.pass_context
def cost(
    context: click.Context,
    since: float,
    until: float | None,
    by: str,
    machine_usd_per_hour: float | None,
    month_hours: float,
    against: tuple[str, ...],
    svg: str | None,
    as_json: bool,
) -> None:
    """What was spent; what a million tokens cost on one's own engines, and at vendors; and how many break even.

    Amounts are what the ledger says. The machine's cost is the hours that the server was on at the machine's price;
    each group has the part of it that its requests worked.
    """
    if context.invoked_subcommand is not None:
        return
    from pressroom.cli._cost_report import as_record, make_report
    from pressroom.cli._cost_tables import print_report
    from pressroom.cli._files import check_writable, write_text
    from pressroom.kernel import Workspace

    until = _ended(since, until)
    drawing = None if svg is None else Path(svg)
    if drawing is not None:
        check_writable(drawing)
    with Workspace.open() as workspace:
        hourly = workspace.settings.cost.machine_usd_per_hour if machine_usd_per_hour is None else machine_usd_per_hour
        report = make_report(
            workspace,
            since=since,
            until=until,
            by=by,
            usd_per_hour=hourly,
            month_hours=month_hours,
            against=against,
        )
    if as_json:
        print_json(as_record(report) | ({} if drawing is None else {"svg": str(drawing)}))
    else:
        print_report(report)
    if drawing is not None:
        from pressroom.cli._cost_svg import cost_svg

        write_text(drawing, cost_svg(report))
        if not as_json:
            click.echo(f"drawn to {drawing}")


@cost.group(epilog="Example: press cost price set openai/gpt-4o-mini --prompt 0.15 --completion 0.60")
def price() -> None:
    """Say what a model costs, where nobody publishes it or it was agreed otherwise."""


@price.command("set", epilog="Example: press cost price set openai/gpt-4o-mini --prompt 0.15 --completion 0.60")
@click.argument("model", metavar="VENDOR/MODEL")
@click.option("--prompt", required=True, metavar="USD", help="For a million tokens asked.")
@click.option("--completion", required=True, metavar="USD", help="For a million tokens answered.")
@click.option(
    "--cached", metavar="USD", help="For a million tokens that the vendor had in its cache. [default: prompt]"
)
@click.option("--request", metavar="USD", help="For each request.")
@click.option("--since", callback=day, help="The day it holds from, in UTC. [default: today]")
@common
def set_(
    model: str,
    prompt: str,
    completion: str,
    cached: str | None,
    request: str | None,
    since: date | None,
    as_json: bool,
) -> None:
    """Set a price, from a day on. A running server goes by it within a second; what is in the ledger stays as it is
    (`press cost reprice` repairs that).

    VENDOR is openai, anthropic, what `press cost prices` calls it, or the host that is asked; MODEL may be * for all
    others of it. own/NAME is a model of your own, to charge for it.
    """
    from pressroom.cli._cost_asking import unheard_of
    from pressroom.cost import Price, Prices
    from pressroom.kernel import Workspace

    asked = {"prompt": prompt, "completion": completion, "cached": cached, "request": request}
    wanted = Price.parse(asked)
    with Workspace.open() as workspace:
        prices = Prices(workspace)
        note = unheard_of(workspace, prices, model)
        done = prices.set(model, wanted, since=since)
    _print_set(done, as_json=as_json, note=note)


@price.command(epilog="Example: press cost price unset openai/gpt-4o-mini")
@click.argument("model", metavar="VENDOR/MODEL")
@click.option("--since", callback=day, help="The day from which on it holds no more, in UTC. [default: today]")
@common
def unset(model: str, since: date | None, as_json: bool) -> None:
    """Take a price back, from a day on: published prices count again."""
    from pressroom.cost import Prices
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        done = Prices(workspace).unset(model, since=since)
    _print_set(done, as_json=as_json)


@cost.command(epilog="Example: press cost prices --model gpt-4o")
@click.option("--model", "part", default="", help="Only those with this in VENDOR/MODEL.")
@click.option("--day", "as_of", callback=day, help="As they were on this day. [default: today, in UTC]")
@common
def prices(part: str, as_of: date | None, as_json: bool) -> None:
    """The prices that are known: those that were set, then those that vendors publish, as the installed snapshot of
    genai-prices has them. US dollars for a million tokens."""
    from pressroom.cli._cost_tables import print_prices
    from pressroom.cost import Prices
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        found = list(Prices(workspace).known(part, day=as_of))
    if as_json:
        print_json([{"vendor": one.vendor, "model": one.model, **one.price.as_dict()} for one in found])
        return
    print_prices(found[:_MOST_PRICES], part)
    if len(found) > _MOST_PRICES:
        click.echo(f"and {len(found) - _MOST_PRICES:,} more: name some with --model, or take --json")


@cost.command(epilog="Example: press cost replay --against openai/gpt-4o-mini --since 7d --by team")
@click.option("--against", required=True, metavar="ROUTE|MODEL|PRICE", help="What the requests are priced at.")
@_since
@_until
@click.option("--deployment", metavar="NAME", help="Only what was asked of this one.")
@click.option("--by", type=click.Choice(_GROUPS), default="day", show_default=True, help=_BY)
@click.option(
    "--token-ratio",
    callback=ratio,
    default="1",
    show_default=True,
    help="Tokens that the other tokenizer makes of one here.",
)
@common
def replay(
    against: str,
    since: float,
    until: float | None,
    deployment: str | None,
    by: str,
    token_ratio: Fraction,
    as_json: bool,
) -> None:
    """Price the requests of the last days as if another route had answered them.

    PRICE is in US dollars for a million tokens: 0.15/0.60, or prompt=0.15,completion=0.60,cached=0.075. Tokens are
    those that were counted then; another tokenizer makes more or fewer of the same text.
    """
    from pressroom.cli._cost_asking import Priced
    from pressroom.cli._cost_report import engines_elsewhere
    from pressroom.cli._cost_tables import print_replay, replay_record
    from pressroom.cost import Spending
    from pressroom.kernel import Workspace

    until = _ended(since, until)
    with Workspace.open() as workspace:
        hourly = workspace.settings.cost.machine_usd_per_hour
        other = Priced(workspace).against(against)
        spending = Spending(workspace, since=since, until=until, elsewhere=engines_elsewhere())
        found = spending.at(other.price, by, ratio=token_ratio, deployment=deployment)
    if as_json:
        print_json(replay_record(found, other, since=since, until=until, by=by, ratio=token_ratio, usd_per_hour=hourly))
    else:
        print_replay(found, other, by=by, ratio=token_ratio, usd_per_hour=hourly)


@cost.command(epilog="Example: press cost reprice --model openai/gpt-4o-mini --since 2026-11-01 --dry-run")
@click.option("--model", required=True, metavar="NAME", help="A deployment, a registered model, or VENDOR/MODEL.")
@click.option("--since", callback=moment, required=True, help="24h, 7d, 4w, or a day (UTC).")
@_until
@click.option("--price", metavar="PRICE", help="0.15/0.60, instead of the prices that are known now for each day.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@common
def reprice(model: str, since: float, until: float | None, price: str | None, dry_run: bool, as_json: bool) -> None:
    """Put right what requests cost in the ledger, where their price was wrong or not known.

    Nothing is altered: each difference is added as a row of its own, dated as the request it is for, and budgets count
    it from then on. The same command again changes nothing more; one that was stopped goes on where it was.
    """
    from pressroom.cli._cost_repair import print_repair, repair
    from pressroom.kernel import Workspace

    until = _ended(since, until)
    with Workspace.open() as workspace:
        done = repair(workspace, model, since=since, until=until, price=price, dry_run=dry_run, quiet=as_json)
    if as_json:
        print_json(done)
    else:
        print_repair(done)


def _ended(since: float, until: float | None) -> float:
    ended = time.time() if until is None else until
    if since >= ended:
        raise click.UsageError("--since is not before --until: there is no time between them")
    return ended


def _print_set(done: SetPrice, *, as_json: bool, note: str = "") -> None:
    name = f"{done.vendor}/{done.model}"
    if as_json:
        said: Price | None = done.price
        record: dict[str, Any] = {"vendor": done.vendor, "model": done.model, "since": done.since.isoformat()}
        print_json({**record, "price": None if said is None else said.as_dict(), "note": note})
    elif done.price is None:
        click.echo(f"{name}: what was set holds no more from {done.since} on")
    else:
        from pressroom.cli._cost_tables import price_text

        click.echo(f"{name}: {price_text(done.price)}, from {done.since} on")
    if note and not as_json:
        click.echo(f"note: {note}", err=True)
