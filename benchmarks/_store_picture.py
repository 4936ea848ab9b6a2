"""The result of `store.py` as a picture: a bar for each way of keeping the family, and its rates beside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isnan
from typing import Any

_WIDTH, _ROW, _TOP = 880, 27, 84
_LABEL, _BAR, _FULL = 250, 260, 360  # where labels end, where bars begin, how long 100 % is
_THEIRS, _OURS, _INK, _FAINT = "#a9b4c2", "#2563a8", "#1f2933", "#697586"
_FONT = "font-family='system-ui, -apple-system, Segoe UI, sans-serif'"


def draw(lines: Sequence[tuple[str, float, float, float]], told: dict[str, Any]) -> str:
    """An SVG of the lines of `store.table`: label, stored % of raw, ingest and restore in MB/s per core (NaN: not
    measured)."""
    height = _TOP + _ROW * len(lines) + 44
    gigabytes = told["bytes"] / 1e9
    machine = told["machine"]
    made = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' role='img' {_FONT}>",
        f"<rect width='{_WIDTH}' height='{height}' rx='8' fill='#ffffff'/>",
        _text(
            24,
            32,
            f"What a family of nine models takes on the disk, in % of its {gigabytes:.2f} GB",
            size=17,
            bold=True,
        ),
        _text(24, 52, "base, three checkpoints, fine-tune, merged LoRA, pruned, int8, one tensor changed", fill=_FAINT),
        _text(_BAR + _FULL + 142, 74, "ingest", fill=_FAINT, anchor="end", size=12),
        _text(_BAR + _FULL + 226, 74, "restore", fill=_FAINT, anchor="end", size=12),
        _text(_BAR + _FULL + 226, 56, "MB/s per core", fill=_FAINT, anchor="end", size=12),
    ]
    for at, (label, share, ingest, restore) in enumerate(lines):
        top = _TOP + at * _ROW
        ours = label.startswith("Pressroom")
        middle = top + 15
        made += [
            _text(_LABEL, middle, label, anchor="end", bold=ours),
            f"<rect x='{_BAR}' y='{top + 2}' width='{_FULL * share / 100:.1f}' height='18' rx='2' "
            f"fill='{_OURS if ours else _THEIRS}'/>",
            _text(_BAR + _FULL * share / 100 + 6, middle, f"{share:.1f} %", bold=ours, size=12),
            _text(_BAR + _FULL + 142, middle, "" if isnan(ingest) else f"{ingest:,.0f}", anchor="end", size=12),
            _text(_BAR + _FULL + 226, middle, "" if isnan(restore) else f"{restore:,.0f}", anchor="end", size=12),
        ]
    quick = ", quick form with a model of 4 layers" if told["quick"] else ""
    seen = f"{told['date']}, {machine['processor']}, two cores, bit for bit{quick}. python benchmarks/store.py"
    made += [_text(24, height - 16, seen, fill=_FAINT, size=12), "</svg>"]
    return "\n".join(made) + "\n"


def _text(
    x: float, y: float, text: str, *, size: int = 13, fill: str = _INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.0f}' y='{y:.0f}' font-size='{size}' fill='{fill}' text-anchor='{anchor}'{weight}>"
        f"{escape(text)}</text>"
    )
