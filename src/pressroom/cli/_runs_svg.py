"""A metric of several runs over their steps as an SVG. No fonts, scripts or links in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pressroom.cli._svg import said

if TYPE_CHECKING:
    from pressroom.track import Point

# In pixels.
_WIDTH, _HEIGHT = 860, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 56, 56
_LEGEND_LINE = 18
# More points than this a line are thinned, by keeping the lowest and highest of each group.
_MOST_POINTS = 800
# Distinct also for readers who do not tell red from green; dashes tell the second round of colours from the first.
_COLOURS = ("#1d6fd8", "#d9480f", "#2b8a3e", "#7048e8", "#c2255c", "#0b7285", "#8f6400", "#495057")
_DASHES = ("", "7 4", "2 3")

_STYLE = """
text { font-family: "Inter", "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; fill: #1c2430; }
.heading { font-size: 16px; font-weight: 600; }
.tick { font-size: 11.5px; fill: #4a5565; }
.name { font-size: 12px; }
.grid { stroke: #e3e7ed; stroke-width: 1; }
.axis { stroke: #94a0b2; stroke-width: 1.2; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
"""


def metric_svg(metric: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """The drawing as text. Values that are no finite numbers leave a gap."""
    kept = {name: _parts(points) for name, points in lines.items()}
    points = [point for parts in kept.values() for part in parts for point in part]
    low, high = _range([point.value for point in points])
    first, last = _range([float(point.step) for point in points])
    height = _HEIGHT + _LEGEND_LINE * len(kept)

    def x(step: float) -> float:
        return _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    heading = f"{metric} over steps"
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'role="img" aria-label="{said(heading)}">',
        f"<title>{said(heading)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text class="heading" x="{_LEFT}" y="32">{said(heading)}</text>',
    ]
    for value in _ticks(low, high):
        drawn.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f} H{_WIDTH - _RIGHT}"/>')
        drawn.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    drawn.extend(
        f'<text class="tick" x="{x(at):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{at:g}</text>'
        for at in _ticks(first, last)
        if at == int(at)
    )
    drawn.append(f'<path class="axis" d="M{_LEFT} {_HEIGHT - _BOTTOM} H{_WIDTH - _RIGHT}"/>')
    drawn.append(f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - _BOTTOM + 36}" text-anchor="end">step</text>')
    for number, (name, parts) in enumerate(kept.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
        look = f'stroke="{colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")
        for part in parts:
            places = [(x(point.step), y(point.value)) for point in _thinned(part)]
            if len(places) == 1:
                drawn.append(f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3" fill="{colour}"/>')
            else:
                path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
                drawn.append(f'<polyline class="line" {look} points="{path}"/>')
        below = _HEIGHT - 8 + _LEGEND_LINE * number
        drawn.append(f'<path class="line" {look} d="M{_LEFT} {below - 4} h26"/>')
        drawn.append(f'<text class="name" x="{_LEFT + 34}" y="{below}">{said(name)}</text>')
    return "\n".join([*drawn, "</svg>", ""])


def _parts(points: Sequence[Point]) -> list[list[Point]]:
    """Runs of neighbouring finite values."""
    parts: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point.value):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _thinned(points: Sequence[Point]) -> list[Point]:
    if len(points) <= _MOST_POINTS:
        return [*points]
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept: list[Point] = [points[0]]
    for start in range(0, len(points), size):
        group = points[start : start + size]
        ends = {min(group, key=lambda p: p.value), max(group, key=lambda p: p.value)}
        kept.extend(sorted(ends, key=lambda p: (p.step, p.at)))
    return [*kept, points[-1]]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and highest, apart from each other."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low < high:
        return low, high
    room = abs(low) * 0.1 or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between the two."""
    rough = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * nice for nice in (1, 2, 5, 10) if scale * nice >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step * (1 + 1e-12)) + 1)]
