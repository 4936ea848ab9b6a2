"""`press ledger`: the rows of requests, one by one and as a file, and taking a user out of them."""

from __future__ import annotations

import dataclasses
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, count, human_ago, human_bytes, print_json, printable, rounded, table

if TYPE_CHECKING:
    from pressroom.gateway.ledger import Entry, Filter

_OUTCOMES = ("answered", "failed", "left", "lost")
_AGE = re.compile(r"(\d{1,6})(m|h|d)")
_UNITS = {"m": 60, "h": 3_600, "d": 86_400}
_NANO = 10**9
_NO_ROW = (
    "What was refused before an engine or the cache was to answer (a wrong key, model or field, a limit, a budget, a "
    "rule) has no row."
)


def _given_moment(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A moment in UTC as people write it, in seconds since the epoch."""
    if value is None:
        return None
    age = _AGE.fullmatch(value)
    if age is not None:
        return time.time() - int(age[1]) * _UNITS[age[2]]
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is no moment. Write 2026-11-21, 2026-11-21T10:15 (UTC), or how long ago: 90m, 12h, 7d.",
            ctx,
            param,
        ) from None


def _filtered(command: Any) -> Any:
    """The options that say which rows are meant."""
    options = (
        click.option("--key", metavar="NAME", help="Only requests with this key."),
        click.option("--team", metavar="NAME", help="Only of this team."),
        click.option("--model", metavar="NAME", help="Only of this deployment."),
        click.option("--user", metavar="USER", help="Only of this user, as the client calls it."),
        click.option("--outcome", type=click.Choice(_OUTCOMES), help="Only those that ended so."),
        click.option(
            "--since", callback=_given_moment, metavar="WHEN", help="From this moment on, in UTC, or 90m, 12h, 7d ago."
        ),
        click.option("--until", callback=_given_moment, metavar="WHEN", help="Before this moment."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(invoke_without_command=True, epilog="Example: press ledger list --since 12h --model smollm2")
@common
@click.pass_context
def ledger(context: click.Context, as_json: bool) -> None:
    """The ledger: one row a request, with its tokens, its money and how it ended; alone, how much there is."""
    if context.invoked_subcommand is None:
        _print_state(as_json=as_json)


@ledger.command("list", epilog="Example: press ledger list --key ci --since 2026-11-21 --outcome failed")
@_filtered
@click.option("--limit", type=click.IntRange(1, 100_000), default=30, show_default=True, help="How many, newest first.")
@common
def list_(limit: int, as_json: bool, **which: Any) -> None:
    """The latest requests, newest first. Times are UTC."""
    from pressroom.gateway.ledger import Rows
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        rows = Rows(workspace)
        found = rows.list(_filter(which), limit=limit)
        waiting = rows.state().waiting
    if as_json:
        print_json([_record(entry) for entry in found])
        return
    if found:
        table(
            ["TIME", "ID", "KEY", "MODEL", "OUTCOME", ">STATUS", ">ASKED", ">ANSWERED", ">USD", ">SECONDS", "LANGUAGE"],
            [_line(entry) for entry in found],
        )
    else:
        click.echo("No such rows.")
    if waiting:
        click.echo(
            f"{count(waiting, 'row')} wait in the journal; a running server adds them within a second.", err=True
        )


@ledger.command(epilog="Example: press ledger show req_6f1c0a2b9d4e00000017")
@click.argument("id")
@common
def show(id: str, as_json: bool) -> None:
    """All that is on record of a request. ID is its id (x-request-id) or the beginning of it."""
    from pressroom.gateway.ledger import Rows
    from pressroom.kernel import NotFoundError, Workspace

    with Workspace.open() as workspace:
        try:
            entry, *corrections = Rows(workspace).get(id)
        except NotFoundError as error:
            if not error.message.startswith("no row"):
                raise
            raise NotFoundError(error.message, hint=f"{error.hint} {_NO_ROW}", **error.facts) from None
    if as_json:
        print_json(_record(entry) | {"corrections": [_record(each) for each in corrections]})
        return
    click.secho(entry.id, bold=True)
    record = _record(entry)
    for name, value in record.items():
        if value in ("", None, []) or name in ("id", "number", "kind", "prompt_text", "answer_text", "nano_usd"):
            continue
        click.echo(f"  {name:<18} {printable(', '.join(value) if isinstance(value, list) else str(value))}")
    for each in corrections:
        click.echo(f"  {'corrected':<18} {_usd(each.nano_usd)} USD on {_moment(each.recorded)}")
    if corrections:
        click.echo(f"  {'in all':<18} {_usd(entry.nano_usd + sum(each.nano_usd for each in corrections))} USD")
    for heading, text in (("asked", entry.prompt_text), ("answered", entry.answer_text)):
        if text:
            click.secho(f"\n{heading}", bold=True)
            click.echo(printable(text))


@ledger.command(epilog="Example: press ledger export november.parquet --since 2026-11-01 --until 2026-12-01")
@click.argument("file", type=click.Path(path_type=Path))
@_filtered
@common
def export(file: Path, as_json: bool, **which: Any) -> None:
    """Write rows to FILE: .parquet (needs pyarrow), .csv or .jsonl. It is there whole, or not at all."""
    from pressroom.cli._files import check_writable
    from pressroom.gateway.ledger import export as write
    from pressroom.kernel import Workspace

    check_writable(file)
    with Workspace.open() as workspace:
        rows = write(workspace, file, _filter(which))
    if as_json:
        print_json({"file": str(file), "rows": rows, "bytes": file.stat().st_size})
    else:
        click.echo(f"{count(rows, 'row')} in {file}, {human_bytes(file.stat().st_size)}")


@ledger.command(epilog="Example: press ledger forget alice@example.com")
@click.argument("user")
@common
def forget(user: str, as_json: bool) -> None:
    """Take a USER, and the texts, out of all rows of theirs. The figures stay."""
    from pressroom.gateway.ledger import Rows
    from pressroom.kernel import Workspace

    if not user:
        raise click.UsageError("USER is empty. Name the user as the client does.")
    with Workspace.open() as workspace:
        rows = Rows(workspace).forget(user)
    if as_json:
        print_json({"rows": rows})
    else:
        click.echo(f"taken out of {count(rows, 'row')}" if rows else "no row is of this user")


@ledger.command(epilog="Example: press ledger status")
@common
def status(as_json: bool) -> None:
    """How much there is, what waits in journals, and who writes."""
    _print_state(as_json=as_json)


def _print_state(*, as_json: bool) -> None:
    from pressroom.gateway.ledger import Rows
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        state = Rows(workspace).state()
        kept = workspace.settings.ledger.keep_days
        content = workspace.settings.ledger.content
    if as_json:
        print_json(rounded(dataclasses.asdict(state)) | {"keep_days": kept, "content": content})
        return
    span = (
        f", {_moment(state.first)[:19]} to {_moment(state.last)[:19]}" if state.first is not None and state.last else ""
    )
    click.echo(f"rows      {state.rows:,}{span}")
    click.echo(f"waiting   {state.waiting:,} in {count(state.segments, 'segment')}, {human_bytes(state.journal_bytes)}")
    writers = [f"worker {w['worker']} (process {w['pid']}, since {human_ago(w['since'])})" for w in state.writers]
    click.echo(f"written   by {', '.join(writers)}" if writers else "written   by nobody now")
    click.echo(f"kept      {f'{kept} days' if kept else 'for ever'}, texts: {content}")


def _filter(which: dict[str, Any]) -> Filter:
    from pressroom.gateway.ledger import Filter

    return Filter(**which)


def _line(entry: Entry) -> list[str]:
    correction = entry.corrects is not None
    outcome = f"cache ({entry.cache})" if entry.cache else entry.outcome
    return [
        _moment(entry.at)[:19],
        entry.corrects or entry.id,
        entry.key,
        entry.model + (f" ({entry.branch})" if entry.branch else ""),
        "correction" if correction else outcome,
        "" if correction else str(entry.status),
        "" if correction else f"{entry.prompt_tokens:,}",
        "" if correction else f"{entry.completion_tokens:,}",
        _usd(entry.nano_usd),
        "" if correction else f"{entry.total_s:.3f}",
        entry.language,
    ]


def _record(entry: Entry) -> dict[str, Any]:
    values: dict[str, Any] = rounded(dataclasses.asdict(entry))
    values["verdicts"] = list(entry.verdicts)
    return values | {"at": _moment(entry.at), "recorded": _moment(entry.recorded), "usd": _usd(entry.nano_usd)}


def _moment(at: float) -> str:
    return datetime.fromtimestamp(min(max(at, 0.0), 253402300799.0), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _usd(nano: int) -> str:
    """Dollars, exact: at least two digits behind the point, nine where they are needed."""
    whole, rest = divmod(abs(nano), _NANO)
    digits = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{whole:,}.{digits}"
