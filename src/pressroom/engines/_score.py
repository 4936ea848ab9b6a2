"""Scores a text, in a process of its own: a crash of native code stays here.

Started by `pressroom.engines._perplexity` as an engine is: the task is JSON in `argv[1]`, and the end of stdin ends it.
The text is behind the file descriptor that the task names, and every answer is one line of JSON on stdout.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any, Protocol

from pressroom.engines import child
from pressroom.kernel import EngineError

# No tokenizer in use packs this many characters into a token on average, so the rest of a long text need not be read.
_MOST_CHARACTERS_A_TOKEN = 64


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    task = child.read_spec()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    with os.fdopen(int(task["text"]), "rb") as given:
        text = given.read().decode()

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        _score(task, text, answer)
    except EngineError as error:
        answer(error=error.message, hint=error.hint)
        sys.exit(1)


def _score(task: dict[str, Any], text: str, answer: Any) -> None:
    import xllamacpp

    from pressroom.engines._llama import Llama, divergences, log_softmax_at

    window, wanted, skip = int(task["window"]), int(task["windows"]), int(task["skip"])
    llama = Llama(Path(task["model"]), window=window, threads=int(task["threads"]))
    tokens = llama.tokens(text[: (skip + wanted * window) * _MOST_CHARACTERS_A_TOKEN])[skip:]
    windows = min(wanted, len(tokens) // window)
    if windows == 0:
        after = f" after the first {skip}" if skip else ""
        raise EngineError(
            f"the text is too short to measure perplexity on: {len(tokens)} tokens{after}, and one window is {window}",
            hint="Name a longer text in the setting measure.text.",
        )
    first = window // 2
    shape = (windows, window - 1 - first, llama.vocabulary)
    reference: Reference | None
    if "kept" in task and os.fstat(int(task["kept"])).st_size == 4 * math.prod(shape):
        reference, unlike = Kept(int(task["kept"]), shape), ""
    else:
        reference, unlike = _reference(task, text, llama, tokens)
        if reference is not None and "kept" in task:
            reference = Keeping(int(task["kept"]), reference)
    answer(windows=windows, version=f"xllamacpp {xllamacpp.__version__}", bos=llama.bos is not None, unlike=unlike)
    for number in range(windows):
        part = tokens[number * window : (number + 1) * window].copy()
        if llama.bos is not None:
            part[0] = llama.bos
        logits = llama.logits(part, first)
        found = {"log_probabilities": log_softmax_at(logits, part[first + 1 :]).tolist()}
        if reference is not None:
            theirs = reference.logits(part, first)
            assert theirs.shape == logits.shape
            found["divergences"] = divergences(theirs, logits).tolist()
            found["same"] = int((theirs.argmax(axis=1) == logits.argmax(axis=1)).sum())
        answer(**found)


class Reference(Protocol):
    """Who is compared with."""

    def logits(self, tokens: Any, first: int) -> Any: ...


class Keeping:
    """Writes down what a reference computes, window after window."""

    def __init__(self, fd: int, reference: Reference) -> None:
        self._file = os.fdopen(os.dup(fd), "wb", buffering=0)
        self._file.truncate(0)
        self._file.seek(0)
        self._reference = reference

    def logits(self, tokens: Any, first: int) -> Any:
        found = self._reference.logits(tokens, first)
        left = memoryview(found).cast("B")
        while left:
            left = left[self._file.write(left) :]
        return found


class Kept:
    """Reads what was written down, in the same order."""

    def __init__(self, fd: int, shape: tuple[int, int, int]) -> None:
        import numpy as np

        self._windows = iter(np.memmap(os.fdopen(os.dup(fd), "rb"), dtype=np.float32, mode="r", shape=shape))

    def logits(self, tokens: Any, first: int) -> Any:
        return next(self._windows)


def _reference(task: dict[str, Any], text: str, llama: Any, tokens: Any) -> tuple[Any, str]:
    """The model that this one is compared with, or None and why it cannot be."""
    from pressroom.engines._llama import Llama

    if task.get("reference") is None:
        return None, ""
    try:
        found = Llama(Path(task["reference"]), window=llama.window, threads=int(task["threads"]))
    except EngineError as error:
        return None, error.message
    if found.vocabulary != llama.vocabulary or found.bos != llama.bos:
        return None, "it has another vocabulary"
    skip = int(task["skip"])
    read = text[: (skip + int(task["windows"]) * llama.window) * _MOST_CHARACTERS_A_TOKEN]
    theirs = found.tokens(read)[skip:]
    if theirs.tolist() != tokens.tolist():
        return None, "its tokenizer cuts the text otherwise"
    return found, ""


if __name__ == "__main__":
    main()
