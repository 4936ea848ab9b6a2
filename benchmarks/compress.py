"""How much is lost for how many bytes: files for a budget, beside llama.cpp's own types at the same bytes.

    python benchmarks/compress.py [--quick] [--cache DIR] [--environments DIR] [--svg FILE]

Two models. SmolLM2-135M in bf16, off its grid of four bits (`_compress_reference.py`): the anchors are llama.cpp's
types from Q8_0 to Q4_0. And a small llama trained here, whose rows divide by 256, for the types of 2 and 3 bits. Every
anchor has an importance matrix of the text and the tokens that Pressroom calibrates on, and the types that llama.cpp
itself would give each tensor (`_compress_anchors.py`). For the bytes of each anchor, and for those of the targets,
`press compress --budget` makes a file.

All files are loaded by llama.cpp and scored on the same windows of text that was used neither to calibrate nor to
train: the divergence of what they predict from what the reference does, in nats a token. `kl_low` and `kl_high` hold
the mean with 95 % (Student's t over the windows); `kl_difference` is ours less the anchor's, window by window.

And half of SmolLM2's weights pruned by SparseGPT: the perplexity beside llm-compressor's (`_compress_sparse.py`).

Models, files and scores are kept in `--cache` and taken again; `--again` makes Pressroom's files anew. `--quick` takes
two layers of the small model, hardly trained, and one anchor, if its environment is there. The last line is one JSON
object: that of the first model, with the other one's under `others`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _compress_anchors import ANCHORS, LOW_BIT, quantised, quantiser, size_of
from _compress_figures import Scored, difference, scored
from _compress_pressroom import Pressroom
from _compress_texts import Texts, texts
from _gateway_peers import NotMeasured

from pressroom.compress.calibrate import calibrate, write_imatrix
from pressroom.kernel import this_machine

_HERE = Path(__file__).parent
#: Megabytes and divergence: what is asked of SmolLM2 at these sizes. None: no worse than the anchor of that name.
TARGETS: dict[str, tuple[float, float | None, str]] = {
    "q4_k_m": (105.5, 0.028, "Q4_K_M"),
    "iq4_nl": (92.6, 0.055, "IQ4_NL+"),
    "q5_k_m": (112.3, None, "Q5_K_M"),
    "q8_0": (144.9, None, "Q8_0"),
}
# An anchor that is so near below a target's bytes stands for it: one file for both.
_NEAR_MB = 0.3


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A model to be compressed, and what it is compressed with."""

    name: str
    reference: Path
    texts: Texts
    folder: Path
    anchors: Sequence[str]
    targets: dict[str, tuple[float, float | None, str]]
    tokens: int
    windows: int
    threads: int


def measured(bench: Bench, environments: Path, *, make: bool, again: bool) -> dict[str, Any]:
    """Anchors, our files at their bytes and at the targets', and what all of them lose."""
    files, missing = anchors(bench, environments, make=make)
    ours = Pressroom(bench.folder / "workspace", bench.reference, text=bench.texts.calibration, tokens=bench.tokens)
    budgets = {path.stat().st_size for path in files.values()}
    # Where there is no llama-quantize, ours are made all the same, for the bytes that the anchors would take.
    budgets |= {size for name in missing if (size := size_of(name, bench.reference)) is not None}
    for most, _, _ in bench.targets.values():
        if not any(most - _NEAR_MB <= size / 1e6 <= most for size in budgets):
            budgets.add(int(most * 1e6))
    made, told = {}, {}
    for budget in sorted(budgets):
        name = f"pressroom-{budget}"
        made[name], told[name] = ours.within(budget, again=again)
    found = score(bench, {**files, **made})
    theirs = {name: found[name] for name in files}
    points = [point(found[name], theirs, budget=budget, told=told[name]) for budget, name in named(budgets)]
    return {
        "points": points,
        "anchors": {name: one.figures() for name, one in theirs.items()},
        "anchors_not_measured": missing,
        "targets": judged(bench.targets, points),
        "reference_mb": round(bench.reference.stat().st_size / 1e6, 3),
        "scored_tokens": next(iter(found.values())).kl.size if found else 0,
    }


def half(bench: Bench, environments: Path, *, make: bool, again: bool) -> dict[str, Any]:
    """SparseGPT at 50 %: our perplexity and llm-compressor's."""
    from _compress_sparse import beside, ours, theirs

    folder = bench.folder / "half"
    workspace = bench.folder / "workspace"
    try:
        peer = theirs(
            bench.reference,
            bench.texts.calibration,
            folder,
            environments,
            tokens=bench.tokens,
            threads=bench.threads,
            make=make,
        )
    except NotMeasured as error:
        return {"not_measured": str(error)}
    pressroom = Pressroom(workspace, bench.reference, text=bench.texts.calibration, tokens=bench.tokens)
    mine = ours(pressroom, folder, again=again)
    found = score(bench, {"half": mine, "half-llm-compressor": peer, "reference": bench.reference})
    told = beside(found["half"], found["half-llm-compressor"])
    return {**told, "reference": found["reference"].figures()["perplexity"]}


def score(bench: Bench, files: dict[str, Path]) -> dict[str, Scored]:
    return scored(
        files,
        reference=bench.reference,
        text=bench.texts.evaluation,
        windows=bench.windows,
        threads=bench.threads,
        cache=bench.folder / "scores",
    )


def named(budgets: set[int]) -> Iterator[tuple[int, str]]:
    for budget in sorted(budgets):
        yield budget, f"pressroom-{budget}"


def anchors(bench: Bench, environments: Path, *, make: bool) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of the anchors, and why others could not be made."""
    files: dict[str, Path] = {}
    missing: dict[str, str] = {}
    folder = bench.folder / "anchors"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        program = quantiser(environments, make=make)
    except NotMeasured as error:
        return {}, dict.fromkeys(bench.anchors, str(error))
    imatrix = bench.folder / f"importance-{bench.tokens}.dat"
    if not imatrix.exists():
        print("calibrating for the importance matrix ...", file=sys.stderr, flush=True)
        found = calibrate(
            bench.reference,
            bench.texts.calibration.read_text(encoding="utf-8"),
            tokens=bench.tokens,
            folder=bench.folder / "calibration",
            hessians=False,
            threads=bench.threads,
        )
        write_imatrix(imatrix, found)
    for anchor in bench.anchors:
        path = folder / f"{anchor}.gguf"
        try:
            quantised(program, anchor, bench.reference, imatrix, path, threads=bench.threads)
            files[anchor] = path
        except NotMeasured as error:
            missing[anchor] = str(error)
            print(f"{anchor}: not measured: {error}", file=sys.stderr, flush=True)
    return files, missing


def point(ours: Scored, theirs: dict[str, Scored], *, budget: int, told: dict[str, Any]) -> dict[str, Any]:
    """Our file beside the best anchor that is no larger than its budget."""
    found: dict[str, Any] = {**ours.figures(), "budget_mb": round(budget / 1e6, 3), "seconds": told.get("seconds")}
    fitting = {name: one for name, one in theirs.items() if round(one.mb * 1e6) <= budget}
    if not fitting:
        return {**found, "anchor": None, "anchor_mb": None, "anchor_kl": None}
    anchor = min(fitting, key=lambda name: fitting[name].by_window.mean())
    figures = fitting[anchor].figures()
    return {
        **found,
        "anchor": anchor,
        **{f"anchor_{name}": value for name, value in figures.items()},
        **difference(ours, fitting[anchor]),
    }


def judged(targets: dict[str, tuple[float, float | None, str]], points: list[dict[str, Any]]) -> dict[str, Any]:
    """Each target, the best point that is within its bytes, and whether it is met.

    A target in nats is met by the mean, and `surely` where the whole interval is below it; one beside an anchor is met
    where the interval of the differences does not lie above zero, and `surely` where it lies below.
    """
    found = {}
    for name, (most, kl, anchor) in targets.items():
        within = [one for one in points if one["mb"] <= most]
        best = min(within, key=lambda one: one["kl"], default=None)
        told: dict[str, Any] = {"mb": most, "kl": kl, "anchor": anchor, "met": None, "surely": None}
        if best is not None:
            told |= {"found_mb": best["mb"], "found_kl": best["kl"], "found_low": best["kl_low"]}
            told |= {"found_high": best["kl_high"]}
        if best is not None and kl is not None:
            told |= {"met": best["kl"] <= kl, "surely": best["kl_high"] <= kl}
        elif best is not None and best["anchor"] == anchor:
            told |= {"met": best["kl_difference_low"] <= 0, "surely": best["kl_difference_high"] < 0}
        found[name] = told
    return found


def smollm2(arguments: argparse.Namespace, words: Texts) -> Bench:
    folder = arguments.cache / "smollm2"
    folder.mkdir(parents=True, exist_ok=True)
    made = arguments.reference or folder / "reference.gguf"
    if not made.exists():
        from _compress_reference import reference
        from _family import MODEL, _pulled

        reference(arguments.model or _pulled(MODEL, folder), words.training, made)
    return Bench(
        name="smollm2",
        reference=made,
        texts=words,
        folder=folder,
        anchors=arguments.anchors or ANCHORS,
        targets=TARGETS,
        tokens=arguments.tokens,
        windows=arguments.windows,
        threads=arguments.threads,
    )


def small_model(arguments: argparse.Namespace, words: Texts) -> Bench:
    from _compress_small import STEPS, small

    folder = arguments.cache / ("small-quick" if arguments.quick else "small")
    form = {"steps": 10, "layers": 2} if arguments.quick else {"steps": STEPS}
    return Bench(
        name="small",
        reference=small(words.training, folder / "reference.gguf", **form),
        texts=words,
        folder=folder,
        anchors=("Q3_K_M",) if arguments.quick else LOW_BIT,
        targets={},
        tokens=2048 if arguments.quick else arguments.tokens,
        windows=4 if arguments.quick else arguments.windows,
        threads=arguments.threads,
    )


def default_cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "pressroom-benchmarks" / "compress"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds, on a toy")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where all that is made is kept")
    parser.add_argument("--texts", type=Path, help="folder of evaluation.txt, calibration.txt and training.txt")
    parser.add_argument("--model", type=Path, help="SmolLM2-135M-Instruct in Q4_1; else it is pulled")
    parser.add_argument("--reference", type=Path, help="a reference in bf16 that is there already")
    parser.add_argument("--windows", type=int, default=80, help="of 512 tokens, each scored on its second half")
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens that are calibrated on, by all")
    parser.add_argument("--threads", type=int, default=this_machine().physical_cores)
    parser.add_argument("--anchors", type=lambda names: names.split(","), help="some of llama.cpp's types for SmolLM2")
    parser.add_argument("--models", default="smollm2,small", help="which of the two")
    parser.add_argument("--no-pruning", action="store_true", help="leave SparseGPT beside llm-compressor's out")
    parser.add_argument("--again", action="store_true", help="make Pressroom's files anew")
    parser.add_argument("--svg", type=Path, help="draw it there")
    parser.add_argument(
        "--environments",
        type=Path,
        default=_HERE.parent / "build" / "benchmark-environments",
        help="folder of llama-quantize's virtual environment",
    )
    arguments = parser.parse_args(given)
    began = time.perf_counter()
    words = texts(arguments.cache) if arguments.texts is None else given_texts(arguments.texts)
    found: dict[str, Any] = {}
    for name in ("small",) if arguments.quick else arguments.models.split(","):
        bench = small_model(arguments, words) if name == "small" else smollm2(arguments, words)
        found[name] = measured(bench, arguments.environments, make=not arguments.quick, again=arguments.again)
        if name == "smollm2" and not arguments.no_pruning:
            found[name]["sparsegpt"] = half(bench, arguments.environments, make=True, again=arguments.again)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    first, *others = found
    result = {
        "model": first,
        **found[first],
        "others": {name: found[name] for name in others},
        "windows": arguments.windows,
        "calibration_tokens": arguments.tokens,
        "machine": str(this_machine()),
        "date": datetime.date.today().isoformat(),
        "quick": arguments.quick,
        "seconds": round(time.perf_counter() - began, 1),
    }
    if arguments.svg is not None:
        from _compress_picture import draw

        arguments.svg.write_text(draw(found, result), encoding="utf-8")
    print(json.dumps(result))


def given_texts(folder: Path) -> Texts:
    return Texts(**{name: folder / f"{name}.txt" for name in ("evaluation", "calibration", "training")})


if __name__ == "__main__":
    main()
