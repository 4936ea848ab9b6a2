"""Write the pages that are made from the code and from the notes in changes/, or check that they are current.

Usage: python scripts/docs.py [--check]
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pressroom.cli import press
from pressroom.kernel.settings import FILE_NAME, PREFIX, WORKSPACE_VARIABLE, described, sections

ROOT = Path(__file__).resolve().parent.parent
MADE = "<!-- Made by `make docs`; do not edit by hand. -->"


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        MADE,
        "",
        f"Defaults, then `{FILE_NAME}`, then `{PREFIX}*` variables: the later one wins. A name that does not exist",
        "or a value that does not fit is an error that quotes it; nothing is guessed.",
        "",
        f"`{FILE_NAME}` stands in the workspace: the nearest directory, from the current one upward, that holds it or",
        f"`.pressroom/`; without either, the current directory. `{WORKSPACE_VARIABLE}` names the directory instead.",
        "",
    ]
    for section, kind in sections().items():
        lines += [f"## [{section}]" if section else "## At the top of the file", ""]
        lines += ["| setting | default | allowed | variable | what it is |", "|---|---|---|---|---|"]
        for dotted, variable, default, help in described():
            head, _, name = dotted.rpartition(".")
            if head == section:
                allowed = _allowed(default, kind.__dataclass_fields__[name].metadata)
                lines.append(f"| `{name}` | `{_toml(default)}` | {allowed} | `{variable}` | {help} |")
        lines.append("")
    lines += ["## An example", "", "```toml", *_example(), "```", ""]
    return "\n".join(lines)


def _allowed(default: Any, limits: Any) -> str:
    if limits["choices"]:
        return ", ".join(f"`{choice}`" for choice in limits["choices"])
    low, high = limits["low"], limits["high"]
    kind = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}[type(default)]
    if low is not None and high is not None:
        return f"{kind}, {low} to {high}"
    if low is not None:
        return f"{kind}, at least {low}"
    return kind if high is None else f"{kind}, at most {high}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _example() -> Iterator[str]:
    """The file that says what the defaults say."""
    last = ""
    for dotted, _, default, _ in described():
        section, _, name = dotted.rpartition(".")
        if section != last:
            yield ""
            yield f"[{section}]"
            last = section
        yield f"{name} = {_toml(default)}"


def cli_page() -> str:
    # A fixed width, so that the page does not depend on the terminal it was made in.
    root = click.Context(press, info_name="press", terminal_width=100, **press.context_settings)
    return "\n".join(["# Commands", "", MADE, "", *_help(root), *_below(press, root)])


def _below(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"{context.command_path} lists {name}, which does not exist"
        inner = click.Context(command, info_name=name, parent=context, terminal_width=100)
        yield from (f"## {inner.command_path}", "", *_help(inner))
        if isinstance(command, click.Group):
            yield from _below(command, inner)


def _help(context: click.Context) -> list[str]:
    text = context.get_help().rstrip()
    return ["```text", *(line.rstrip() for line in text.splitlines()), "```", ""]


KINDS = {"feature": "Added", "fix": "Fixed", "upgrade": "When you upgrade", "deprecation": "Going away"}
_UNRELEASED, _RELEASED = "## Unreleased\n", "\n## "


def changelog_page() -> str:
    """The changelog as it is, with what is not released yet made from the notes."""
    path = ROOT / "CHANGELOG.md"
    head, mark, rest = path.read_text(encoding="utf-8").partition(_UNRELEASED)
    if not mark:
        raise SystemExit(f"{path} has no section {_UNRELEASED.strip()!r}")
    released = rest[rest.index(_RELEASED) + 1 :] if _RELEASED in rest else ""
    return "\n".join([head + mark, *_notes(), released]).rstrip() + "\n"


def _notes() -> Iterator[str]:
    notes: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for file in sorted((ROOT / "changes").glob("*.md")):
        if file.name == "README.md":
            continue
        kind = file.name.removesuffix(".md").rpartition(".")[2]
        if kind not in KINDS:
            raise SystemExit(f"{file}: a note is called NAME.KIND.md, where KIND is one of {', '.join(KINDS)}")
        text = file.read_text(encoding="utf-8").strip()
        if not text:
            raise SystemExit(f"{file} is empty")
        notes[kind].append("- " + text.replace("\n", "\n  ").replace("\n  \n", "\n\n"))
    for kind, entries in notes.items():
        if entries:
            yield from (f"### {KINDS[kind]}", "", *entries, "")


PAGES = {"docs/settings.md": settings_page, "docs/cli.md": cli_page, "CHANGELOG.md": changelog_page}


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = 0
    for name, page in PAGES.items():
        path, wanted = ROOT / name, page()
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        if found == wanted:
            continue
        if not arguments:
            path.write_text(wanted, encoding="utf-8")
            print(f"wrote {name}")
            continue
        stale += 1
        print(f"{name} is not what it is made from; run: make docs", file=sys.stderr)
        difference = difflib.unified_diff(found.splitlines(), wanted.splitlines(), name, "should be", n=0, lineterm="")
        print("\n".join(list(difference)[:20]), file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
