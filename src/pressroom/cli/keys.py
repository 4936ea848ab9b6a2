"""`press keys`: who may do what, and how much of it."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, human_ago, print_json, table

if TYPE_CHECKING:
    from pressroom.kernel import Key

_SUFFIXES = {"": 1, "k": 1_000, "m": 1_000_000}
_UNITS = {"min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_NONE = "none"


def _bound(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """A limit as it is written: 60, 10k, 2M; `none` where it is to be taken away."""
    if value is None or value.strip().lower() == _NONE:
        return value and _NONE
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([kKmM]?)\s*", value)
    number = Fraction(found[1]) * _SUFFIXES[found[2].lower()] if found is not None else Fraction()
    if found is not None and not number:
        raise click.BadParameter(
            f"{value!r} would let nothing through: `press keys revoke NAME` ends a key, none takes the limit away"
        )
    if number < 1 or number.denominator != 1:
        raise click.BadParameter(f"{value!r} is no limit: write a whole number above 0, as 60, 10k or 2.5M, or none")
    return int(number)


def _end(ctx: click.Context, param: click.Parameter, value: str | None) -> float | str | None:
    """A time to come in seconds since the epoch: so long from now, or with the end of a day in UTC."""
    if value is None or value.strip().lower() == _NONE:
        return value and _NONE
    text = value.strip()
    span = re.fullmatch(r"(\d{1,6})\s*(min|h|d|w)", text)
    now = time.time()
    try:
        if span is not None:
            at = now + int(span[1]) * _UNITS[span[2]]
        elif re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            at = (datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(days=1)).timestamp()
        else:
            moment = datetime.fromisoformat(text)
            at = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is not a time: 30d, 12h, 45min or 2w from now, 2026-12-31 (with the end of that day in UTC), "
            "2026-12-31T18:00 (UTC where it says nothing else), or none"
        ) from None
    if at <= now:
        raise click.BadParameter(f"{value!r} is not a time to come; `press keys revoke NAME` ends a key at once")
    return at


_BOUNDS = (
    click.option("--team", metavar="TEAM", help="Who shares its budgets, files and batches; none for nobody."),
    click.option("--rpm", callback=_bound, metavar="N", help="Requests a minute: 60, 10k, or none."),
    click.option("--tpm", callback=_bound, metavar="N", help="Tokens a minute, asked and answered: 2M, or none."),
    click.option("--parallel", callback=_bound, metavar="N", help="Requests at once, or none."),
    click.option(
        "--expires", callback=_end, metavar="WHEN", help="30d, 12h, 2026-12-31 (all of that day, UTC), or none."
    ),
)


def _bounds(command: Any) -> Any:
    for option in reversed(_BOUNDS):
        command = option(command)
    return command


@click.group(
    invoke_without_command=True,
    epilog="Example: press keys create app --right ask:chat* --rpm 60 --expires 30d",
)
@common
@click.pass_context
def keys(context: click.Context, as_json: bool) -> None:
    """Who may ask, read, write and promote; without a command, the keys there are."""
    if context.invoked_subcommand is None:
        _print_keys(revoked=False, as_json=as_json)


@keys.command(epilog="Example: press keys create app --right ask:chat* --team web --rpm 60 --tpm 100k --expires 30d")
@click.argument("name")
@click.option(
    "--right",
    "rights",
    multiple=True,
    required=True,
    metavar="RIGHT[:PATTERN]",
    help="ask (use deployments), read, write, promote (the registry) or admin (all), and behind ':' the names it is "
    "for. Can be given again.",
)
@_bounds
@common
def create(name: str, rights: tuple[str, ...], as_json: bool, **bounds: Any) -> None:
    """Make a key and show its secret, once: only its SHA-256 is kept."""
    from pressroom.kernel import Keys, Workspace

    with Workspace.open() as workspace:
        key, secret = Keys(workspace).create(name, rights, **_wanted(bounds))
    if as_json:
        print_json({**_record(key), "secret": secret})
        return
    # The secret alone goes to standard output, so that a script can take it.
    click.echo(f"{key.name} may {', '.join(key.rights)}{_told(key)}. Its secret is shown this once:", err=True)
    click.echo(secret)


@keys.command(epilog="Example: press keys limit app --rpm 120 --tpm none --expires 2026-12-31")
@click.argument("name")
@_bounds
@common
def limit(name: str, as_json: bool, **bounds: Any) -> None:
    """Change the limits, the team or the end of a key; what is not given stays. In force within a second."""
    from pressroom.kernel import Keys, Workspace

    wanted = _wanted(bounds)
    if not wanted:
        raise click.UsageError("give at least one of --team, --rpm, --tpm, --parallel and --expires")
    with Workspace.open() as workspace:
        key = Keys(workspace).change(name, **wanted)
    if as_json:
        print_json(_record(key))
    else:
        click.echo(f"{key.name}{_told(key) or ' has no limits'}")


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
    """End a key: from now on its secret is refused everywhere, by a gateway that runs within a second."""
    from pressroom.kernel import Keys, Workspace

    with Workspace.open() as workspace:
        key = Keys(workspace).revoke(name)
    if as_json:
        print_json(_record(key))
    else:
        click.echo(f"{key.name} is revoked")


def _wanted(bounds: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, by the names and as the values that `Keys` takes."""
    names = {"rpm": "requests_per_minute", "tpm": "tokens_per_minute"}
    wanted = {names.get(name, name): value for name, value in bounds.items() if value is not None}
    return {name: ("" if name == "team" else None) if value == _NONE else value for name, value in wanted.items()}


def _print_keys(*, revoked: bool, as_json: bool) -> None:
    from pressroom.kernel import Keys, Workspace

    with Workspace.open() as workspace:
        found = Keys(workspace).list(revoked=revoked)
    if as_json:
        print_json([_record(key) for key in found])
        return
    if not found:
        click.echo("No keys. Make one with: press keys create NAME --right ask")
        return
    columns = ["NAME", "TEAM", "RIGHTS", "LIMITS", "EXPIRES", "CREATED", *(["REVOKED"] if revoked else [])]
    table(columns, [_row(key)[: len(columns)] for key in found])


def _row(key: Key) -> list[str]:
    ends = "" if key.expires is None else _moment(key.expires)
    over = key.expires is not None and key.expires <= time.time()
    return [
        key.name,
        key.team,
        ", ".join(key.rights),
        ", ".join(_limits(key)),
        f"{ends} (over)" if over else ends,
        human_ago(key.created),
        "" if key.revoked is None else _moment(key.revoked),
    ]


def _limits(key: Key) -> list[str]:
    found = []
    if key.requests_per_minute is not None:
        found.append(f"{key.requests_per_minute:,} requests/min")
    if key.tokens_per_minute is not None:
        found.append(f"{key.tokens_per_minute:,} tokens/min")
    if key.parallel is not None:
        found.append(f"{key.parallel:,} at once")
    return found


def _told(key: Key) -> str:
    """What bounds it, to be read after its name."""
    parts = [f"team {key.team}"] if key.team else []
    parts += _limits(key)
    if key.expires is not None:
        parts.append(f"until {_moment(key.expires)}")
    return f", {', '.join(parts)}" if parts else ""


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _record(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "rights": list(key.rights),
        "team": key.team,
        "limits": {
            "requests_per_minute": key.requests_per_minute,
            "tokens_per_minute": key.tokens_per_minute,
            "parallel": key.parallel,
        },
        "expires": key.expires,
        "created": key.created,
        "revoked": key.revoked,
    }
