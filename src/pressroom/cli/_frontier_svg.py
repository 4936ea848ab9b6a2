"""Bytes against divergence, every measured version of a family, as an SVG. No fonts, scripts or links in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pressroom.cli._svg import names, said, ticks

# In pixels.
_WIDTH, _HEIGHT = 860, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 150, 56, 64
_BEST, _OTHER = "#1d6fd8", "#94a0b2"

_STYLE = """
text { font-family: "Inter", "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; fill: #1c2430; }
.heading { font-size: 16px; font-weight: 600; }
.tick { font-size: 11.5px; fill: #4a5565; }
.name { font-size: 12px; }
.grid { stroke: #e3e7ed; stroke-width: 1; }
.axis { stroke: #94a0b2; stroke-width: 1.2; }
.line { fill: none; stroke: #1d6fd8; stroke-width: 1.6; stroke-dasharray: 5 4; }
.error { stroke-width: 1.4; }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One version: its megabytes (10^6 bytes), the mean divergence from the original in nats with the standard error
    where it is known, and tokens a second of one client (None: not measured). `best`: no other is as small and as
    near."""

    name: str
    mb: float
    kl: float
    kl_stderr: float | None = None
    tokens_per_second: float | None = None
    best: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "mb": round(self.mb, 3),
            "kl": self.kl,
            "kl_stderr": self.kl_stderr,
            "tokens_per_second": self.tokens_per_second,
            "best": self.best,
        }


def frontier_svg(heading: str, points: Sequence[Point]) -> str:
    """The drawing as text. The line joins those than which no other is both smaller and nearer."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    marks = ticks(max((point.mb for point in points), default=1.0))
    most = marks[-1]
    # Powers of ten: a version of 8 bits is a thousand times nearer than one of 2.
    seen = [point.kl for point in points if point.kl > 0]
    low = math.floor(math.log10(min(seen, default=0.001)))
    high = max(low + 1, math.ceil(math.log10(max(seen, default=1.0)) + 1e-9))

    def x(mb: float) -> float:
        return _LEFT + mb / most * width

    def y(kl: float) -> float:
        part = (math.log10(max(kl, 10.0**low)) - low) / (high - low)
        return _TOP + (1 - part) * height

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said(heading)}">',
        f"<title>{said(heading)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text class="heading" x="{_LEFT}" y="32">{said(heading)}</text>',
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        drawn.append(f'<path class="grid" d="M{_LEFT} {at:.1f} h{width}"/>')
        drawn.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    bottom = _TOP + height
    drawn.extend(
        f'<text class="tick" x="{x(mb):.1f}" y="{bottom + 18}" text-anchor="middle">{mb:g}</text>' for mb in marks
    )
    drawn.append(f'<path class="axis" d="M{_LEFT} {_TOP} V{bottom} h{width}"/>')
    drawn.append(f'<text class="tick" x="{_LEFT + width}" y="{bottom + 38}" text-anchor="end">MB of the file</text>')
    drawn.append(
        f'<text class="tick" x="{_LEFT}" y="{_TOP - 8}">mean KL divergence from the original, nats a token</text>'
    )
    best = sorted((point for point in points if point.best), key=lambda point: point.mb)
    if len(best) > 1:
        path = " ".join(f"{x(point.mb):.1f},{y(point.kl):.1f}" for point in best)
        drawn.append(f'<polyline class="line" points="{path}"/>')
    ends = []
    for point in points:
        colour = _BEST if point.best else _OTHER
        px, py = x(point.mb), y(point.kl)
        if point.kl_stderr:
            above, below = y(point.kl + 2 * point.kl_stderr), y(max(point.kl - 2 * point.kl_stderr, 0.0))
            drawn.append(f'<path class="error" stroke="{colour}" d="M{px:.1f} {above:.1f} V{below:.1f}"/>')
        drawn.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5" fill="{colour}"/>')
        speed = "" if point.tokens_per_second is None else f" · {point.tokens_per_second:.0f} tok/s"
        ends.append((px, py, f"{point.name}{speed}", colour))
    drawn += names(ends, near=15.0, right=9.0)
    return "\n".join([*drawn, "</svg>", ""])
