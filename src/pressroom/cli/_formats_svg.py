"""Number formats as SVG: where the bits of a block are, and which values there are. No fonts, scripts or links."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pressroom.cli._formats_told import FLOATS, levels_of, told
from pressroom.cli._svg import said

if TYPE_CHECKING:
    from pressroom.compress.numbers import NumberFormat, Piece

# In pixels.
_LEFT, _RIGHT, _TOP = 64, 28, 104
_ROW, _GAP = 30, 10
_LETTER, _SMALL = 6.0, 5.0  # what a letter of the labels takes at 9.5 px, and at 8

STYLE = """
text { font-family: "Inter", "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; fill: #1c2430; }
.heading { font-size: 16px; font-weight: 600; }
.below { font-size: 12px; fill: #4a5565; }
.tick { font-size: 11px; fill: #4a5565; }
.bit { font-size: 9.5px; fill: #1c2430; }
.small { font-size: 8px; }
.name { font-size: 12px; }
.grid { stroke: #e3e7ed; stroke-width: 1; }
.axis { stroke: #94a0b2; stroke-width: 1.2; }
"""
# By field, and for codes by which of their bits: the fill, light enough for dark letters on it.
_COLOURS = {
    # sub-scales in the colour of scales, but lighter
    "scale": "#f5b97f",
    "min": "#f29bb0",
    "zero": "#f29bb0",
    "sub-scale": "#f7d98b",
    "sub-min": "#e3b7ea",
    "sign": "#f5b97f",
    "exponent": "#f7d98b",
    "fraction": "#a9cdf5",
}
_CODES = ("#a9cdf5", "#a5dcc0", "#c9c6f2")


@dataclass(frozen=True, slots=True)
class _Cell:
    """A run of bits within a row of the drawing."""

    row: int
    first: int  # from the left
    bits: int
    colour: str
    label: str


def layout_svg(form: NumberFormat) -> str:
    """Every bit of a block: a byte is eight bits wide with its highest bit at the left, bytes from left to right."""
    if form.name in FLOATS:
        return _float_svg(form)
    form = _with_a_block(form)
    row = told(form)
    across = 4 if form.nbytes <= 40 else 8 if form.nbytes <= 96 else 16
    wide = {4: 24.0, 8: 13.0, 16: 8.5}[across]
    cells, legend = _cells(form, across, wide)
    rows = math.ceil(form.nbytes / across)
    width = round(_LEFT + across * 8 * wide + _RIGHT)
    lines = _legend(legend, width - _LEFT - _RIGHT)
    top = _TOP + 20 * (len(lines) - 1)
    height = round(top + rows * (_ROW + _GAP) + 40)
    heading = f"{form.name}: {form.block} weights in {form.nbytes} bytes, {form.bits:.4g} bits a weight"
    drawn = [
        *_head(heading, width, height),
        f'<text class="below" x="{_LEFT}" y="52">{said(_sentence(form, row.values))}</text>',
    ]
    for number, line in enumerate(lines):
        at = float(_LEFT)
        for text, colour, size in line:
            y = 76 + 20 * number
            drawn.append(f'<rect x="{at:.1f}" y="{y - 10}" width="12" height="12" rx="2" fill="{colour}"/>')
            drawn.append(f'<text class="below" x="{at + 17:.1f}" y="{y}">{said(text)}</text>')
            at += size
    for index in range(rows):
        y = top + index * (_ROW + _GAP)
        drawn.append(
            f'<text class="tick" x="{_LEFT - 10}" y="{y + _ROW / 2 + 4:.1f}" text-anchor="end">{index * across}</text>'
        )
    drawn.append(f'<text class="tick" x="{_LEFT - 10}" y="{top - 8}" text-anchor="end">byte</text>')
    for cell in cells:
        drawn += _drawn(cell, _LEFT + cell.first * wide, top + cell.row * (_ROW + _GAP), wide)
    for index in range(rows):
        y = top + index * (_ROW + _GAP)
        last = min(across, form.nbytes - index * across)
        # Where a number goes on over the end of a byte, only its ends are marked.
        within = {cell.first // 8 + more for cell in cells if cell.row == index for more in range(1, cell.bits // 8)}
        for byte in range(last + 1):
            ends = f"v5 m0 {_ROW - 6} v5" if byte in within else f"v{_ROW + 4}"
            drawn.append(
                f'<path d="M{_LEFT + byte * 8 * wide:.1f} {y - 2} {ends}" stroke="#1c2430" stroke-width="1.3"/>'
            )
    bare = "" if all(cell.label for cell in cells) else "; --json has those without one, too"
    drawn.append(
        f'<text class="tick" x="{_LEFT}" y="{height - 18}">'
        f"Bits of a byte from 7 (left) to 0; the number in a cell says which weight, or which sub-block{bare}</text>"
    )
    return "\n".join([*drawn, "</svg>", ""])


def _with_a_block(form: NumberFormat) -> NumberFormat:
    """One with a row as its block is drawn with a short row."""
    import numpy as np

    return form if form.block else form.bound(np.linspace(-1, 1, 64, dtype=np.float32)[None])


def _sentence(form: NumberFormat, values: str) -> str:
    fields = {piece.field for piece in form.layout()}
    scale = "scale × sub-scale" if "sub-scale" in fields else "scale"
    if "zero" in fields:
        made = "(code − zero) × scale"
    elif "sub-min" in fields:
        made = f"code × {scale} − min × sub-min"
    elif "min" in fields:
        made = f"code × {scale} + min"
    else:
        made = f"the level of its code × {scale}"
    if "scale" not in fields:
        made += ", which is kept apart, once for the matrix"
    return f"{values}; a weight is {made}"


def _cells(form: NumberFormat, across: int, wide: float) -> tuple[list[_Cell], dict[str, str]]:
    """The cells, and the legend: what a colour means."""
    layout = form.layout()
    items: dict[tuple[str, tuple[int, ...]], list[Piece]] = {}
    for piece in layout:
        items.setdefault((piece.field, piece.items), []).append(piece)
    counts = Counter(field for field, _ in items)
    lows = sorted({piece.low for piece in layout if piece.field == "code"})
    cells: list[_Cell] = []
    legend: dict[str, str] = {}
    for piece in layout:
        colour = _CODES[lows.index(piece.low) % 3] if piece.field == "code" else _COLOURS[piece.field]
        legend.setdefault(_named(piece, items[piece.field, piece.items], counts[piece.field]), colour)
        byte, bit = divmod(piece.at, 8)
        first = byte % across * 8 + (0 if piece.bits > 8 else 8 - bit - piece.bits)
        cells.append(_Cell(byte // across, first, piece.bits, colour, _label(piece, piece.bits * wide)))
    # Some numbers without the others would puzzle: of one kind of cells all have theirs, or none.
    bare = {(cell.colour, cell.bits) for cell in cells if not cell.label}
    return [replace(cell, label="") if (cell.colour, cell.bits) in bare else cell for cell in cells], legend


def _named(piece: Piece, parts: Sequence[Piece], count: int) -> str:
    """In the legend: `parts` are the pieces of the same item, `count` the items of the field."""
    if len(piece.items) > 1:
        return "code: several weights in a byte, as digits of a number"
    if piece.field in ("scale", "min"):
        return f"{piece.field}: float{piece.bits}"
    if piece.field == "code" and len(parts) > 1:
        last = piece.low + piece.bits - 1
        return f"code: bit {last}" if piece.bits == 1 else f"code: bits {piece.low}–{last}"
    many = f", {count} of them" if count > 1 else ""
    if len(parts) > 1:
        return f"{piece.field} in pieces: {sum(one.bits for one in parts)} bits (↑: upper ones)"
    return f"{piece.field}: {piece.bits} bits{many}"


def _label(piece: Piece, room: float) -> str:
    """As long as there is room for."""
    first = piece.items[0]
    if len(piece.items) > 1:
        tried = [", ".join(map(str, piece.items)), f"{first}, {piece.items[1]} …", f"{first} …"]
    elif piece.field in ("scale", "min", "zero"):
        tried = [piece.field]
    else:
        tried = [f"{first}↑" if piece.low and piece.field != "code" else str(first)]
    return next((text for text in tried if len(text) * _SMALL + 2 <= room), "")


def _drawn(cell: _Cell, x: float, y: float, wide: float) -> list[str]:
    size = cell.bits * wide
    drawn = [
        f'<rect x="{x:.1f}" y="{y}" width="{size:.1f}" height="{_ROW}" fill="{cell.colour}" '
        'stroke="#ffffff" stroke-width="1"/>'
    ]
    if cell.label:
        kind = "bit" if len(cell.label) * _LETTER + 3 <= size else "bit small"
        drawn.append(
            f'<text class="{kind}" x="{x + size / 2:.1f}" y="{y + _ROW / 2 + 3.5:.1f}" '
            f'text-anchor="middle">{said(cell.label)}</text>'
        )
    return drawn


def _legend(legend: dict[str, str], room: float) -> list[list[tuple[str, str, float]]]:
    """In as many lines as it takes: text, colour and width of each."""
    lines: list[list[tuple[str, str, float]]] = [[]]
    for text, colour in legend.items():
        size = 17 + len(text) * 6.6 + 20
        if lines[-1] and sum(one[2] for one in lines[-1]) + size > room:
            lines.append([])
        lines[-1].append((text, colour, size))
    return lines


def _float_svg(form: NumberFormat) -> str:
    """A number of floating point, from its highest bit on."""
    parts = FLOATS[form.name]
    total = sum(parts)
    wide = 22.0
    width, height = round(_LEFT + 32 * wide + _RIGHT), 190
    heading = f"{form.name}: every weight alone, {total} bits"
    drawn = [*_head(heading, width, height)]
    drawn.append(f'<text class="below" x="{_LEFT}" y="52">{said(told(form).values)}</text>')
    first = 0
    for field, bits in zip(("sign", "exponent", "fraction"), parts, strict=True):
        label = f"{field}: {bits} bit{'' if bits == 1 else 's'}"
        label = label if len(label) * _LETTER < bits * wide else field if len(field) * _LETTER < bits * wide else "±"
        drawn += _drawn(_Cell(0, first, bits, _COLOURS[field], label), _LEFT + first * wide, 92, wide)
        first += bits
    for bit in sorted({total - 1, parts[1] + parts[2] - 1, parts[2] - 1, 0}, reverse=True):
        at = _LEFT + (total - 1 - bit + 0.5) * wide
        drawn.append(f'<text class="tick" x="{at:.1f}" y="84" text-anchor="middle">{bit}</text>')
    drawn.append(f'<text class="tick" x="{_LEFT - 10}" y="84" text-anchor="end">bit</text>')
    drawn.append(
        f'<text class="tick" x="{_LEFT}" y="{height - 24}">The value is ± 1.fraction × 2^(exponent − '
        f"{(1 << (parts[1] - 1)) - 1}); files have the lowest byte first</text>"
    )
    return "\n".join([*drawn, "</svg>", ""])


def values_svg(forms: Sequence[NumberFormat]) -> str:
    """The values that a weight of a block can take, the farthest at 1 (or -1); above them how weights are spread."""
    left, right, top, row = 236, 40, 150, 26
    inner = 640
    width, height = left + inner + right, top + len(forms) * row + 54
    drawn = _head("The values a weight can take, the scale of its block being 1", width, height)
    drawn.append(
        f'<text class="below" x="{left}" y="52">Above: weights of a normal distribution, the largest of 64 at 1. '
        "Most lie near zero.</text>"
    )

    def x(value: float) -> float:
        return left + (value + 1) / 2 * inner

    floor = top - 14
    # The largest of 64 normal weights lies about 2.4 standard deviations out.
    curve = [(x(at / 100), floor - 66 * math.exp(-((at / 100 * 2.4) ** 2) / 2)) for at in range(-100, 101, 2)]
    path = " ".join(f"L{px:.1f} {py:.1f}" for px, py in curve)
    drawn.append(f'<path d="M{x(-1):.1f} {floor} {path} L{x(1):.1f} {floor} Z" fill="#e3e7ed"/>')
    bottom = top + len(forms) * row
    for mark in (-1, -0.5, 0, 0.5, 1):
        drawn.append(f'<path class="grid" d="M{x(mark):.1f} {floor} V{bottom}"/>')
        drawn.append(f'<text class="tick" x="{x(mark):.1f}" y="{bottom + 20}" text-anchor="middle">{mark:g}</text>')
    for index, form in enumerate(forms):
        y = top + index * row + row / 2
        levels = levels_of(form)
        thick = 1.6 if len(levels) <= 64 else 1.0
        drawn.append(f'<text class="name" x="16" y="{y + 4:.1f}">{said(form.name)}</text>')
        drawn.append(
            f'<text class="tick" x="{left - 14}" y="{y + 4:.1f}" text-anchor="end">{form.bits:.3g} bits</text>'
        )
        drawn.append(f'<path class="grid" d="M{left} {y:.1f} h{inner}"/>')
        marks = "".join(f"M{x(float(level)):.1f} {y - 7:.1f}v14" for level in levels)
        drawn.append(f'<path d="{marks}" stroke="#1d6fd8" stroke-width="{thick}"/>')
    drawn.append(
        f'<text class="tick" x="{left + inner}" y="{bottom + 40}" text-anchor="end">'
        "weight ÷ the largest value of its block</text>"
    )
    return "\n".join([*drawn, "</svg>", ""])


def _head(heading: str, width: int, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{said(heading)}">',
        f"<title>{said(heading)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text class="heading" x="16" y="30">{said(heading)}</text>',
    ]
