"""Measures what a model loses without some of its blocks, in a process of its own; started by `_blocks`.

A block is skipped by putting what went into it in the place of what came out of it, while llama.cpp computes: the model
is loaded once, and computes what a file without these blocks would.
"""

from __future__ import annotations

import re
from ctypes import addressof
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.calibrate._child import main
from pressroom.compress.calibrate._llama import Llama, Node
from pressroom.compress.calibrate._windows import windows_of
from pressroom.kernel import RecipeError

Floats = NDArray[np.float32]

# As llama.cpp calls what comes out of a block, in all of its llama-like architectures, and what goes into the first.
_OUT = re.compile(rb"l_out-([0-9]+)")
_FIRST = (b"inp_embd", b"embd", b"inp_scaled")
_ROWS = 64


class _Stream:
    """What runs through the blocks, seen and, where a block is skipped, put back."""

    def __init__(self) -> None:
        self.llama: Llama | None = None
        self.skipped: frozenset[int] = frozenset()
        self.kept: list[Floats] | None = None  # what came before the first block and out of each, where it is wanted
        self.met: set[int] = set()
        self._last: Floats | None = None

    def begin(self, skipped: frozenset[int]) -> None:
        self.skipped, self.met, self._last = skipped, set(), None

    def watch(self, node: Node, ask: bool) -> bool:
        found = _OUT.fullmatch(node.name)
        if found is None and (node.name not in _FIRST or self.met):
            return not ask
        if ask:
            return True
        assert self.llama is not None
        address = addressof(node)
        number = -1 if found is None else int(found[1])
        if number in self.skipped and self._last is not None:
            self.llama.put(address, self._last)
        else:
            self._last = self.llama.values(address)
        if number >= 0:
            self.met.add(number)
        if self.kept is not None:
            if number < 0:
                self.kept.clear()
            assert self._last is not None
            self.kept.append(self._last.reshape(-1, self._last.shape[-1]))
        return True


def measure(task: dict[str, Any], text: str, answer: Any) -> None:
    """Answers `influence`, one number a block, then `dropped` and `kl` for each block that goes."""
    stream = _Stream()
    window, layers = int(task["window"]), int(task["layers"])
    stream.llama = llama = Llama(
        Path(task["model"]), window=window, piece=window, threads=int(task["threads"]), watch=stream.watch
    )
    _, windows = windows_of(llama, text, tokens=int(task["tokens"]), window=window)
    count = len(windows)
    stream.kept = []
    cosines = np.zeros(layers)
    reference = []
    for part in windows:
        stream.begin(frozenset())
        llama.read(part, 0)
        reference.append(_log_probabilities(llama.logits(window)).astype(np.float16))
        if stream.met != set(range(layers)) or len(stream.kept) != layers + 1:
            raise RecipeError(
                f"llama.cpp does not show what comes out of each of the {layers} blocks of this model",
                hint="Name the layers that are to go.",
            )
        cosines += [_cosine(stream.kept[number], stream.kept[number + 1]) for number in range(layers)]
    stream.kept = None
    influence = 1 - cosines / count
    answer(influence=influence.tolist(), tokens=count * window)

    def divergence(skipped: frozenset[int]) -> float:
        total = 0.0
        for part, before in zip(windows, reference, strict=True):
            stream.begin(skipped)
            llama.read(part, 0)
            total += _divergence(before, llama.logits(window))
        return total / count

    order = [int(number) for number in np.argsort(influence, kind="stable")]
    gone: list[int] = []
    most, short = int(task["count"]), int(task["shortlist"])
    total = sum(min(short, layers - number) for number in range(most))
    done = 0
    for _ in range(most):
        left = [number for number in order if number not in gone][:short]
        if task["by"] == "influence":
            best = left[0]
        else:
            losses = {}
            for number in left:
                losses[number] = divergence(frozenset([*gone, number]))
                done += 1
                answer(done=done, total=total)
            best = min(losses, key=lambda number: (losses[number], number))
        gone.append(best)
        answer(dropped=best, kl=divergence(frozenset(gone)) if task["by"] == "influence" else losses[best])
    answer(finished=True)


def _cosine(a: Floats, b: Floats) -> float:
    """The mean over positions of the cosine between what goes in and what comes out."""
    products = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    lengths = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
    return float(np.mean(products / np.maximum(lengths, 1e-30)))


def _log_probabilities(logits: Floats) -> Floats:
    shifted: Floats = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _divergence(before: NDArray[np.float16], logits: Floats) -> float:
    """The mean over positions of KL(before, now)."""
    total = 0.0
    for start in range(0, len(before), _ROWS):
        old = before[start : start + _ROWS].astype(np.float32)
        now = _log_probabilities(logits[start : start + _ROWS])
        total += float((np.exp(old) * (old - now)).sum(dtype=np.float64))
    return total / len(before)


if __name__ == "__main__":
    main(measure)
