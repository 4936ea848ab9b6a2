"""The result of `engines.py` as a picture: tokens a second against clients, a line for each engine and for `auto`."""

from __future__ import annotations

from html import escape
from math import log2
from typing import Any

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 120, 78, 64
_COLOURS = {"auto": "#2563a8", "llamacpp": "#b45309", "vllm": "#4d7c0f"}
_NAMES = {"auto": "auto, through the gateway", "llamacpp": "llama.cpp, asked directly", "vllm": "vLLM, asked directly"}
_INK, _FAINT, _GRID = "#1f2933", "#697586", "#e3e8ef"
_FONT = "font-family='system-ui, -apple-system, Segoe UI, sans-serif'"


def draw(lines: dict[str, dict[int, float]], told: dict[str, Any]) -> str:
    """An SVG of tokens a second by name and number of clients; `told` is the result they are from."""
    clients = sorted({number for rates in lines.values() for number in rates})
    top = _nice(max(rate for rates in lines.values() for rate in rates.values()))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    span = log2(clients[-1] / clients[0]) or 1.0

    def at(number: int, rate: float) -> tuple[float, float]:
        return _LEFT + width * log2(number / clients[0]) / span, _TOP + height * (1 - rate / top)

    made = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' {_FONT}>",
        f"<rect width='{_WIDTH}' height='{_HEIGHT}' rx='8' fill='#ffffff'/>",
        _text(24, 32, "Tokens a second, by how many clients ask at once", size=17, bold=True),
    ]
    x = 24.0
    for name in lines:
        made.append(f"<rect x='{x:.0f}' y='47' width='14' height='4' fill='{_COLOURS[name]}'/>")
        made.append(_text(x + 20, 54, _NAMES[name]))
        x += 20 + 7.4 * len(_NAMES[name]) + 18
    for part in range(5):
        rate = top * part / 4
        y = at(clients[0], rate)[1]
        made.append(f"<line x1='{_LEFT}' y1='{y:.1f}' x2='{_LEFT + width}' y2='{y:.1f}' stroke='{_GRID}'/>")
        made.append(_text(_LEFT - 10, y + 4, f"{rate:,.0f}", anchor="end", fill=_FAINT, size=12))
    made += [
        _text(at(number, 0)[0], _TOP + height + 20, str(number), anchor="middle", fill=_FAINT, size=12)
        for number in clients
    ]
    # `auto` last, over the engine it follows.
    for name in sorted(lines, key=lambda one: one == "auto"):
        rates = lines[name]
        points = " ".join("{:.1f},{:.1f}".format(*at(number, rates[number])) for number in sorted(rates))
        dashes = " stroke-dasharray='7 4'" if name == "auto" else ""
        made.append(f"<polyline points='{points}' fill='none' stroke='{_COLOURS[name]}' stroke-width='2.5'{dashes}/>")
        for number, rate in rates.items():
            cx, cy = at(number, rate)
            made.append(f"<circle cx='{cx:.1f}' cy='{cy:.1f}' r='3.5' fill='{_COLOURS[name]}'/>")
        last = max(rates)
        cx, cy = at(last, rates[last])
        side = -6 if name == "auto" else 14
        made.append(_text(cx + 9, cy + side, f"{rates[last]:,.0f}", fill=_COLOURS[name], bold=name == "auto"))
    quick = ", quick form" if told["quick"] else ""
    seen = f"{told['date']}, {told['machine']}{quick}. python benchmarks/engines.py"
    made += [_text(24, _HEIGHT - 14, seen, fill=_FAINT, size=12), "</svg>"]
    return "\n".join(made) + "\n"


def _nice(value: float) -> float:
    """The least of 1, 2, 4, 6, 8 times a power of ten that is not under the value: its quarters are short to write."""
    power = 10.0
    while power * 10 <= value:
        power *= 10
    return next((power * step for step in (1, 2, 4, 6, 8, 10) if power * step >= value), power * 10)


def _text(
    x: float, y: float, text: str, *, size: int = 13, fill: str = _INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.0f}' y='{y:.0f}' font-size='{size}' fill='{fill}' text-anchor='{anchor}'{weight}>"
        f"{escape(text)}</text>"
    )
