"""Whether a figure that is looked at for long grows: a line through its second half, and how sure that line is."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from html import escape

#: Parts that the second half is cut into. The median of each stands for it, so that a burst is not taken for a trend.
_PARTS = 16
# Student's t for 14 degrees of freedom: 19 of 20 lines lie within so many standard errors.
_SURE = 2.14

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 340, 70, 70, 76, 56
_INK, _FAINT, _GRID = "#1f2933", "#697586", "#e3e8ef"
_FONT = "font-family='system-ui, -apple-system, Segoe UI, sans-serif'"


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A line from `start` to `end` (seconds): its height there, what it grows by in ten minutes, and by how much that
    may be wrong."""

    start: float
    end: float
    first: float
    last: float
    growth: float
    noise: float

    @property
    def surely(self) -> float:
        """What it grows by in ten minutes at the very least."""
        return self.growth - self.noise


def trend(points: list[tuple[float, float]]) -> Trend:
    """The line through the second half of `points`, which are (seconds, value) in order."""
    half = points[len(points) // 2 :]
    size = max(1, len(half) // _PARTS)
    parts = [half[at : at + size] for at in range(0, len(half), size)]
    xs = [statistics.median(x for x, _ in part) for part in parts]
    ys = [statistics.median(y for _, y in part) for part in parts]
    if len(xs) < 3 or xs[0] == xs[-1]:
        only = ys[-1] if ys else 0.0
        return Trend(start=0.0, end=0.0, first=only, last=only, growth=0.0, noise=0.0)
    slope, height = statistics.linear_regression(xs, ys)
    off = sum((y - height - slope * x) ** 2 for x, y in zip(xs, ys, strict=True)) / (len(xs) - 2)
    spread = statistics.variance(xs) * (len(xs) - 1)
    start, end = half[0][0], half[-1][0]
    return Trend(
        start=start,
        end=end,
        first=height + slope * start,
        last=height + slope * end,
        growth=slope * 600,
        noise=_SURE * (off / spread) ** 0.5 * 600,
    )


def draw(memory: list[tuple[float, float]], line: Trend, descriptors: list[tuple[float, float]], told: str) -> str:
    """An SVG of memory (MB, left) with its line and of descriptors (right) over time."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    end = max(memory[-1][0], 1.0)
    tops = [max(value for _, value in each) * 1.15 or 1.0 for each in (memory, descriptors)]

    def path(points: list[tuple[float, float]], top: float) -> str:
        return " ".join(f"{_LEFT + width * x / end:.1f},{_TOP + height * (1 - y / top):.1f}" for x, y in points)

    made = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' {_FONT}>",
        f"<rect width='{_WIDTH}' height='{_HEIGHT}' rx='8' fill='#ffffff'/>",
        _text(24, 32, "The server under mixed load and with engines that die", size=17, bold=True),
        _text(24, 56, "memory, MB (left)", fill=_COLOURS[0]),
        _text(160, 56, "open descriptors (right)", fill=_COLOURS[1]),
    ]
    for part in range(5):
        y = _TOP + height * (1 - part / 4)
        made.append(f"<line x1='{_LEFT}' y1='{y:.1f}' x2='{_LEFT + width}' y2='{y:.1f}' stroke='{_GRID}'/>")
        made.append(_text(_LEFT - 10, y + 4, f"{tops[0] * part / 4:.0f}", anchor="end", fill=_FAINT, size=12))
        made.append(_text(_LEFT + width + 10, y + 4, f"{tops[1] * part / 4:.0f}", fill=_FAINT, size=12))
    for part in range(6):
        x = _LEFT + width * part / 5
        made.append(_text(x, _TOP + height + 18, f"{end * part / 300:.1f} min", anchor="middle", fill=_FAINT, size=12))
    for points, top, colour in ((descriptors, tops[1], _COLOURS[1]), (memory, tops[0], _COLOURS[0])):
        made.append(f"<polyline points='{path(points, top)}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
    fitted = path([(line.start, line.first), (line.end, line.last)], tops[0])
    made.append(f"<polyline points='{fitted}' fill='none' stroke='{_INK}' stroke-width='2' stroke-dasharray='6 4'/>")
    made += [_text(24, _HEIGHT - 12, told, fill=_FAINT, size=12), "</svg>"]
    return "\n".join(made) + "\n"


_COLOURS = ("#2563a8", "#b45309")


def _text(
    x: float, y: float, text: str, *, size: int = 13, fill: str = _INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.0f}' y='{y:.0f}' font-size='{size}' fill='{fill}' text-anchor='{anchor}'{weight}>"
        f"{escape(text)}</text>"
    )
