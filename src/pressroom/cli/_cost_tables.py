"""What `press cost` prints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import human_count, plain, printable, table

if TYPE_CHECKING:
    from pressroom.cli._cost_asking import Against
    from pressroom.cli._cost_report import Report
    from pressroom.cost import BreakEven, Known, Price, Replayed, Spent

_NANO = 10**9
_MICRO_IN_HOUR = 3_600_000_000
# Of users there may be thousands; `--json` has them all.
_MOST_LINES = 50


def dollars(nano: int | None) -> str:
    """An amount as people read it: cents where there are many, digits that mean something where there are few."""
    if nano is None:
        return "-"
    value = nano / _NANO
    if nano == 0 or abs(value) >= 10:
        return f"{value:,.2f}"
    return f"{value:,.4f}" if abs(value) >= 0.01 else plain(value)


def price_text(price: Price) -> str:
    """0.15 USD for a million tokens asked, 0.6 answered, …"""
    from pressroom.cost import PICO_A_TOKEN, usd

    text = f"{usd(price.prompt, PICO_A_TOKEN)} USD for a million tokens asked"
    if price.cached != price.prompt:
        text += f" ({usd(price.cached, PICO_A_TOKEN)} where the vendor has them in its cache)"
    text += f", {usd(price.completion, PICO_A_TOKEN)} answered"
    return text + (f", {usd(price.request_nano)} a request" if price.request_nano else "")


def print_report(report: Report) -> None:
    """Spending, then the own machine, then where it breaks even."""
    click.secho(f"{_moment(report.since)} to {_moment(report.until)} (UTC)", bold=True)
    if not report.total.requests:
        click.echo("No request is in the ledger for that time.")
    else:
        _spent(report)
        if report.unpriced:
            click.secho(
                f"{report.unpriced:,} requests were answered by vendors whose price nobody knew: they count as 0. "
                + _to_set(report.unpriced_models),
                fg="yellow",
                err=True,
            )
    _own(report)
    _even(report)


def _to_set(models: Sequence[str]) -> str:
    if not models:
        return "Give a price to repair the rows: press cost reprice --model NAME --since DAY --price 0.15/0.60."
    others = f" (also {', '.join(models[1:4])}{', …' if len(models) > 4 else ''})" if len(models) > 1 else ""
    return (
        f"Set it: press cost price set {models[0]} --prompt USD --completion USD --since DAY{others}; "
        f"then repair the rows: press cost reprice --model {models[0]} --since DAY."
    )


def heading_of(by: str) -> str:
    """What is summed, as the heading of its column."""
    return "ROUTE" if by == "branch" else by.upper()


def shown_of(by: str, groups: int) -> int:
    """How many of the groups have a line of their own; the others share one. Days are never left out."""
    return groups if by == "day" or groups <= _MOST_LINES else _MOST_LINES - 1


def _spent(report: Report) -> None:
    total = report.total
    language = report.by == "language"
    charged = total.own_nano_usd != 0
    machine = report.machine
    headings = [
        heading_of(report.by),
        ">REQUESTS",
        ">FROM CACHE",
        ">TOKENS ASKED",
        ">ANSWERED",
        ">OWN",
        ">VENDORS",
        ">VENDORS USD",
    ]
    headings += [">CHARGED USD"] if charged else []
    headings += [">MACHINE USD", ">TOTAL USD"] if machine is not None else []
    headings += [">TOKENS A REQUEST", ">TO ENGLISH"] if language else []

    def line(name: str, one: Spent, part: int | None, ratio: str) -> list[str]:
        cells = [name, f"{one.requests:,}", f"{one.cached:,}", f"{one.prompt_tokens:,}", f"{one.completion_tokens:,}"]
        cells += [f"{one.own_tokens:,}", f"{one.vendor_tokens:,}", dollars(one.vendor_nano_usd)]
        cells += [dollars(one.own_nano_usd)] if charged else []
        cells += [dollars(part), dollars(one.vendor_nano_usd + (part or 0))] if machine is not None else []
        worked = one.requests - one.cached
        return cells + ([f"{one.tokens / worked:.1f}" if worked else "-", ratio] if language else [])

    from pressroom.cli._cost_report import english

    ratios = english(report.groups) if language else {}
    lines = []
    shown = shown_of(report.by, len(report.groups))
    for at, one in enumerate(report.groups[:shown]):
        ratio = ratios.get(one.name)
        part = None if machine is None else machine[at]
        lines.append(line(printable(one.name) or "-", one, part, "-" if ratio is None else f"{ratio:.2f} ×"))
    if rest := report.groups[shown:]:
        from pressroom.cost import together

        part = None if machine is None else sum(machine[shown:])
        lines.append(line(f"{len(rest):,} others", together(rest), part, ""))
    if len(lines) > 1:
        lines.append(line("together", total, report.busy_machine, ""))
    table(headings, lines)


def _own(report: Report) -> None:
    click.echo()
    hours = report.powered_s / 3_600
    if report.machine_nano is None:
        click.echo(f"The server was on for {hours:,.1f} hours. What the machine costs is not known: set")
        click.echo("machine_usd_per_hour under [cost] in pressroom.toml, or give --machine-usd-per-hour.")
    else:
        said = f"{plain(report.usd_per_hour)} USD an hour: {dollars(report.machine_nano)} USD"
        click.echo(f"The server was on for {hours:,.1f} hours at {said}.")
    if not report.made:
        return
    table(
        ["OWN ENGINES", "VERSION", ">TOKENS", ">BUSY HOURS", ">USD", ">USD A MILLION", ">AT FULL USE"],
        [
            [
                f"{one.work.deployment}/{one.work.branch}".rstrip("/"),
                one.work.ref,
                f"{one.work.tokens:,}",
                f"{one.work.microseconds / _MICRO_IN_HOUR:,.2f}",
                dollars(one.nano),
                dollars(one.nano_a_million),
                dollars(one.best_nano_a_million),
            ]
            for one in report.made
        ],
    )
    if any(one.best_nano_a_million is not None for one in report.made):
        click.echo("At full use: a million answered tokens, at the best speed on the version's sheet.")


def _even(report: Report) -> None:
    if report.machine_nano is None or not report.tokens:
        return
    click.echo()
    if not report.even:
        click.echo("Nothing to break even with: name a vendor's model, as --against openai/gpt-4o-mini.")
        return
    table(
        ["BREAK-EVEN WITH", ">USD A MILLION", ">TOKENS A MONTH", ">ONE MACHINE MAKES", ""],
        [
            [
                one.vendor,
                dollars(one.vendor_nano_a_million),
                "-" if one.tokens_a_month is None else human_count(one.tokens_a_month),
                "?" if one.capacity is None else human_count(one.capacity),
                verdict(one, report.month_tokens),
            ]
            for one in report.even
        ],
    )
    whose = "own engines" if report.own_traffic else "all requests"
    click.echo(
        f"For traffic as that of {whose}, now {human_count(report.month_tokens)} tokens a month; "
        f"a month has {plain(report.month_hours)} hours, {dollars(report.even[0].month_nano)} USD."
    )


def verdict(even: BreakEven, month_tokens: int) -> str:
    """In a few words, which is cheaper when."""
    if even.tokens_a_month is None:
        return "never: this vendor asks nothing"
    if even.reached is False:
        assert even.capacity is not None
        times = even.tokens_a_month / max(even.capacity, 1)
        return f"never: it takes {times:,.1f} × what one machine makes"
    if even.reached is None:
        return "measure what the machine makes: press measure REF"
    return "the own machine is cheaper now" if month_tokens >= even.tokens_a_month else "the vendor is cheaper now"


def print_prices(found: Sequence[Known], part: str) -> None:
    """A line a model."""
    from pressroom.cost import has_published, usd

    if not found:
        click.echo(f"No price is known for {part!r}." if part else "No price is known.")
        click.echo("Set one: press cost price set VENDOR/MODEL --prompt USD --completion USD")
        if not has_published():
            click.echo("Published prices come with pip install 'pressroom[vendors]'.")
        return
    table(
        ["MODEL", ">PROMPT", ">CACHED", ">COMPLETION", ">REQUEST", "FROM", "SINCE"],
        [
            [
                f"{one.vendor}/{one.model}",
                _stepped(one.price, "prompt"),
                _stepped(one.price, "cached"),
                _stepped(one.price, "completion"),
                usd(one.price.request_nano) if one.price.request_nano else "",
                one.price.source.partition(":")[0],
                one.price.since,
            ]
            for one in found
        ],
    )
    steps = [one for one in found if one.price.tiers]
    if steps:
        tokens = sorted({tier.above for one in steps for tier in one.price.tiers})
        click.echo(f"+: dearer for prompts above {' or '.join(f'{above:,}' for above in tokens)} tokens")


def _stepped(price: Price, name: str) -> str:
    from pressroom.cost import PICO_A_TOKEN, usd

    first = getattr(price, name)
    rises = any(getattr(tier, name) != first for tier in price.tiers)
    return usd(first, PICO_A_TOKEN) + ("+" if rises else "")


def machine_of(found: Sequence[Replayed], other: Against, *, ratio: Fraction, usd_per_hour: float) -> dict[str, Any]:
    """What the answers would take of a machine of one's own that works at its best, where that is known."""
    from pressroom.cost import machine_nano

    if not other.own or other.tokens_a_second is None:
        return {}
    seconds = float(sum(one.completion_tokens for one in found) * ratio) / other.tokens_a_second
    nano = machine_nano(seconds, usd_per_hour) if usd_per_hour > 0 else None
    return {"tokens_per_second": other.tokens_a_second, "machine_s": round(seconds, 3), "machine_nano_usd": nano}


def print_replay(found: Sequence[Replayed], other: Against, *, by: str, ratio: Fraction, usd_per_hour: float) -> None:
    """A line a group, and what it comes to."""
    click.secho(f"{other.name}: {price_text(other.price)} ({other.price.source})", bold=True)
    if not found:
        click.echo("No request is in the ledger for that time.")
        return
    shown = shown_of(by, len(found))
    lines = [_replayed(printable(one.name) or "-", *_sums([one])) for one in found[:shown]]
    if rest := found[shown:]:
        lines.append(_replayed(f"{len(rest):,} others", *_sums(rest)))
    if len(found) > 1:
        lines.append(_replayed("together", *_sums(found)))
    table([heading_of(by), ">REQUESTS", ">TOKENS", ">PAID USD", ">THERE USD", ">DIFFERENCE USD"], lines)
    if other.own:
        click.echo("A route of one's own costs what the machine costs: `press cost` has that.")
        machine = machine_of(found, other, ratio=ratio, usd_per_hour=usd_per_hour)
        if machine:
            nano = machine["machine_nano_usd"]
            said = "" if nano is None else f", {dollars(nano)} USD"
            hours = f"{machine['machine_s'] / 3_600:,.2f} hours of it{said}"
            speed = plain(machine["tokens_per_second"], 1)
            click.echo(f"The answers alone take {hours}, at the best speed on the sheet ({speed} tokens/s).")
    if ratio == 1:
        click.echo("Tokens as they were counted then; another tokenizer makes more or fewer (--token-ratio).")
    else:
        click.echo(f"Tokens × {float(ratio):g}.")


def _sums(found: Sequence[Replayed]) -> list[int]:
    names = ("requests", "tokens", "nano_usd", "replayed_nano_usd")
    return [sum(getattr(one, name) for one in found) for name in names]


def _replayed(name: str, requests: int, tokens: int, paid: int, there: int) -> list[str]:
    return [
        name,
        f"{requests:,}",
        f"{tokens:,}",
        dollars(paid),
        dollars(there),
        f"{'+' if there > paid else ''}{dollars(there - paid)}",
    ]


def replay_record(
    found: Sequence[Replayed],
    other: Against,
    *,
    since: float,
    until: float,
    by: str,
    ratio: Fraction,
    usd_per_hour: float,
) -> dict[str, Any]:
    """As JSON: amounts in nano-dollars."""
    groups = [
        {
            "name": one.name,
            "requests": one.requests,
            "tokens": one.tokens,
            "nano_usd": one.nano_usd,
            "replayed_nano_usd": one.replayed_nano_usd,
            "difference_nano_usd": one.replayed_nano_usd - one.nano_usd,
        }
        for one in found
    ]
    names = ("requests", "tokens", "nano_usd", "replayed_nano_usd", "difference_nano_usd")
    return {
        "since": round(since, 3),
        "until": round(until, 3),
        "against": {"name": other.name, "own": other.own, "price": other.price.as_dict()},
        "token_ratio": float(ratio),
        "by": by,
        "groups": groups,
        **machine_of(found, other, ratio=ratio, usd_per_hour=usd_per_hour),
        "total": {name: sum(int(str(one[name])) for one in groups) for name in names},
    }


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
