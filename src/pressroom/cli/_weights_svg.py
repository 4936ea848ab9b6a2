"""A tensor before and after rounding, as an SVG: how its weights are spread, the errors, one block of it closely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.cli._formats_svg import STYLE
from pressroom.cli._svg import said

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# In pixels.
_WIDTH, _HEIGHT = 900, 640
_LEFT, _INNER, _HIGH = 64, 800, 190
_BINS = 240
_BEFORE, _AFTER, _ERROR = "#94a0b2", "#1d6fd8", "#d9480f"
#: Weights that are drawn one by one.
CLOSE = 64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BeforeAfter:
    """A tensor twice, (rows, columns) each. `before` and `after` say what the two are; `of` is how many weights it has
    in all, where only a part was looked at."""

    name: str
    before: str
    after: str
    first: Floats
    second: Floats
    of: int
    bits: float | None = None

    @property
    def error(self) -> float:
        """The share of the squares that is lost."""
        whole = float((self.first.astype(np.float64) ** 2).sum())
        return float(((self.first.astype(np.float64) - self.second) ** 2).sum()) / whole if whole else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        apart = np.abs(self.first.astype(np.float64) - self.second)
        return {
            "tensor": self.name,
            "before": self.before,
            "after": self.after,
            "bits": self.bits,
            "weights": self.of,
            "looked_at": int(self.first.size),
            "rms": float(np.sqrt((self.first.astype(np.float64) ** 2).mean())),
            "error_rms": float(np.sqrt((apart**2).mean())),
            "error_largest": float(apart.max()),
            "error_share": self.error,
            "zeros": float((self.second == 0).mean()),
        }


def weights_svg(found: BeforeAfter) -> str:
    """The drawing as text."""
    facts = found.as_dict()
    heading = f"{found.name}: {found.before} and {found.after}"
    part = "" if found.of == found.first.size else f" ({found.first.size:,} of them looked at)"
    told = (
        f"{found.of:,} weights{part}; lost of their squares: {found.error:.3%}; "
        f"root mean square {facts['rms']:.3g}, of the error {facts['error_rms']:.3g}"
    )
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said(heading)}">',
        f"<title>{said(heading)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text class="heading" x="16" y="30">{said(heading)}</text>',
        f'<text class="below" x="16" y="52">{said(told)}</text>',
        *_spread(found),
        *_errors(found),
        *_closely(found),
    ]
    return "\n".join([*drawn, "</svg>", ""])


def _key(x: float, y: float, entries: list[tuple[str, str]]) -> list[str]:
    drawn = []
    for text, colour in entries:
        drawn.append(f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" rx="2" fill="{colour}"/>')
        drawn.append(f'<text class="below" x="{x + 17:.1f}" y="{y:.1f}">{said(text)}</text>')
        x += 17 + len(text) * 6.8 + 18
    return drawn


def _spread(found: BeforeAfter) -> list[str]:
    """How often each value is: before as an area, after as lines, both by their own highest."""
    top = 84
    # The rare ones far out would leave no room for the others: a part in five thousand lies beyond the ends.
    reach = float(np.quantile(np.abs(found.first), 0.9998)) * 1.08 or 1.0
    edges = np.linspace(-reach, reach, _BINS + 1)
    before = np.histogram(found.first, edges)[0]
    after = np.histogram(found.second, edges)[0]
    floor = top + 26 + _HIGH - 60
    # Zeros may be more than of any other value, and would press the others flat: they go up to the top, with a number.
    others = np.delete(after, [_BINS // 2 - 1, _BINS // 2])
    most_after = min(int(after.max()), round(1.25 * int(others.max()))) or 1

    def x(value: float) -> float:
        return _LEFT + (value / reach + 1) / 2 * _INNER

    def y(count: float, most: float) -> float:
        return floor - min(count / most, 1) * (_HIGH - 64)

    drawn = _key(_LEFT, top + 8, [(f"before: {found.before}", _BEFORE), (f"after: {found.after}", _AFTER)])
    drawn.append(
        f'<text class="tick" x="{_LEFT + _INNER}" y="{top + 8}" text-anchor="end">'
        "how often, each by its own highest</text>"
    )
    points = " ".join(
        f"L{x(float(edges[at])):.1f} {y(count, before.max() or 1):.1f} H{x(float(edges[at + 1])):.1f}"
        for at, count in enumerate(before)
    )
    drawn.append(
        f'<path d="M{_LEFT} {floor} {points} L{_LEFT + _INNER} {floor} Z" fill="{_BEFORE}" fill-opacity="0.45"/>'
    )
    steps = " ".join(
        f"{'M' if at == 0 else 'L'}{x(float(edges[at])):.1f} {y(count, most_after):.1f} H{x(float(edges[at + 1])):.1f}"
        for at, count in enumerate(after)
    )
    drawn.append(f'<path d="{steps}" fill="none" stroke="{_AFTER}" stroke-width="1.1"/>')
    if after.max() > most_after:
        drawn.append(
            f'<text class="tick" x="{x(0) + 8:.1f}" y="{y(most_after, most_after) - 6:.1f}" style="fill:{_AFTER}">'
            f"exactly 0: {float((found.second == 0).mean()):.1%}</text>"
        )
    return drawn + _axis(floor, reach, "weight")


def _errors(found: BeforeAfter) -> list[str]:
    top = 296
    apart = found.second.astype(np.float64) - found.first
    reach = float(np.quantile(np.abs(apart), 0.9998)) * 1.08 or 1.0
    edges = np.linspace(-reach, reach, _BINS // 2 + 1)
    counts = np.histogram(apart, edges)[0]
    floor, high = top + 100, 76
    most = counts.max() or 1
    steps = " ".join(
        f"L{_LEFT + at / len(counts) * _INNER:.1f} {floor - count / most * high:.1f} "
        f"H{_LEFT + (at + 1) / len(counts) * _INNER:.1f}"
        for at, count in enumerate(counts)
    )
    return [
        *_key(_LEFT, top + 8, [("error: after less before", _ERROR)]),
        f'<path d="M{_LEFT} {floor} {steps} L{_LEFT + _INNER} {floor} Z" fill="{_ERROR}" fill-opacity="0.55"/>',
        *_axis(floor, reach, "error"),
    ]


def _axis(floor: float, reach: float, what: str) -> list[str]:
    drawn = [f'<path class="axis" d="M{_LEFT} {floor} h{_INNER}"/>']
    for share in (-0.8, -0.4, 0.0, 0.4, 0.8):
        at = _LEFT + (share + 1) / 2 * _INNER
        drawn.append(f'<path class="axis" d="M{at:.1f} {floor} v4"/>')
        drawn.append(
            f'<text class="tick" x="{at:.1f}" y="{floor + 17:.1f}" text-anchor="middle">{share * reach:.2g}</text>'
        )
    drawn.append(f'<text class="tick" x="{_LEFT + _INNER}" y="{floor + 17:.1f}" text-anchor="end">{what}</text>')
    return drawn


def _closely(found: BeforeAfter) -> list[str]:
    """The first weights of the first row, one beside the other."""
    top, high = 462, 134
    count = min(CLOSE, found.first.shape[1])
    before, after = found.first[0, :count], found.second[0, :count]
    reach = float(max(np.abs(before).max(), np.abs(after).max())) or 1.0
    middle = top + high / 2

    def y(value: float) -> float:
        return middle - value / reach * (high / 2 - 4)

    drawn = _key(_LEFT, top - 14, [("before", _BEFORE), ("after", _AFTER)])
    drawn.append(
        f'<text class="tick" x="{_LEFT + _INNER}" y="{top - 14}" text-anchor="end">'
        f"the first {count} weights of the first row, and the values that they use</text>"
    )
    levels = np.unique(after)
    if len(levels) <= 40:
        drawn += [f'<path class="grid" d="M{_LEFT} {y(float(level)):.1f} h{_INNER}"/>' for level in levels]
    drawn.append(f'<path class="axis" d="M{_LEFT} {middle:.1f} h{_INNER}"/>')
    for at in range(count):
        x = _LEFT + (at + 0.5) / count * _INNER
        drawn.append(
            f'<path d="M{x:.1f} {y(float(before[at])):.1f} V{y(float(after[at])):.1f}" stroke="{_ERROR}" '
            'stroke-width="1.6"/>'
        )
        drawn.append(f'<circle cx="{x:.1f}" cy="{y(float(before[at])):.1f}" r="3.4" fill="{_BEFORE}"/>')
        drawn.append(f'<circle cx="{x:.1f}" cy="{y(float(after[at])):.1f}" r="2.4" fill="{_AFTER}"/>')
    for value in (-reach, 0.0, reach):
        drawn.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2g}</text>')
    return drawn
