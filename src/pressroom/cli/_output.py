"""What commands print: aligned text for people, one JSON document for scripts."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def common(command: F) -> F:
    """Add `--json` and `--debug` to a command; the function receives `as_json`."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
    @click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def print_json(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, default=str)
    # Half a character, from a name in a file, cannot be written: then all that is not ASCII goes as escapes.
    click.echo(text if text.isprintable() or _is_text(text) else json.dumps(value, default=str))


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their longest cell; a column whose heading starts with '>' is right-aligned."""
    names = [heading.lstrip(">") for heading in headings]
    widths = [max([len(name), *(len(row[i]) for row in rows)]) for i, name in enumerate(names)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if heading.startswith(">") else cell.ljust(width)
            for cell, width, heading in zip(cells, widths, headings, strict=True)
        )
        return "  ".join(padded).rstrip()

    click.secho(line(names), bold=True)
    for row in rows:
        click.echo(line(row))


def count(number: int, what: str) -> str:
    """1 file, 1,234 files."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Without what would steer a terminal: the text is a stranger's."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def plain(number: float, digits: int = 3) -> str:
    """0.00009 and 1,234.5: so many digits that mean something behind the point, never an exponent."""
    number = round(number, digits) if abs(number) >= 1 else float(f"{number:.{digits}g}")
    return f"{Decimal(repr(number)).normalize():,f}"


def rounded(value: Any, digits: int = 6) -> Any:
    """The same record with so many decimals in its floats: what was measured has no more that mean anything."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, Mapping):
        return {name: rounded(each, digits) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each, digits) for each in value]
    return value


def human_bytes(count: float) -> str:
    """12.3 MB: decimal units, as disks and hubs count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_count(count: float) -> str:
    """134.5M: parameters and tokens."""
    for unit in ("", "k", "M", "B"):
        if abs(count) < 1000:
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}T"


def human_ago(at: float) -> str:
    """3 min ago, from seconds since the epoch."""
    seconds = max(0.0, time.time() - at)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def human_value(value: float | int | str, unit: str) -> str:
    """A figure with its unit as people read it."""
    if isinstance(value, str):
        return value
    if unit == "B":
        return human_bytes(value)
    exact = isinstance(value, int)
    text = f"{value:,}" if exact else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()
