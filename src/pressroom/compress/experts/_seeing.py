"""What enters every feed-forward of a model on a text, position by position."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.calibrate._run import answers, checked, must_have_llama
from pressroom.kernel import StoreError, StoreFullError

_WINDOW = 512
# Enough that the least squares of a feed-forward of some thousand channels are not led by chance, and 1 GB for 32
# layers of 2,048.
_MOST_ROWS = 8192


@contextmanager
def inputs_seen(
    model: Path,
    text: str,
    *,
    tokens: int,
    layers: int,
    width: int,
    folder: Path,
    threads: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[NDArray[np.float16]]:
    """(layers, positions, width), in 16 bits, mapped from a file in `folder` that is gone afterwards: the inputs on the
    first `tokens` tokens of the text, or on so many of its positions as are looked at, evenly over it.

    Raises:
        RecipeError: the text is empty or shorter than a window, llama.cpp does not load the model, an input is not
            finite.
        EngineError: the process died. StoreError, StoreFullError: the folder cannot be written.
        MissingDependencyError: llama.cpp is not installed.
    """
    must_have_llama()
    data = checked(text, tokens=max(tokens, _WINDOW), window=_WINDOW)
    for left in folder.glob(".inputs-*"):  # of one that was killed: nobody else works in there
        left.unlink(missing_ok=True)
    rows = min(max(tokens // _WINDOW, 1) * _WINDOW, _MOST_ROWS)
    path = folder / f".inputs-{uuid.uuid4().hex}"
    try:
        _reserve(path, layers * rows * width * 2)
        task = {"model": str(model.absolute()), "path": str(path), "layers": layers, "rows": rows, "width": width}
        task |= {"tokens": max(tokens, _WINDOW), "window": _WINDOW, "threads": threads}
        seen = 0
        for answer in answers(task, data, child="_feeds_child"):
            seen = int(answer.get("rows", seen))
            if on_progress is not None and "done" in answer:
                on_progress(int(answer["done"]), int(answer["windows"]))
        yield np.memmap(path, np.float16, "r", shape=(layers, rows, width))[:, :seen]
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _reserve(path: Path, size: int) -> None:
    """A file of that size whose room is taken: a write into the mapping cannot fail later."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            else:
                os.truncate(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        kind = StoreFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
        raise kind(
            f"{path.parent} has no room for {size / 1e6:,.0f} MB of what enters the model: {error.strerror}",
            hint="Make room there, or take fewer tokens.",
            needed=size,
        ) from error
