"""A family as an SVG: cards from left to right, and on each line what changed. No fonts, scripts or links in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from pressroom.cli._family import described, named, roles, step_parts

if TYPE_CHECKING:
    from pressroom.registry import Member

# In pixels. A card holds about 34 letters of its title and 42 of a line.
_CARD, _GAP, _MARGIN = 284, 196, 24
_LINE, _PADDING, _ROW_GAP, _TITLE = 18, 12, 26, 40
# Where a line meets a card, from the card's upper edge; where it turns, from the parent's right edge.
_LEVEL, _TRUNK = 24, 18
_LONGEST_TITLE, _LONGEST_LINE, _LONGEST_STEP = 34, 44, 27

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
    """The drawing as text; the member with the digest `marked` stands out."""
    columns = _columns(root)
    tops, height = _tops(root, deployed)
    width = 2 * _MARGIN + (max(columns.values()) + 1) * _CARD + max(columns.values()) * _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{_said(heading)}">',
        f"<title>{_said(heading)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text class="heading" x="{_MARGIN}" y="{_MARGIN + 10}">{_said(heading)}</text>',
    ]
    for member in root.walk():
        for child in member.children:
            start = (_left(columns[member.digest]) + _CARD, tops[member.digest] + _LEVEL)
            parts.extend(_edge(child, start, (_left(columns[child.digest]), tops[child.digest] + _LEVEL)))
    for member in root.walk():
        place = (_left(columns[member.digest]), tops[member.digest])
        parts.extend(_card(member, place, is_it=member.digest == marked, said=roles(member, deployed)))
    return "\n".join([*parts, "</svg>", ""])


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


def _left(column: int) -> int:
    return _MARGIN + column * (_CARD + _GAP)


def _height(said: list[str]) -> int:
    return 2 * _PADDING + _LINE * (3 if said else 2)


def _card(member: Member, place: tuple[int, int], *, is_it: bool, said: list[str]) -> list[str]:
    left, top = place
    shape = "it" if is_it else "card" if member.versions else "unknown"
    lines = [("name", named(member), _LONGEST_TITLE), ("line", described(member), _LONGEST_LINE)]
    if said:
        lines.append(("role", ", ".join(said), _LONGEST_LINE))
    drawn = [
        "<g>",
        f"<title>{_said(' / '.join([named(member), member.digest, described(member), *said]))}</title>",
        f'<rect class="{shape}" x="{left}" y="{top}" width="{_CARD}" height="{_height(said)}" rx="8"/>',
    ]
    for number, (look, text, longest) in enumerate(lines):
        y = top + _PADDING + _LINE * number + 13
        drawn.append(f'<text class="{look}" x="{left + _PADDING}" y="{y}">{_said(_short(text, longest))}</text>')
    return [*drawn, "</g>"]


def _edge(child: Member, start: tuple[int, int], end: tuple[int, int]) -> list[str]:
    """A line from the parent's card to a trunk, along it, and on to the child's card, with the step's words on it."""
    trunk = start[0] + _TRUNK
    drawn = [f'<path class="edge" d="M{start[0]} {start[1]} H{trunk} V{end[1]} H{end[0]}"/>']
    x = trunk + 10
    # One line of words above the line, the others below it.
    for offset, part in zip((-7, 15, 30), step_parts(child.step, narrow=True), strict=False):
        drawn.append(f'<text class="step" x="{x}" y="{end[1] + offset}">{_said(_short(part, _LONGEST_STEP))}</text>')
    return drawn


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _said(text: str) -> str:
    """Text as XML: escaped, and without what no XML may hold."""
    return escape("".join(letter for letter in text if letter.isprintable()), {'"': "&quot;"})
