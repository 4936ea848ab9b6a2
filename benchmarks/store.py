"""How many bytes a family of models takes, and how fast it comes back, beside the other ways of keeping it.

    python benchmarks/store.py [--quick] [--family DIR] [--work DIR] [--rounds N] [--svg FILE]

The family is nine files made from one 135M model (see `_family.py`, which builds it on first use: six minutes, or one
with `--quick`, whose model has 4 layers). Each way of keeping it runs in a process of its own on two cores, with all
files in the page cache; in each round all ways run one after the other, ratios are taken within a round, and figures
are medians over the rounds. Every file that comes back is compared byte for byte. The peers' libraries are installed
into a virtual environment of their own on first use. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import _store_picture
from _peers import make_venv

from pressroom import __version__
from pressroom.kernel import this_machine

_CHILD = Path(__file__).with_name("_store_child.py")
# In the order they run: the ones that are compared with each other stand together.
_PEERS = ("raw", "zipnn", "zipnn_pieces", "xor_zstd", "xet", "tensor_dedup", "tensor_dedup_zipnn", "zstd", "zstd3")
# Measured in the first round only: their bytes are what counts, and they do not change.
_ONCE = ("xet", "tensor_dedup", "tensor_dedup_zipnn", "zstd", "zstd3")
_NOT_QUICK = ("tensor_dedup_zipnn", "zstd3")
_OURS: dict[str, dict[str, Any]] = {
    # Rates per core are those of one thread; two threads of one core would each look slower.
    "fast_one_thread": {"chains": "fast", "threads": 1, "passes": ("hot", "cold"), "held": True},
    "fast": {"chains": "fast", "threads": 2, "passes": ("hot", "cold")},
    "small": {"chains": "small", "threads": 2, "passes": ("cold",)},
    "recipes": {"chains": "small", "threads": 2, "passes": ("cold",), "adapter": True},
    "differences": {"chains": "fast", "threads": 2, "recipes": False},
    "differences_small": {"chains": "small", "threads": 2, "recipes": False},
}
_OURS_ONCE = ("small", "recipes", "differences", "differences_small")
_LABELS = {
    "raw": "copies of the files",
    "zstd": "zstd -1, each file",
    "zstd3": "zstd -3, each file",
    "zipnn": "ZipNN, each file",
    "zipnn_pieces": "ZipNN, pieces of 4 MiB",
    "tensor_dedup": "tensors once",
    "tensor_dedup_zipnn": "tensors once, ZipNN",
    "xor_zstd": "tensors once, XOR, zstd",
    "xet": "Xet's client",
    "fast": "Pressroom",
    "small": 'Pressroom, chains = "small"',
    "recipes": "Pressroom, small, told recipes",
    "differences": "Pressroom, no recipes",
    "differences_small": "Pressroom, small, no recipes",
}
_TARGETS = {
    "stored_pct": ("<=", 15.0),
    "stored_pct_chain": ("<=", 14.4),
    "stored_pct_recipes": ("<=", 10.5),
    "solo_pct": ("<=", 66.4),
    "restore_vs_zipnn": (">=", 1.5),
    "restore_vs_warm_read": (">=", 0.55),
    "ingest_mb_s_core": (">=", 500.0),
    "restore_over_output_mib": ("<=", 64.0),
}


def run_child(python: Path, approach: str, files: dict[str, Path], work: Path, **options: Any) -> dict[str, Any]:
    """One approach over all files: what `_store_child` found. Its directory is gone afterwards."""
    into = work / approach
    asked = {"approach": approach, "files": {name: str(file) for name, file in files.items()}, "into": str(into)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRESSROOM_")}
    try:
        child = subprocess.run(
            [str(python), str(_CHILD), json.dumps(asked | {"options": options})],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(into, ignore_errors=True)
    if child.returncode:
        raise SystemExit(f"{approach} {options or ''} ended with {child.returncode}; what it said is above")
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def rounds(
    files: dict[str, Path], adapter: Path, work: Path, venv: Path, *, count: int, quick: bool
) -> dict[str, list[dict[str, Any]]]:
    """What each approach came to, a round each."""
    peers = make_venv(venv)
    found: dict[str, list[dict[str, Any]]] = {}
    shown = [name for name in _PEERS if not (quick and name in _NOT_QUICK)]
    for turn in range(count):
        ours = [(name, Path(sys.executable), "pressroom", options) for name, options in _OURS.items()]
        theirs = [(name, peers, name, {}) for name in shown if turn == 0 or name not in _ONCE]
        for name, python, approach, options in (theirs[0], ours[0], theirs[1], ours[1], *theirs[2:], *ours[2:]):
            if turn and name in _OURS_ONCE:
                continue
            given = options | {"adapter": str(adapter)} if "adapter" in options else options
            for file in (*files.values(), adapter):
                _read(file)
            began = time.perf_counter()
            result = run_child(python, approach, files, work, **given)
            found.setdefault(name, []).append(result)
            share = 100 * result["stored"] / result["raw"]
            print(f"  round {turn + 1}: {name:18}{share:7.2f} %  {time.perf_counter() - began:5.1f} s", flush=True)
    return found


def _work_directory(needed: int) -> Path:
    """A disk in memory, where there is one with room: how fast this machine's disk takes bytes is not the question, and
    a virtual machine's can cost more CPU than any of this."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > needed
    return memory if roomy else Path(tempfile.gettempdir())


def _read(file: Path) -> None:
    """Into the page cache."""
    with file.open("rb", buffering=0) as opened:
        piece = bytearray(1 << 20)
        while opened.readinto(piece):
            pass


def _rate(taken: dict[str, Any], by: str = "cpu") -> float:
    """MB (1e6 bytes) a second."""
    return float(taken["bytes"] / taken[by] / 1e6)


def _median(values: Iterable[float], digits: int = 2) -> float:
    return round(statistics.median(values), digits)


def summed(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The figures by the names they are known under."""

    def stored(name: str) -> float:
        return round(100 * found[name][0]["stored"] / found[name][0]["raw"], 2)

    def restore(name: str, how: str, by: str = "cpu") -> list[float]:
        return [_rate(one["restore"][how], by) for one in found[name]]

    def ratio(mine: list[float], theirs: list[float]) -> float:
        return _median((a / b for a, b in zip(mine, theirs, strict=True)), 3)

    peers = [name for name in _PEERS if name in found]
    core, cold = restore("fast_one_thread", "hot"), restore("fast_one_thread", "cold")
    wall, cold_wall = restore("fast", "hot", "wall"), restore("fast", "cold", "wall")
    read = restore("raw", "hot", "wall")
    zipnn, pieces = restore("zipnn", "hot"), restore("zipnn_pieces", "hot")
    alone = found["fast"][0]
    sizes: dict[str, int] = alone["sizes"]
    peaks = [
        one["restore"][how] for name in ("fast", "fast_one_thread") for one in found[name] for how in ("hot", "cold")
    ]
    over = [one["private"] for one in peaks if one["private"] is not None]
    mapped = [one["peak"] for one in peaks if one["peak"] is not None]
    base = next(iter(sizes))
    return {
        "stored_pct": stored("fast"),
        "stored_pct_chain": stored("small"),
        "stored_pct_recipes": stored("recipes"),
        "stored_pct_differences": stored("differences"),
        "stored_pct_differences_chain": stored("differences_small"),
        "adapter_bytes": found["recipes"][0]["adapter"],
        "solo_pct": round(100 * alone["grown"][base] / sizes[base], 2),
        "file_pct": {name: round(100 * grown / sizes[name], 2) for name, grown in alone["grown"].items()},
        "restore_vs_zipnn": ratio(core, zipnn),
        "restore_vs_zipnn_pieces": ratio(core, pieces),
        "restore_cold_vs_zipnn": ratio(cold, zipnn),
        "restore_vs_warm_read": ratio(wall, read),
        "restore_cold_vs_warm_read": ratio(cold_wall, read),
        "restore_mb_s_core": _median(core, 0),
        "restore_cold_mb_s_core": _median(cold, 0),
        "restore_mb_s_two_cores": _median(wall, 0),
        "restore_cold_mb_s_two_cores": _median(cold_wall, 0),
        "restore_small_cold_mb_s_two_cores": _median(restore("small", "cold", "wall"), 0),
        "restore_over_output_mib": round(max(over) / 2**20, 1) if over else None,
        "restore_over_output_with_mapped_files_mib": round(max(mapped) / 2**20, 1) if mapped else None,
        "ingest_mb_s_core": _median((_rate(one["ingest"]) for one in found["fast_one_thread"]), 0),
        "ingest_mb_s_two_cores": _median((_rate(one["ingest"], "wall") for one in found["fast"]), 0),
        "held_mb_s_core": _median((_rate(one["held"]) for one in found["fast_one_thread"]), 0),
        "peers": {f"{name}_pct": stored(name) for name in peers},
        "peers_mb_s": {
            name: {
                "ingest_core": _median((_rate(one["ingest"]) for one in found[name]), 0),
                "restore_core": _median(restore(name, "hot"), 0),
                "restore_wall": _median(restore(name, "hot", "wall"), 0),
            }
            for name in peers
        },
    }


def table(result: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Label, stored % of raw, ingest and restore MB/s per core; the largest first, ours last."""
    lines = [
        (_LABELS[name], result["peers"][f"{name}_pct"], told["ingest_core"], told["restore_core"])
        for name, told in result["peers_mb_s"].items()
    ]
    lines.sort(key=lambda line: -line[1])
    nothing = float("nan")
    ours = (result["ingest_mb_s_core"], result["restore_mb_s_core"])
    lines.append((_LABELS["differences"], result["stored_pct_differences"], nothing, nothing))
    lines.append((_LABELS["differences_small"], result["stored_pct_differences_chain"], nothing, nothing))
    lines.append((_LABELS["fast"], result["stored_pct"], *ours))
    lines.append((_LABELS["small"], result["stored_pct_chain"], nothing, nothing))
    lines.append((_LABELS["recipes"], result["stored_pct_recipes"], nothing, nothing))
    return lines


def missed(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, (sign, target) in _TARGETS.items():
        value = result[name]
        if value is None or (value > target if sign == "<=" else value < target):
            lines.append(f"{name} is {value}, the target is {sign} {target:g}")
    return lines


def main() -> None:
    from _family import ADAPTER, FAMILY, build, default_directory  # PyTorch, which only the builder needs

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a model of 4 layers, one round")
    parser.add_argument("--family", type=Path, metavar="DIR", help="where the family is, or is built")
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct with Q4_1 weights, for the builder")
    parser.add_argument("--text", type=Path, help="a text to train on, for the builder")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where stores are made: 3 GB at a time, quick 0.6")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 3; quick 1")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the result here")
    given = parser.parse_args()
    directory = given.family or default_directory(small=given.quick)
    built = build(directory, small=given.quick, gguf=given.gguf, text=given.text)
    files = {name: built[name] for name in FAMILY}
    work_in = given.work or _work_directory(4 * sum(file.stat().st_size for file in files.values()) // 3)
    with tempfile.TemporaryDirectory(dir=work_in, prefix="pressroom-store-") as work:
        count = given.rounds or (1 if given.quick else 3)
        found = rounds(
            files, built[ADAPTER], Path(work), default_directory().with_name("peers"), count=count, quick=given.quick
        )
    result = summed(found)
    print(f"\n{'':34}{'stored':>9}{'ingest':>9}{'restore':>9}   MB/s per core")
    for label, share, ingest, restore in table(result):
        print(f"{label:34}{share:7.2f} %{ingest:9.0f}{restore:9.0f}")
    print()
    for line in missed(result):
        print(f"missed: {line}")
    told = {
        "quick": given.quick,
        "rounds": count,
        "bytes": found["raw"][0]["raw"],
        "work": str(work_in),
        "pressroom": __version__,
        "machine": this_machine().as_dict(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if given.svg:
        given.svg.write_text(_store_picture.draw(table(result), result | told), encoding="utf-8")
    print(json.dumps(result | told))


if __name__ == "__main__":
    main()
