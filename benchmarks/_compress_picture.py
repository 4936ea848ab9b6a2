"""The result of `compress.py` as a picture: bytes against divergence, Pressroom's files and llama.cpp's, a panel a
model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

_WIDTH, _PANEL, _TOP, _BOTTOM = 880, 360, 84, 58
_LEFT, _RIGHT = 84, 40
_THEIRS, _OURS, _AIM, _INK, _FAINT, _GRID = "#8a97a8", "#2563a8", "#c2410c", "#1f2933", "#697586", "#e3e7ed"
_FONT = "font-family='system-ui, -apple-system, Segoe UI, sans-serif'"
_NAMES = {"smollm2": "SmolLM2-135M", "small": "a small model with rows of 256 and 768"}


def draw(models: dict[str, Any], told: dict[str, Any]) -> str:
    """An SVG of what `compress.measured` found of each model."""
    height = 40 + len(models) * (_PANEL + _TOP + _BOTTOM) + 10
    made = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' role='img' {_FONT}>",
        f"<rect width='{_WIDTH}' height='{height}' rx='8' fill='#ffffff'/>",
    ]
    for at, (name, found) in enumerate(models.items()):
        made += _panel(_NAMES.get(name, name), found, top=at * (_PANEL + _TOP + _BOTTOM) + _TOP)
    quick = ", quick form" if told["quick"] else ""
    seen = f"{told['date']}, {told['machine']}{quick}. python benchmarks/compress.py"
    made += [_text(24, height - 16, seen, fill=_FAINT, size=12), "</svg>"]
    return "\n".join(made) + "\n"


def _panel(name: str, found: dict[str, Any], *, top: float) -> list[str]:
    ours: Sequence[dict[str, Any]] = found["points"]
    theirs: dict[str, dict[str, Any]] = found["anchors"]
    aims = [(one["mb"], one["kl"]) for one in found["targets"].values() if one["kl"]]
    every = [*ours, *theirs.values()]
    if not every:
        return [_text(_LEFT, top, f"{name}: nothing was measured")]
    low_mb, high_mb = _padded([one["mb"] for one in every])
    seen = [value for one in every for value in (one["kl"], one["kl_high"]) if value > 0] + [kl for _, kl in aims]
    low = math.log10(min(seen)) - 0.15
    high = max(math.log10(max(seen)) + 0.15, low + 0.5)
    width = _WIDTH - _LEFT - _RIGHT

    def x(mb: float) -> float:
        return _LEFT + (mb - low_mb) / (high_mb - low_mb) * width

    def y(kl: float) -> float:
        part = (math.log10(max(kl, 10**low)) - low) / (high - low)
        return top + (1 - part) * _PANEL

    tokens = f"{found['scored_tokens']:,} tokens"
    made = [
        _text(24, top - 50, f"What is lost for how many bytes: {name}", size=17, bold=True),
        _text(24, top - 30, f"mean KL divergence from the reference in nats, {tokens}, 95 % intervals", fill=_FAINT),
    ]
    made += _legend(top - 12, aims=bool(aims))
    for kl in _ticks_log(low, high):
        made.append(f"<path d='M{_LEFT} {y(kl):.1f} h{width}' stroke='{_GRID}'/>")
        made.append(_text(_LEFT - 8, y(kl) + 4, f"{kl:g}", fill=_FAINT, anchor="end", size=12))
    for mb in _ticks(low_mb, high_mb):
        made.append(_text(x(mb), top + _PANEL + 18, f"{mb:g}", fill=_FAINT, anchor="middle", size=12))
    made.append(f"<path d='M{_LEFT} {top} v{_PANEL} h{width}' fill='none' stroke='{_THEIRS}'/>")
    made.append(_text(_LEFT + width, top + _PANEL + 36, "MB of the file", fill=_FAINT, anchor="end", size=12))
    for mb, kl in aims:
        made.append(
            f"<path d='M{x(mb) - 26:.1f} {y(kl):.1f} h26 v-26' fill='none' stroke='{_AIM}' stroke-width='1.6'/>"
        )
    for one in theirs.values():
        made += _mark(x(one["mb"]), y(one["kl"]), y(one["kl_low"]), y(one["kl_high"]), _THEIRS)
    made += _names([(x(one["mb"]) + 8, y(one["kl"]) - 6, label) for label, one in theirs.items()])
    line = " ".join(f"{x(one['mb']):.1f},{y(one['kl']):.1f}" for one in sorted(ours, key=lambda one: one["mb"]))
    made.append(f"<polyline points='{line}' fill='none' stroke='{_OURS}' stroke-width='1.2' stroke-dasharray='5 4'/>")
    for one in ours:
        made += _mark(x(one["mb"]), y(one["kl"]), y(one["kl_low"]), y(one["kl_high"]), _OURS)
    return made


def _names(labels: list[tuple[float, float, str]]) -> list[str]:
    """The labels, those that would lie on one another moved up."""
    placed: list[tuple[float, float]] = []
    made = []
    for x, y, label in sorted(labels, key=lambda one: -one[1]):
        while any(abs(x - left) < 70 and abs(y - at) < 14 for left, at in placed):
            y -= 2
        placed.append((x, y))
        made.append(_text(x, y, label, size=12))
    return made


def _legend(at: float, *, aims: bool) -> list[str]:
    kinds = [("Pressroom, for a budget", _OURS), ("llama.cpp's types with importance matrix", _THEIRS)]
    made = []
    left = _LEFT
    for label, colour in kinds:
        made.append(f"<circle cx='{left + 5}' cy='{at - 4:.1f}' r='4.5' fill='{colour}'/>")
        made.append(_text(left + 16, at, label, size=12))
        left += 190 if colour == _OURS else 280
    if aims:
        made.append(f"<path d='M{left - 6} {at:.1f} h14 v-12' fill='none' stroke='{_AIM}' stroke-width='1.6'/>")
        made.append(_text(left + 16, at, "targets", size=12))
    return made


def _mark(x: float, y: float, low: float, high: float, colour: str) -> list[str]:
    return [
        f"<path d='M{x:.1f} {low:.1f} V{high:.1f} M{x - 3:.1f} {low:.1f} h6 M{x - 3:.1f} {high:.1f} h6' "
        f"stroke='{colour}' stroke-width='1.3'/>",
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4.5' fill='{colour}'/>",
    ]


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max((high - low) * 0.08, high * 0.01)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 6
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * nice for nice in (1, 2, 5, 10) if scale * nice >= rough)
    return [round(number * step, 6) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _ticks_log(low: float, high: float) -> list[float]:
    every = [nice * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for nice in (1, 2, 5)]
    return [float(f"{value:g}") for value in every if low <= math.log10(value) <= high]


def _text(
    x: float, y: float, text: str, *, size: int = 13, fill: str = _INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.0f}' y='{y:.0f}' font-size='{size}' fill='{fill}' text-anchor='{anchor}'{weight}>"
        f"{escape(text)}</text>"
    )
