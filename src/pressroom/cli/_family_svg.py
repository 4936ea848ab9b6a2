"""A family as an SVG: cards from left to right, and on each line what changed. No fonts, scripts or links in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pressroom.cli._family import described, named, roles, step_parts
from pressroom.cli._svg import said

if TYPE_CHECKING:
    from pressroom.registry import Member

# In pixels. Cards are as wide as the longest words on one need, between these two; the narrowest holds 34 letters.
_CARD, _WIDEST_CARD, _GAP, _MARGIN = 284, 460, 196, 24
_LINE, _PADDING, _ROW_GAP, _TITLE = 18, 12, 26, 40
# Where a line meets a card, from the card's upper edge; where it turns, from the parent's right edge.
_LEVEL, _TRUNK = 24, 18
_LONGEST_STEP = 27
# Sizes of bold letters; plain ones are narrower, as if they were smaller.
_HEADING_SIZE, _NAME_SIZE, _ROLE_SIZE, _LINE_SIZE = 16, 14, 12, 10.7
# How wide letters are, in ems of a bold DejaVu Sans, the widest of the fonts below. A guess that is rather too wide.
_NARROW, _HALF, _WIDE = frozenset("iljI.,:;'|! "), frozenset('ftr()[]-/"1'), frozenset("mwMW@%&…→−")

_STYLE = """
text { font-family: "Inter", "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; fill: #1c2430; }
.heading { font-size: 16px; font-weight: 600; }
.name { font-size: 14px; font-weight: 600; }
.line { font-size: 12px; fill: #4a5565; }
.role { font-size: 12px; font-weight: 600; fill: #14532d; }
.step { font-size: 11.5px; fill: #4a5565; }
.card { fill: #ffffff; stroke: #c3cad5; stroke-width: 1.2; }
.it { fill: #eef6ff; stroke: #1d6fd8; stroke-width: 2.2; }
.unknown { fill: #f6f7f9; stroke: #c3cad5; stroke-width: 1.2; stroke-dasharray: 5 4; }
.edge { fill: none; stroke: #94a0b2; stroke-width: 1.5; }
"""


def family_svg(root: Member, *, marked: str, deployed: Mapping[str, list[str]], heading: str) -> str:
    """The drawing as text; the member with the digest `marked` stands out. Words that are too long are shortened in
    their middle, and are whole in the title of their card."""
    columns = _columns(root)
    tops, height = _tops(root, deployed)
    cards = {member.digest: _lines(member, roles(member, deployed)) for member in root.walk()}
    needed = max(_width(line.text, line.size) for lines in cards.values() for line in lines) + 2 * _PADDING
    grid = _Grid(min(max(_CARD, round(needed)), _WIDEST_CARD))
    width = grid.left(max(columns.values())) + grid.card + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{said(heading)}">',
        f"<title>{said(heading)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text class="heading" x="{_MARGIN}" y="{_MARGIN + 10}">'
        f"{said(_fitted(heading, _HEADING_SIZE, width - 2 * _MARGIN))}</text>",
    ]
    for member in root.walk():
        for child in member.children:
            start = (grid.left(columns[member.digest]) + grid.card, tops[member.digest] + _LEVEL)
            parts.extend(_edge(child, start, (grid.left(columns[child.digest]), tops[child.digest] + _LEVEL)))
    for member in root.walk():
        place = (grid.left(columns[member.digest]), tops[member.digest])
        parts.extend(_card(member, place, grid.card, cards[member.digest], is_it=member.digest == marked))
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True, slots=True)
class _Grid:
    """Columns of cards of one width."""

    card: int

    def left(self, column: int) -> int:
        return _MARGIN + column * (self.card + _GAP)


@dataclass(frozen=True, slots=True)
class _Words:
    """One line of a card: its class, its text and how large, in pixels, bold letters of its width are."""

    look: str
    text: str
    size: float


def _columns(root: Member) -> dict[str, int]:
    found = {root.digest: 0}
    for member in root.walk():
        for child in member.children:
            found[child.digest] = found[member.digest] + 1
    return found


def _tops(root: Member, deployed: Mapping[str, list[str]]) -> tuple[dict[str, int], int]:
    """The upper edge of each card, and the height of it all.

    A first child stands in its parent's row, every other branch begins a new one; a row is as high as its highest card.
    """
    rows: dict[str, int] = {}
    heights = [0]
    for member in root.walk():
        rows[member.digest] = len(heights) - 1
        heights[-1] = max(heights[-1], _height(roles(member, deployed)))
        if not member.children:
            heights.append(0)
    edges = [_MARGIN + _TITLE]
    for height in heights:
        edges.append(edges[-1] + height + _ROW_GAP)
    return {digest: edges[row] for digest, row in rows.items()}, edges[len(heights) - 1] - _ROW_GAP + _MARGIN


def _height(said: list[str]) -> int:
    return 2 * _PADDING + _LINE * (3 if said else 2)


def _lines(member: Member, said: list[str]) -> list[_Words]:
    lines = [_Words("name", named(member), _NAME_SIZE), _Words("line", described(member), _LINE_SIZE)]
    return [*lines, _Words("role", ", ".join(said), _ROLE_SIZE)] if said else lines


def _card(member: Member, place: tuple[int, int], width: int, lines: list[_Words], *, is_it: bool) -> list[str]:
    left, top = place
    shape = "it" if is_it else "card" if member.versions else "unknown"
    whole = [named(member), member.digest, *(line.text for line in lines[1:])]
    height = 2 * _PADDING + _LINE * len(lines)
    drawn = [
        "<g>",
        f"<title>{said(' / '.join(whole))}</title>",
        f'<rect class="{shape}" x="{left}" y="{top}" width="{width}" height="{height}" rx="8"/>',
    ]
    for number, line in enumerate(lines):
        y = top + _PADDING + _LINE * number + 13
        text = said(_fitted(line.text, line.size, width - 2 * _PADDING))
        drawn.append(f'<text class="{line.look}" x="{left + _PADDING}" y="{y}">{text}</text>')
    return [*drawn, "</g>"]


def _edge(child: Member, start: tuple[int, int], end: tuple[int, int]) -> list[str]:
    """A line from the parent's card to a trunk, along it, and on to the child's card, with the step's words on it."""
    trunk = start[0] + _TRUNK
    drawn = [f'<path class="edge" d="M{start[0]} {start[1]} H{trunk} V{end[1]} H{end[0]}"/>']
    x = trunk + 10
    # One line of words above the line, the others below it.
    for offset, part in zip((-7, 15, 30), step_parts(child.step, narrow=True), strict=False):
        drawn.append(f'<text class="step" x="{x}" y="{end[1] + offset}">{said(_short(part, _LONGEST_STEP))}</text>')
    return drawn


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _fitted(text: str, size: float, room: int) -> str:
    """The text in at most `room` pixels, with '…' for its middle: names differ at their ends."""
    if _width(text, size) <= room:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shown = text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) :]
        if _width(shown, size) <= room:
            return shown
    return "…"


def _width(text: str, size: float) -> float:
    """About how many pixels the text takes."""
    return size * sum(_ems(text))


def _ems(text: str) -> Iterable[float]:
    for letter in text:
        if letter in _WIDE or unicodedata.east_asian_width(letter) in "WF":
            yield 1.1
        elif letter in _NARROW:
            yield 0.4
        elif letter in _HALF:
            yield 0.5
        else:
            yield 0.78 if letter.isupper() else 0.7
