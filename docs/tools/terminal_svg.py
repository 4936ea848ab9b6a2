"""Draw what a command printed as an SVG.

    script -qec "press up --once" run.txt
    python docs/tools/terminal_svg.py run.txt docs/press-up.svg --title "press up"

Understands the colours that Pressroom's commands use (bold, dim, red, green, yellow, cyan) and a carriage return that
starts a line again; nothing else of a terminal.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from xml.sax.saxutils import escape

_SEQUENCE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")
# What the program `script` writes around the output it records.
_SCRIPT = re.compile(r"^Script (?:started|done)[^\n]*\n|\n?Script done[^\n]*\n?", re.MULTILINE)
_COLOURS = {"31": "#f47067", "32": "#8ddb8c", "33": "#daaa3f", "36": "#76e3ea"}
_CELL_WIDTH, _LINE_HEIGHT, _MARGIN, _BAR = 8.0, 19, 18, 34
_COLUMNS = 112


def lines_of(text: str) -> list[list[tuple[str, str]]]:
    """Lines of (style, text) runs; lines longer than the picture are folded."""
    lines: list[list[tuple[str, str]]] = []
    style = ""
    for raw in text.replace("\r\n", "\n").split("\n"):
        runs: list[tuple[str, str]] = []
        position = 0
        kept = raw.rstrip("\r").rsplit("\r", 1)[-1]  # what the terminal shows in the end
        for found in _SEQUENCE.finditer(kept):
            if found.start() > position:
                runs.append((style, kept[position : found.start()]))
            position = found.end()
            if found[2] == "m":
                style = _style(found[1], style)
        runs.append((style, kept[position:]))
        lines.extend(_folded(runs))
    while lines and not any(part.strip() for _, part in lines[-1]):
        lines.pop()
    return lines


def _style(codes: str, before: str) -> str:
    style = before
    for code in (codes or "0").split(";"):
        if code in ("", "0"):
            style = ""
        elif code == "1":
            style += "font-weight:bold;"
        elif code == "2":
            style += "opacity:.6;"
        elif code in _COLOURS:
            style += f"fill:{_COLOURS[code]};"
    return style


def _folded(runs: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    folded: list[list[tuple[str, str]]] = [[]]
    used = 0
    for style, part in runs:
        while part:
            if used >= _COLUMNS:
                folded.append([])
                used = 0
            taken = part[: _COLUMNS - used]
            folded[-1].append((style, taken))
            used += len(taken)
            part = part[len(taken) :]
    return folded


def draw(text: str, title: str) -> str:
    """The SVG of some terminal output."""
    lines = lines_of(text)
    width = _COLUMNS * _CELL_WIDTH + 2 * _MARGIN
    height = _BAR + len(lines) * _LINE_HEIGHT + _MARGIN
    rows = []
    for number, runs in enumerate(lines):
        y = _BAR + (number + 1) * _LINE_HEIGHT - 4
        spans = "".join(
            f'<tspan style="{style}">{escape(part)}</tspan>' if style else escape(part) for style, part in runs
        )
        rows.append(f'<text x="{_MARGIN}" y="{y}" xml:space="preserve">{spans}</text>')
    lights = "".join(
        f'<circle cx="{_MARGIN + 8 + 20 * i}" cy="17" r="6" fill="{colour}"/>'
        for i, colour in enumerate(("#f47067", "#daaa3f", "#8ddb8c"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">'
        f"<title>{escape(title)}</title>"
        f'<rect width="100%" height="100%" rx="8" fill="#1c2128"/>{lights}'
        f'<text x="{width / 2:.0f}" y="21" fill="#768390" text-anchor="middle" '
        f'font-family="ui-sans-serif, sans-serif" font-size="13">{escape(title)}</text>'
        '<g fill="#cdd9e5" font-size="13.2" font-family="ui-monospace, Menlo, DejaVu Sans Mono, monospace">'
        + "\n".join(rows)
        + "</g></svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--title", default="press")
    arguments = parser.parse_args()
    with arguments.text.open(encoding="utf-8", newline="") as printed:  # newline="": a carriage return stays one
        text = _SCRIPT.sub("", printed.read())
    arguments.svg.write_text(draw(text, arguments.title), encoding="utf-8")


if __name__ == "__main__":
    main()
