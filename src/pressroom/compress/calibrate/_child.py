"""Looks into a model, in a process of its own: the memory it takes and a crash of native code stay here.

Started by `_run`: the task is JSON in `argv[1]`, the end of stdin ends it, the text and the file to fill are behind the
descriptors that the task names, and every answer is one line of JSON on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pressroom.kernel import PressroomError, RecipeError

# Tokens of a window that are computed at once: the logits of all of them are held (4 bytes x vocabulary each).
_PIECE = 512


def main(work: Callable[[dict[str, Any], str, Any], None]) -> None:
    """Do the task that `argv` has, and say how it went: `work` gets the task, the text and what gives an answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    task = json.loads(sys.argv[1])
    with os.fdopen(int(task["text"]), "rb") as given:
        text = given.read().decode()

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        work(task, text, answer)
    except (PressroomError, OSError) as error:
        if isinstance(error, OSError):
            answer(failed="disk", errno=error.errno, strerror=error.strerror)
        else:
            answer(failed=error.code, kind=type(error).__name__, **error.as_dict())
        sys.exit(1)


def _collect(task: dict[str, Any], text: str, answer: Any) -> None:
    import xllamacpp

    from pressroom.compress.calibrate._file import Writing
    from pressroom.compress.calibrate._inputs import Inputs, matrices
    from pressroom.compress.calibrate._llama import Llama
    from pressroom.compress.calibrate._windows import read_part, windows_of
    from pressroom.store import inspect

    model, window = Path(task["model"]), int(task["window"])
    shapes = {tensor.name: tensor.shape for tensor in inspect(model).tensors}
    inputs = Inputs(shapes, Writing(int(task["file"]), names=matrices(shapes)), bool(task["hessians"]))
    piece = min(window, _PIECE)
    llama = Llama(model, window=window, piece=piece, threads=int(task["threads"]), watch=inputs.watch)
    inputs.multiplied, inputs.values = llama.multiplied, llama.values

    tokens, parts = windows_of(llama, text, tokens=int(task["tokens"]), window=window)
    each, counts = np.unique(tokens, return_counts=True)
    fallback = sum(
        count for token, count in zip(each.tolist(), counts.tolist(), strict=True) if llama.falls_back(token)
    )
    windows = len(parts)
    answer(windows=windows)
    for number, part in enumerate(parts):
        for first in range(0, window, piece):
            inputs.next_piece()
            llama.read(part[first : first + piece], first)
        answer(done=number + 1)
    numbers, unseen = inputs.finish()
    if unseen and not task["allow_unseen"]:
        raise RecipeError(
            f"{len(unseen)} of the model's matrices saw no input in {windows * window} tokens: {_some(unseen)}",
            hint="Take more tokens or a text of more kinds, or allow it: they are then rounded without calibration.",
            unseen=unseen,
        )
    inputs.writing.finish(
        {
            "model_digest": task["model_digest"],
            "text_digest": task["text_digest"],
            "window": window,
            "windows": windows,
            "tokens": windows * window,
            "bos": llama.bos is not None,
            "tokens_per_character": round(len(tokens) / len(read_part(text, int(task["tokens"]))), 6),
            "fallback_share": round(fallback / len(tokens), 6),
            "by": f"llama.cpp (xllamacpp {xllamacpp.__version__})",
            "unseen": unseen,
            "inputs": numbers,
        }
    )
    answer(finished=True)


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _end_with_parent() -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # stdin was not open: there is no parent to wait for
    os._exit(1)


if __name__ == "__main__":
    main(_collect)
