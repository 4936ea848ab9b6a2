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
from typing import Any

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
        if "asks" not in task:
            _score(task, text, answer, None)
            return
        reference = Reference(task)
        with os.fdopen(int(task["asks"]), encoding="utf-8") as asks:
            for line in asks:
                _score({**task, **json.loads(line)}, text, answer, reference)
                answer(done=True)
    except EngineError as error:
        answer(error=error.message, hint=error.hint)
        sys.exit(1)


def _score(task: dict[str, Any], text: str, answer: Any, reference: Reference | None) -> None:
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
    unlike = ""
    if task.get("reference") is not None:
        reference = reference or Reference(task)
        unlike = reference.open(llama, text, tokens, windows)
    answer(windows=windows, version=f"xllamacpp {xllamacpp.__version__}", bos=llama.bos is not None, unlike=unlike)
    for number in range(windows):
        part = tokens[number * window : (number + 1) * window].copy()
        if llama.bos is not None:
            part[0] = llama.bos
        logits = llama.logits(part, first)
        found = {"log_probabilities": log_softmax_at(logits, part[first + 1 :]).tolist()}
        if reference is not None and not unlike:
            theirs = reference.logits(number, part, first)
            assert theirs.shape == logits.shape
            found["divergences"] = divergences(theirs, logits).tolist()
            found["same"] = int((theirs.argmax(axis=1) == logits.argmax(axis=1)).sum())
        answer(**found)


class Reference:
    """The model that others are compared with. Where there is a file for it (`kept`), what it computes is written
    down, window after window, and read from there the next time."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task
        self._llama: Any = None
        self._file = None if "kept" not in task else os.fdopen(os.dup(int(task["kept"])), "r+b", buffering=0)

    def open(self, other: Any, text: str, tokens: Any, windows: int) -> str:
        """Be ready for so many windows of these tokens; why it cannot be compared with the other, or ''."""
        from pressroom.engines._llama import Llama

        self._shape = (int(self._task["window"]) // 2 - 1 + int(self._task["window"]) % 2, other.vocabulary)
        if self._llama is not None or windows <= self._held:
            return ""
        try:
            found = Llama(Path(self._task["reference"]), window=other.window, threads=int(self._task["threads"]))
        except EngineError as error:
            return error.message
        if found.vocabulary != other.vocabulary or found.bos != other.bos:
            return "it has another vocabulary"
        skip = int(self._task["skip"])
        read = text[: (skip + int(self._task["windows"]) * found.window) * _MOST_CHARACTERS_A_TOKEN]
        scored = windows * found.window
        if found.tokens(read)[skip : skip + scored].tolist() != tokens[:scored].tolist():
            return "its tokenizer cuts the text otherwise"
        self._llama = found
        return ""

    def logits(self, number: int, tokens: Any, first: int) -> Any:
        """What it says at each place of a window: float32 (places, vocabulary), until the next call."""
        import numpy as np

        if number < self._held:
            assert self._file is not None
            at = number * 4 * math.prod(self._shape)
            return np.memmap(self._file, dtype=np.float32, mode="r", offset=at, shape=self._shape)
        found = self._llama.logits(tokens, first)
        if self._file is not None:
            left = memoryview(found).cast("B")
            self._file.seek(number * len(left))
            while left:
                left = left[self._file.write(left) :]
        return found

    @property
    def _held(self) -> int:
        """How many windows are written down."""
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size // (4 * math.prod(self._shape))


if __name__ == "__main__":
    main()
