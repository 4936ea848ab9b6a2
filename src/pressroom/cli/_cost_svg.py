"""What was spent and where the own machine breaks even, as an SVG. No fonts, scripts or links in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pressroom.cli import _svg as svg
from pressroom.cli._cost_tables import dollars, heading_of
from pressroom.cli._output import human_count, printable

if TYPE_CHECKING:
    from pressroom.cli._cost_report import Report
    from pressroom.cost import BreakEven

# In pixels: of a panel, and of the room for its labels in it.
_WIDTH, _GAP, _TITLE = 560, 24, 58
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 120, 44, 54
_BAR, _NAMES, _SUMS = 26, 150, 78
_HEIGHT = 360
_MOST_BARS, _MOST_LINES, _MOST_STAIRS = 31, 4, 12
_NANO = 10**9
_NEAR, _WIDE = 14, 46

_OWN, _VENDORS = "#2b8a3e", "#1d6fd8"
_LINES = ("#1d6fd8", "#d9480f", "#7048e8", "#0b7285")

_STYLE = """
text { font-family: "Inter", "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; fill: #1c2430; }
.heading { font-size: 16px; font-weight: 600; }
.panel { font-size: 13.5px; font-weight: 600; }
.unit { font-size: 11.5px; font-weight: 400; fill: #4a5565; }
.tick { font-size: 11.5px; fill: #4a5565; }
.name { font-size: 11.5px; }
.grid { stroke: #e3e7ed; stroke-width: 1; }
.axis { stroke: #94a0b2; stroke-width: 1.2; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.now { stroke: #4a5565; stroke-width: 1.2; stroke-dasharray: 4 4; }
"""


def cost_svg(report: Report) -> str:
    """The drawing as text: who spent what, and beside it, where a machine has a price and there is a vendor to compare
    with, the cost of a month over the tokens of a month."""
    bars, height = _bars(report)
    panels = [bars]
    lines = [even for even in report.even if even.tokens_a_month is not None][:_MOST_LINES]
    if lines:
        panels.append(_even(report, lines))
        height = max(height, _HEIGHT)
    width = len(panels) * (_WIDTH + _GAP) + _GAP
    asked = f"{report.total.requests:,} requests, {report.total.tokens:,} tokens"
    heading = f"{_day(report.since)} to {_day(report.until)}: {asked}"
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + _TITLE + _GAP}" '
        f'viewBox="0 0 {width} {height + _TITLE + _GAP}" role="img" aria-label="{svg.said(heading)}">',
        f"<title>{svg.said(heading)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height + _TITLE + _GAP}" fill="#ffffff"/>',
        f'<text class="heading" x="{_GAP}" y="36">{svg.said(heading)}</text>',
    ]
    for number, panel in enumerate(panels):
        drawn += [f'<g transform="translate({_GAP + number * (_WIDTH + _GAP)} {_TITLE})">', *panel, "</g>"]
    return "\n".join([*drawn, "</svg>", ""])


def _bars(report: Report) -> tuple[list[str], int]:
    """A bar a group: what was paid to vendors, and its part of the machine; tokens, where nothing has a price."""
    machine = report.machine or [0] * len(report.groups)
    names = [printable(one.name) or "-" for one in report.groups]
    lines = [(name, one.vendor_nano_usd, part) for name, one, part in zip(names, report.groups, machine, strict=True)]
    money = any(vendor or own for _, vendor, own in lines)
    if not money:
        lines = [(name, one.vendor_tokens, one.own_tokens) for name, one in zip(names, report.groups, strict=True)]
    if report.by == "day":
        lines = lines[-_MOST_BARS:]
    else:
        lines = sorted(lines, key=lambda line: -(line[1] + line[2]))
        rest = lines[_MOST_BARS - 1 :]
        if len(rest) > 1:
            others = (f"{len(rest)} others", sum(line[1] for line in rest), sum(line[2] for line in rest))
            lines = [*lines[: _MOST_BARS - 1], others]
    most = max((vendor + own for _, vendor, own in lines), default=0) or 1
    inner = _WIDTH - _NAMES - _SUMS
    what = "US dollars" if money else "tokens"
    by = heading_of(report.by).lower()
    drawn = [
        f'<text class="panel" x="0" y="18">Spent by {by}<tspan class="unit" dx="8">{what}</tspan></text>',
        f'<rect x="{_WIDTH - 220}" y="9" width="10" height="10" fill="{_VENDORS}"/>',
        f'<text class="name" x="{_WIDTH - 205}" y="18">vendors</text>',
        f'<rect x="{_WIDTH - 140}" y="9" width="10" height="10" fill="{_OWN}"/>',
        f'<text class="name" x="{_WIDTH - 125}" y="18">own machine</text>',
    ]
    for number, (name, vendor, own) in enumerate(lines):
        top = _TOP + number * _BAR
        paid, made = inner * vendor / most, inner * own / most
        said = dollars(vendor + own) if money else human_count(vendor + own)
        drawn += [
            f'<text class="name" x="{_NAMES - 10}" y="{top + 14}" text-anchor="end">{svg.said(_short(name))}</text>',
            f'<rect x="{_NAMES}" y="{top + 2}" width="{paid:.1f}" height="{_BAR - 9}" fill="{_VENDORS}"/>',
            f'<rect x="{_NAMES + paid:.1f}" y="{top + 2}" width="{made:.1f}" height="{_BAR - 9}" fill="{_OWN}"/>',
            f'<text class="tick" x="{_NAMES + paid + made + 8:.1f}" y="{top + 14}">{said}</text>',
        ]
    return drawn, _TOP + len(lines) * _BAR + _GAP


def _even(report: Report, lines: Sequence[BreakEven]) -> list[str]:
    """Dollars of a month over tokens of a month: the machine's are stairs, a vendor's a straight line."""
    month = lines[0].month_nano / _NANO
    capacity = lines[0].capacity
    nearest = min(line.tokens_a_month or 0 for line in lines)
    furthest = 1.25 * max(nearest, report.month_tokens)
    if capacity is not None:
        furthest = max(furthest, min(1.25 * capacity, 4 * furthest))
    most_x = furthest
    stairs = 1 if capacity is None else min(math.ceil(most_x / max(capacity, 1)), _MOST_STAIRS)
    slopes = [line.vendor_nano / _NANO / line.tokens for line in lines]
    # The machine is the measure: a line that is far above it leaves the picture.
    most_y = max(month * stairs, min(max(slopes) * most_x, 3 * month * stairs)) * 1.05
    ticks_x, ticks_y = svg.ticks(most_x), svg.ticks(most_y)
    most_y = max(most_y, ticks_y[-1])

    def x(tokens: float) -> float:
        return _LEFT + tokens / most_x * (_WIDTH - _LEFT - _RIGHT)

    def y(usd: float) -> float:
        return _HEIGHT - _BOTTOM - usd / most_y * (_HEIGHT - _TOP - _BOTTOM)

    floor, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    drawn = [
        f'<text class="panel" x="{_LEFT}" y="18">Build or buy'
        f'<tspan class="unit" dx="8">US dollars a month</tspan></text>'
    ]
    for value in ticks_y:
        drawn.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f} H{right}"/>')
        drawn.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,g}</text>')
    drawn.append(f'<path class="axis" d="M{_LEFT} {floor} H{right}"/>')
    drawn += [
        f'<text class="tick" x="{x(value):.1f}" y="{floor + 18}" text-anchor="middle">{_many(value)}</text>'
        for value in ticks_x
        if value <= most_x
    ]
    drawn.append(
        f'<text class="tick" x="{(_LEFT + right) / 2:.1f}" y="{floor + 38}" text-anchor="middle">tokens a month</text>'
    )
    if 0 < report.month_tokens <= most_x:
        at = x(report.month_tokens)
        drawn.append(f'<path class="now" d="M{at:.1f} {_TOP} V{floor}"/>')
        drawn.append(f'<text class="tick" x="{at:.1f}" y="{_TOP - 6}" text-anchor="middle">now</text>')
    machine, end_y = _stairs(month, capacity, most_x, stairs)
    path = " ".join(f"{x(tokens):.1f},{y(usd):.1f}" for tokens, usd in machine)
    drawn.append(f'<polyline class="line" stroke="{_OWN}" points="{path}"/>')
    crossings: list[tuple[float, str, str]] = []
    names: list[tuple[float, float, str, str]] = [
        (right, y(end_y), "own machine" if stairs == 1 else "own machines", _OWN)
    ]
    for line, slope, colour in zip(lines, slopes, _LINES, strict=False):
        end = min(most_x, most_y / slope)
        ends = f"{x(0):.1f},{y(0):.1f} {x(end):.1f},{y(slope * end):.1f}"
        drawn.append(f'<polyline class="line" stroke="{colour}" points="{ends}"/>')
        names.append((x(end), y(slope * end), _short(line.vendor), colour))
        even = line.tokens_a_month or 0
        if even <= most_x and line.reached is not False:
            crossings.append((x(even), _many(even), colour))
    return [*drawn, *_crossings(crossings, y(month)), *svg.names(names, near=_NEAR, right=6)]


def _crossings(crossings: list[tuple[float, str, str]], py: float) -> list[str]:
    """Where vendors cross the machine, with the tokens below it: each lower than one that it would lie on."""
    drawn = []
    row, last = 0, -math.inf
    for px, tokens, colour in sorted(crossings):
        row = row + 1 if px - last < _WIDE else 0
        last = px
        drawn.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>')
        at = py + 16 + row * _NEAR
        drawn.append(f'<text class="name" x="{px + 6:.1f}" y="{at:.1f}" style="fill:{colour}">{tokens}</text>')
    return drawn


def _stairs(month: float, capacity: int | None, most_x: float, stairs: int) -> tuple[list[tuple[float, float]], float]:
    """What so many tokens cost on machines of one's own: another machine where one makes no more."""
    if capacity is None or capacity >= most_x:
        return [(0.0, month), (most_x, month)], month
    points = []
    for number in range(stairs):
        begin, end = number * capacity, min((number + 1) * capacity, most_x)
        points += [(float(begin), month * (number + 1)), (float(end), month * (number + 1))]
        if end >= most_x:
            break
    return points, points[-1][1]


def _many(tokens: float) -> str:
    """100M."""
    return human_count(tokens).replace(".0", "")


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
