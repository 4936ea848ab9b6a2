"""`press budget`: how much may be spent, and how much of it was."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, print_json, table

if TYPE_CHECKING:
    from pressroom.gateway.money import Budget, Budgets
    from pressroom.kernel import Workspace

# Tokens and nano-dollars by scope, name and period.
_Sums = dict[tuple[str, str, str], tuple[int, int]]
_BAR = 20
_ANYTHING = {"ignore_unknown_options": True}  # -5usd is a wrong amount, not an option


@click.group(
    invoke_without_command=True,
    epilog="Example: press budget set team:research 20usd/month",
)
@common
@click.pass_context
def budget(context: click.Context, as_json: bool) -> None:
    """How much may be spent by a key, a team, a deployment or all; without a command, the budgets there are.

    Before a request runs, the most it can cost is set aside in every budget that counts it; one that does not fit is
    answered 429.
    """
    if context.invoked_subcommand is None:
        _print_budgets(as_json=as_json)


@budget.command("set", context_settings=_ANYTHING, epilog="Example: press budget set key:alice 5usd/day")
@click.argument("whose", metavar="WHOSE")
@click.argument("amount", metavar="AMOUNT", nargs=-1, required=True)
@common
def set_(whose: str, amount: tuple[str, ...], as_json: bool) -> None:
    """Bound what WHOSE may spend: key:NAME, team:NAME, deployment:NAME or all.

    AMOUNT is 5usd/day, 0.50usd/month, 2M tokens/month, or 100usd for all time. Days and months are those of UTC. What
    was spent in the present one counts. One budget of each kind can be there, and all that are there hold.
    """
    from pressroom.gateway.money import Budgets, parse_budget
    from pressroom.gateway.money.amounts import budget_text
    from pressroom.kernel import Workspace

    wanted = parse_budget(whose, " ".join(amount))
    with Workspace.open() as workspace:
        budgets = Budgets(workspace)
        before = budgets.set(wanted)
        doubt = _doubt(workspace, wanted)
        record = _record(wanted, _spent(budgets, at := time.time()), at)
    if as_json:
        print_json({**record, "before": before.amount if before else None, "note": doubt})
        return
    was = f" (it was {_shown(before)})" if before and before != wanted else ""
    click.echo(f"{budget_text(wanted)[4:]}{was}")
    if doubt:
        click.echo(f"note: {doubt}", err=True)


@budget.command("list", epilog="Example: press budget list")
@common
def list_(as_json: bool) -> None:
    """The budgets, and how much of each is spent, as far as the ledger is written: a second ago while a server runs."""
    _print_budgets(as_json=as_json)


@budget.command(context_settings=_ANYTHING, epilog="Example: press budget remove key:alice usd/day")
@click.argument("whose", metavar="WHOSE")
@click.argument("kind", metavar="[KIND]", required=False)
@common
def remove(whose: str, kind: str | None, as_json: bool) -> None:
    """Remove the budgets of WHOSE, or the one of KIND: usd/day, tokens/month, usd."""
    from pressroom.gateway.money import Budgets, parse_limit, parse_scope
    from pressroom.gateway.money.amounts import budget_text
    from pressroom.kernel import Workspace

    scope, name = parse_scope(whose)
    unit, period = parse_limit(kind) if kind is not None else (None, None)
    with Workspace.open() as workspace:
        gone = Budgets(workspace).remove(scope, name, unit=unit, period=period)
    if as_json:
        print_json([_plain(each) for each in gone])
        return
    for each in gone:
        click.echo(f"removed {budget_text(each)}")


def _print_budgets(*, as_json: bool) -> None:
    from pressroom.gateway.money import Budgets
    from pressroom.gateway.money.amounts import short_text
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        budgets = Budgets(workspace)
        found = budgets.list()
        at = time.time()
        spent = _spent(budgets, at) if found else {}
        records = [_record(each, spent, at) for each in found]
    if as_json:
        print_json(records)
        return
    if not found:
        click.echo("No budgets. Set one with: press budget set all 50usd/month")
        return
    rows = []
    for each, record in zip(found, records, strict=True):
        share = record["share"]
        rows.append(
            [
                _whose(each),
                _shown(each),
                short_text(record["spent"], each.unit),
                short_text(record["left"], each.unit),
                f"{_bar(share)} {_share(share)}".rstrip(),
                (record["begins_anew"] or "never")[:16].replace("T", " "),
            ]
        )
    table(["WHOSE", ">BUDGET", ">SPENT", ">LEFT", "SHARE", "ANEW (UTC)"], rows)


def _spent(budgets: Budgets, at: float) -> _Sums:
    """What everybody spent in the day and the month of that moment, and in all."""
    from pressroom.gateway.money.periods import labels_of

    return budgets.spent(labels_of(at))


def _record(budget: Budget, sums: _Sums, at: float) -> dict[str, Any]:
    """A budget with what was spent of it, of the sums at that moment; amounts in nano-dollars or tokens."""
    from pressroom.gateway.money import Unit
    from pressroom.gateway.money.periods import begins_anew, day_of, label_of

    label = label_of(budget.period, day_of(at))
    tokens, nano_usd = sums.get((budget.scope, budget.name, label), (0, 0))
    spent = nano_usd if budget.unit is Unit.USD else tokens
    anew = begins_anew(budget.period, day_of(at))
    return {
        **_plain(budget),
        "spent": spent,
        "left": max(budget.amount - spent, 0),
        "share": round(spent / budget.amount, 6) if budget.amount else None,
        "label": label,
        "begins_anew": None if anew is None else anew.isoformat(),
    }


def _plain(budget: Budget) -> dict[str, Any]:
    return {
        "scope": str(budget.scope),
        "name": budget.name,
        "unit": str(budget.unit),
        "period": str(budget.period),
        "amount": budget.amount,
    }


def _whose(budget: Budget) -> str:
    return f"{budget.scope}:{budget.name}" if budget.name else str(budget.scope)


def _shown(budget: Budget) -> str:
    from pressroom.gateway.money import Period
    from pressroom.gateway.money.amounts import amount_text

    amount = amount_text(budget.amount, budget.unit)
    return amount if budget.period is Period.TOTAL else f"{amount}/{budget.period}"


def _bar(share: float | None) -> str:
    """A share of 20 blocks: a full one only where all is spent, an empty one only where nothing is."""
    if share is None:
        return " " * _BAR
    full = min(int(share * _BAR), _BAR)
    if not full and share > 0:
        return "▏" + "·" * (_BAR - 1)
    return "█" * full + "·" * (_BAR - full)


def _share(share: float | None) -> str:
    """25%, or 12 × where it is many times the budget; 100% only where all of it is spent."""
    if share is None:
        return ""
    if share >= 10:
        return f"{share:,.0f} ×"
    return "99%" if 0.99 < share < 1 else "<1%" if 0 < share < 0.01 else f"{share:.0%}"


def _doubt(workspace: Workspace, budget: Budget) -> str:
    """What may be wrong with the name: a budget for a name that nobody has bounds nothing."""
    from pressroom.deploy import Deployments
    from pressroom.gateway.money import Scope
    from pressroom.kernel import Keys, did_you_mean

    if budget.scope is Scope.KEY:
        known = [key.name for key in Keys(workspace).list()]
    elif budget.scope is Scope.TEAM:
        known = sorted({key.team for key in Keys(workspace).list() if key.team})
    elif budget.scope is Scope.DEPLOYMENT:
        known = [wish.name for wish in Deployments(workspace).list()]
    else:
        return ""
    if budget.name in known:
        return ""
    if budget.scope is Scope.TEAM:
        text = f"no key is of the team {budget.name!r} yet."
    else:
        text = f"there is no {budget.scope} called {budget.name!r} yet."
    return f"{text} {did_you_mean(budget.name, known, otherwise='')}".strip()
