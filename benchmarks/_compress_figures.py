"""What windows say: means with intervals, and differences of two files on the same windows."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_SCORER = Path(__file__).parent / "_compress_score.py"
_AT_ONCE = 4  # files beside the reference in one process: each is in memory, with a window's logits


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What was found of a file: its megabytes (10^6 bytes), and by window and place the divergence from the reference
    and the loss, in nats, and whether both hold the same token for the likeliest (1, else 0)."""

    mb: float
    kl: Floats
    loss: Floats
    same: Floats

    @property
    def by_window(self) -> Floats:
        return np.asarray(self.kl.mean(axis=1))

    def figures(self) -> dict[str, float]:
        low, high = interval(self.by_window)
        kl = float(self.kl.mean())
        return {
            "mb": round(self.mb, 3),
            "kl": significant(kl),
            "kl_low": significant(low),
            "kl_high": significant(high),
            "kl_p99": significant(float(np.quantile(self.kl, 0.99))),
            "top1": round(float(self.same.mean()), 4),
            "perplexity": round(math.exp(float(self.loss.mean())), 3),
        }


def interval(values: Floats) -> tuple[float, float]:
    """Where the mean lies with 95 %, by Student's t over the windows; (mean, mean) for one alone."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return mean, mean
    half = student(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


@cache
def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by Cornish and Fisher's expansion: right to 1 % from 4 degrees of freedom."""
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))


def difference(ours: Scored, theirs: Scored) -> dict[str, float]:
    """Ours less theirs, on the same windows: below zero is better."""
    found = ours.by_window - theirs.by_window
    low, high = interval(found)
    return {
        "kl_difference": significant(float(found.mean())),
        "kl_difference_low": significant(low),
        "kl_difference_high": significant(high),
    }


def significant(value: float) -> float:
    """To five digits."""
    return float(f"{value:.5g}")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def scored(
    files: Mapping[str, Path], *, reference: Path, text: Path, windows: int, threads: int, cache: Path
) -> dict[str, Scored]:
    """Every file on the same first windows; what was found before of the same bytes is taken again."""
    cache.mkdir(parents=True, exist_ok=True)
    about = digest(reference) + digest(text)
    keys = {name: hashlib.sha256((about + digest(path)).encode()).hexdigest() for name, path in files.items()}
    places = {name: cache / f"{key}.npz" for name, key in keys.items()}
    missing = [name for name in files if _known(places[name]) < windows]
    missing.sort(key=lambda name: _known(places[name]))  # those that were cut at the same place go on together
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        print(f"scoring {', '.join(some)} ...", file=sys.stderr, flush=True)
        task = {
            "reference": str(reference.resolve()),
            "text": str(text.resolve()),
            "windows": windows,
            "threads": threads,
            "files": {keys[name]: str(files[name].resolve()) for name in some},
            "into": str(cache.resolve()),
        }
        _run(task)
    found = {}
    for name, path in places.items():
        with np.load(path) as kept:
            found[name] = Scored(
                mb=files[name].stat().st_size / 1e6,
                **{key: kept[key][:windows].astype(np.float64) for key in ("kl", "loss", "same")},
            )
            if not np.isfinite(found[name].kl).all():
                raise SystemExit(f"{name} gives no probabilities (not a number)")
    return found


def _known(path: Path) -> int:
    """How many windows were scored."""
    if not path.exists():
        return 0
    with np.load(path) as kept:
        return len(kept["same"])


def _run(task: dict[str, Any]) -> None:
    command = [sys.executable, "-P", str(_SCORER), json.dumps(task)]
    environ = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environ, check=False)
        if done.returncode:
            log.seek(0)
            names = ", ".join(Path(path).name for path in task["files"].values())
            raise SystemExit(f"{names} cannot be scored: {log.read().strip()[-600:]}")
