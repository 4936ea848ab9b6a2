"""How far files are from the reference, window by window, in llama.cpp: a process of its own for native code.

    python _compress_score.py '{"reference": …, "text": …, "windows": 80, "threads": 2, "files": {NAME: PATH, …}}'

All files are scored on the same windows of 512 tokens, each on its second half, as `press measure` does; the reference
runs once for all of them. What is found goes into `into/NAME.npz`, a row a window and a column a place: `kl`, `loss`,
and `same`, whether both hold the same token for the likeliest. Windows that are there are not scored again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.engines._llama import Llama

WINDOW = 512
# Rows of logits that are looked at at once: they stay in the processor's cache.
_ROWS = 16

NAMES = ("kl", "loss", "same")
_SAVED = 8  # windows between two times that what is found is kept

Floats = NDArray[np.float32]
Row = tuple[NDArray[np.float64], ...]


def compared(theirs: Floats, logits: Floats, targets: NDArray[np.int32]) -> Row:
    """By row the divergence from `theirs`, the loss at the target, and whether both hold the same for the likeliest.

    Exponentials are float32 and sums float64: right to about 1e-6 nats, and three times as fast as all in float64,
    which counts where a score is half of the work.
    """
    count = len(logits)
    kl, loss, same = np.empty(count), np.empty(count), np.empty(count)
    for start in range(0, count, _ROWS):
        p, q = theirs[start : start + _ROWS], logits[start : start + _ROWS]
        p_top, q_top = p.max(axis=1, keepdims=True), q.max(axis=1, keepdims=True)
        weights = np.exp(p - p_top)
        p_sum = weights.sum(axis=1, dtype=np.float64)
        q_sum = np.exp(q - q_top).sum(axis=1, dtype=np.float64)
        apart = ((p - q) * weights).sum(axis=1, dtype=np.float64) / p_sum
        p_norm, q_norm = p_top[:, 0] + np.log(p_sum), q_top[:, 0] + np.log(q_sum)
        rows = slice(start, start + len(q))
        kl[rows] = apart - p_norm + q_norm
        loss[rows] = q_norm - q[np.arange(len(q)), targets[rows]]
        same[rows] = p.argmax(axis=1) == q.argmax(axis=1)
    return kl, loss, same


def score(task: dict[str, Any]) -> None:
    window, first = WINDOW, WINDOW // 2
    threads = int(task["threads"])
    reference = Llama(Path(task["reference"]), window=window, threads=threads)
    tokens = reference.tokens(Path(task["text"]).read_text(encoding="utf-8"))
    windows = int(task["windows"])
    if len(tokens) < windows * window:
        raise SystemExit(f"the text has {len(tokens) // window} windows of {window} tokens, not {windows}")
    others = {name: Llama(Path(path), window=window, threads=threads) for name, path in task["files"].items()}
    rows = {name: known(Path(task["into"]) / f"{name}.npz") for name in others}
    for number in range(min(map(len, rows.values())), windows):
        part = tokens[number * window : (number + 1) * window].copy()
        if reference.bos is not None:
            part[0] = reference.bos
        theirs = reference.logits(part, first)
        for name, other in others.items():
            if len(rows[name]) == number:
                rows[name].append(compared(theirs, other.logits(part, first), part[first + 1 :]))
        if (number + 1) % _SAVED == 0 or number + 1 == windows:
            for name in others:
                keep(Path(task["into"]) / f"{name}.npz", rows[name])
        print(json.dumps({"done": number + 1, "windows": windows}), file=sys.stderr, flush=True)


def known(path: Path) -> list[Row]:
    """The windows that were scored before."""
    if not path.exists():
        return []
    with np.load(path) as found:
        return [*zip(*(found[name] for name in NAMES), strict=True)]


def keep(path: Path, rows: list[Row]) -> None:
    whole = path.with_suffix(".part.npz")
    np.savez(whole, **{name: np.stack([row[at] for row in rows]) for at, name in enumerate(NAMES)})
    whole.replace(path)


if __name__ == "__main__":
    score(json.loads(sys.argv[1]))
