"""A benchmark as an SVG: throughput and latencies over the number of clients. No fonts, scripts or links in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pressroom.cli import _svg as svg

if TYPE_CHECKING:
    from pressroom.gateway.bench import Round, Spread

# In pixels: of one of the four panels, and of the room for its labels in it.
_WIDTH, _HEIGHT, _GAP, _TITLE = 440, 300, 20, 56
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 56, 44, 52
# From the median to the worst: the same colour, lighter to the eye with more dashes.
_COLOURS = {"p50": "#1d6fd8", "p90": "#d9480f", "p99": "#7048e8", "mean": "#495057"}
_ONE = "#2b8a3e"
_TWO = "#0b7285"
_NEAR = 13

_STYLE = """
text { font-family: "Inter", "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; fill: #1c2430; }
.heading { font-size: 16px; font-weight: 600; }
.panel { font-size: 13.5px; font-weight: 600; }
.unit { font-size: 11.5px; font-weight: 400; fill: #4a5565; }
.tick { font-size: 11.5px; fill: #4a5565; }
.name { font-size: 11.5px; }
.grid { stroke: #e3e7ed; stroke-width: 1; }
.axis { stroke: #94a0b2; stroke-width: 1.2; }
.line { fill: none; stroke-width: 1.9; stroke-linejoin: round; }
"""


@dataclass(frozen=True, slots=True)
class _Line:
    """A named line: a value for each round, None where there is none."""

    name: str
    colour: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    unit: str
    lines: Sequence[_Line]


def bench_svg(rounds: Sequence[Round], *, heading: str) -> str:
    """The drawing as text. The clients stand at equal distances, whatever their numbers."""
    panels = [panel for panel in _panels(rounds) if any(v is not None for line in panel.lines for v in line.values)]
    width = 2 * _WIDTH + 3 * _GAP
    height = _TITLE + math.ceil(len(panels) / 2) * (_HEIGHT + _GAP)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{svg.said(heading)}">',
        f"<title>{svg.said(heading)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text class="heading" x="{_GAP + 12}" y="36">{svg.said(heading)}</text>',
    ]
    clients = [str(one.clients) for one in rounds]
    for number, panel in enumerate(panels):
        left = _GAP + number % 2 * (_WIDTH + _GAP)
        top = _TITLE + number // 2 * (_HEIGHT + _GAP)
        drawn += [f'<g transform="translate({left} {top})">', *_drawn(panel, clients), "</g>"]
    return "\n".join([*drawn, "</svg>", ""])


def _panels(rounds: Sequence[Round]) -> list[_Panel]:
    throughput = [
        _Line("output", _ONE, [one.output_tokens_per_s for one in rounds]),
        _Line("total", _TWO, [one.total_tokens_per_s for one in rounds]),
    ]
    return [
        _Panel("Throughput", "tokens a second", throughput),
        _Panel("Time to the first token", "ms", _shares(rounds, lambda one: one.ttft_ms)),
        _Panel("Time per token after the first", "ms", _shares(rounds, lambda one: one.tpot_ms)),
        _Panel("Whole answer", "ms", _shares(rounds, lambda one: one.e2e_ms)),
    ]


def _shares(rounds: Sequence[Round], of: Callable[[Round], Spread | None]) -> list[_Line]:
    spreads = [of(one) for one in rounds]
    return [
        _Line(name, _COLOURS[name], [None if spread is None else getattr(spread, name) for spread in spreads])
        for name in ("p50", "p90", "p99")
    ]


def _drawn(panel: _Panel, clients: Sequence[str]) -> list[str]:
    highest = max((value for line in panel.lines for value in line.values if value is not None), default=0.0)
    ticks = svg.ticks(highest)
    top = ticks[-1]
    inner = _WIDTH - _LEFT - _RIGHT

    def x(place: int) -> float:
        return _LEFT + (inner * (place + 0.5) / len(clients))

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)

    drawn = [
        f'<text class="panel" x="{_LEFT}" y="18">{svg.said(panel.title)}'
        f'<tspan class="unit" dx="8">{svg.said(panel.unit)}</tspan></text>'
    ]
    for value in ticks:
        drawn.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f} H{_WIDTH - _RIGHT}"/>')
        drawn.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,g}</text>')
    floor = _HEIGHT - _BOTTOM
    drawn.append(f'<path class="axis" d="M{_LEFT} {floor} H{_WIDTH - _RIGHT}"/>')
    drawn += [
        f'<text class="tick" x="{x(place):.1f}" y="{floor + 18}" text-anchor="middle">{name}</text>'
        for place, name in enumerate(clients)
    ]
    drawn.append(
        f'<text class="tick" x="{_LEFT + inner / 2:.1f}" y="{floor + 36}" text-anchor="middle">clients at once</text>'
    )
    ends: list[tuple[float, float, str, str]] = []
    for line in panel.lines:
        places = [(x(place), y(value)) for place, value in enumerate(line.values) if value is not None]
        if not places:
            continue
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        drawn.append(f'<polyline class="line" stroke="{line.colour}" points="{path}"/>')
        drawn += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.8" fill="{line.colour}"/>' for px, py in places]
        ends.append((*places[-1], line.name, line.colour))
    return [*drawn, *svg.names(ends, near=_NEAR, right=8)]
